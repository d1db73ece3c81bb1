from django.urls import path

from chat.views import MessagesView, RoomsView

urlpatterns = [
    path("rooms/", RoomsView.as_view()),
    path("rooms/<int:room>/messages/", MessagesView.as_view()),
]
