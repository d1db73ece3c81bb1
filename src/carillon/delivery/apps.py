from django.apps import AppConfig


class DeliveryConfig(AppConfig):
    name = "carillon.delivery"
