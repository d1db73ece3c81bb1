from asgiref.sync import async_to_sync
from celery import shared_task
from channels.layers import get_channel_layer


@shared_task
def answer(room, text):
    async_to_sync(get_channel_layer().group_send)(
        f"chat_{room}", {"type": "chat.message", "message": f"you said {text}", "user": "bot"}
    )
