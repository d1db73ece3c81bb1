"""The websockets that daphne serves beside /websocket itself: the chat's."""

from django.urls import path

from chat.consumers import RoomConsumer, TypingConsumer

websocket_urlpatterns = [
    path("websocket/chat/<int:room>/", RoomConsumer.as_asgi()),
    path("websocket/chat/<int:room>/typing/", TypingConsumer.as_asgi()),
]
