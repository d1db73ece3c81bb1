from django.apps import AppConfig


class TowerConfig(AppConfig):
    name = "tower"

    def ready(self) -> None:
        from tower import signals  # noqa: F401  (connects its receivers)
