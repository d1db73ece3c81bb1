from django.urls import path

from chat import views

urlpatterns = [
    path("", views.index, name="index"),
    path("notify/", views.notify, name="notify"),
    path("chat/<slug:room_name>/", views.room, name="room"),
]
