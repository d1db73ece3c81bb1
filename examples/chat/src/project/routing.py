"""The websockets that daphne serves beside /websocket itself: the chat's."""

from django.urls import path

from chat.consumers import TypingConsumer

websocket_urlpatterns = [path("websocket/chat/<int:room>/typing/", TypingConsumer.as_asgi())]
