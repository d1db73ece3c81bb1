"""The REST API: rooms, and what is said in them."""

from django.conf import settings
from django.db import transaction
from rest_framework import generics, serializers

from carillon.events import Notification, emit_on_commit
from chat.models import Message, Room


class RoomSerializer(serializers.ModelSerializer):
    class Meta:
        model = Room
        fields = ("id", "name", "members")


class MessageSerializer(serializers.ModelSerializer):
    user = serializers.CharField(source="user.username", read_only=True)
    text = serializers.CharField(max_length=settings.CHAT_LONGEST)

    class Meta:
        model = Message
        fields = ("id", "user", "text", "created")


class RoomsView(generics.ListCreateAPIView):
    """The rooms that one is a member of."""

    serializer_class = RoomSerializer

    def get_queryset(self):
        return Room.objects.filter(members=self.request.user)


class MessagesView(generics.ListCreateAPIView):
    """What was said in a room. What is posted reaches all who subscribed to the room."""

    serializer_class = MessageSerializer

    def get_queryset(self):
        return Message.objects.filter(room=self._room()).select_related("user")

    @transaction.atomic
    def perform_create(self, serializer):
        room = self._room()
        serializer.save(room=room, user=self.request.user)
        emit_on_commit([Notification(f"rooms-{room.pk}", {"group_name": "rooms", **serializer.data})])

    def _room(self):
        return generics.get_object_or_404(Room, pk=self.kwargs["room"], members=self.request.user)
