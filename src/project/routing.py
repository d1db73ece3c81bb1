"""The websockets that daphne serves beside /websocket itself: your consumers, under /websocket/ and the
prefixes that carillon.toml declares."""

websocket_urlpatterns = [
    # path("websocket/yours/<int:pk>/", YourConsumer.as_asgi()),
]
