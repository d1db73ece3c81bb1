from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render

from chat.models import Message


@login_required
def index(request):
    return render(request, "chat/index.html", {"last_room": request.session.get("last_room", "")})


@login_required
def room(request, room_name):
    messages = Message.objects.filter(room=room_name).select_related("user")
    return render(request, "chat/room.html", {"room_name": room_name, "history": messages})


@login_required
def notify(request):
    """Somebody posts, and everybody hears it: from ordinary, synchronous code."""
    if request.method != "POST":
        return redirect("index")
    async_to_sync(get_channel_layer().group_send)(
        "notifications", {"type": "notify", "text": request.POST["text"]}
    )
    return HttpResponse(status=204)
