from django.apps import AppConfig


class JobsConfig(AppConfig):
    name = "carillon.jobs"

    def ready(self) -> None:
        from carillon.jobs import signals  # noqa: F401  (connects its receivers)
