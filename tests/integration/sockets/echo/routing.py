"""The routes of that project, as Channels has them."""

from channels.generic.websocket import AsyncWebsocketConsumer
from django.urls import path


class Echo(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data=text_data, bytes_data=bytes_data)


websocket_urlpatterns = [path("websocket/echo/", Echo.as_asgi())]
