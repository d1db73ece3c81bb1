from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class CarillonConfig(AppConfig):
    name = "carillon"

    def ready(self) -> None:
        from carillon.sockets import control, rights  # noqa: F401  (their families and receivers)

        # Every app's families.py registers what that app emits.
        autodiscover_modules("families")
