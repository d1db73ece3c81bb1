from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class NotificationsConfig(AppConfig):
    name = "carillon.notifications"

    def ready(self) -> None:
        # Every app's families.py registers what that app emits.
        autodiscover_modules("families")
