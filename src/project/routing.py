"""The websockets that daphne serves beside /websocket itself: your consumers, under /websocket/."""

websocket_urlpatterns = [
    # path("websocket/yours/<int:pk>/", YourConsumer.as_asgi()),
]
