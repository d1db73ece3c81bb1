"""Who is typing: an ordinary consumer of Channels on the channel layer, which is asgi_amqp here.

What may be lost goes this way; what may not (the messages) goes by `emit_on_commit`.
"""

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from chat.models import Room


class TypingConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        user, room = self.scope["user"], self.scope["url_route"]["kwargs"]["room"]
        if not (user.is_authenticated and await self.is_member(user, room)):
            await self.close()  # before accept(): 403
            return
        self.room = f"typing.{room}"
        await self.channel_layer.group_add(self.room, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        if hasattr(self, "room"):
            await self.channel_layer.group_discard(self.room, self.channel_name)

    async def receive_json(self, content, **kwargs):
        who = self.scope["user"].username
        await self.channel_layer.group_send(self.room, {"type": "typing", "user": who})

    async def typing(self, event):
        await self.send_json({"typing": event["user"]})

    @database_sync_to_async
    def is_member(self, user, room):
        return Room.objects.filter(pk=room, members=user).exists()
