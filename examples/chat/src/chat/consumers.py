"""Who is typing: an ordinary consumer of Channels on the channel layer, which is asgi_amqp here. What may be
lost goes this way. What may not, what is said in a room, has a resumable consumer.
"""

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from carillon.consumers import AsyncResumableJsonWebsocketConsumer
from chat.models import Room


@database_sync_to_async
def is_member(user, room):
    return Room.objects.filter(pk=room, members=user).exists()


class RoomConsumer(AsyncResumableJsonWebsocketConsumer):
    """What is said in a room, by whoever is here and by the REST API; who comes back gets what he missed."""

    async def connect(self):
        user, room = self.scope["user"], self.scope["url_route"]["kwargs"]["room"]
        if not (user.is_authenticated and await is_member(user, room)):
            await self.close()
            return
        self.room = f"rooms-{room}"
        await self.subscribe(self.room)
        await self.accept()

    async def receive_json(self, content, **kwargs):
        who = self.scope["user"].username
        await self.emit(self.room, {"group_name": "rooms", "user": who, "text": str(content["text"])})


class TypingConsumer(AsyncJsonWebsocketConsumer):
    async def connect(self):
        user, room = self.scope["user"], self.scope["url_route"]["kwargs"]["room"]
        if not (user.is_authenticated and await is_member(user, room)):
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
