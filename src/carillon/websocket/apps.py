from django.apps import AppConfig


class WebsocketConfig(AppConfig):
    name = "carillon.websocket"
