import os

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class CarillonConfig(AppConfig):
    name = "carillon"

    def ready(self) -> None:
        from carillon import checks, conf, tracing  # noqa: F401  (checks: they are registered)
        from carillon.accounts import audit, jwts, logins, sessions  # noqa: F401  (receivers of logins)
        from carillon.api import policy
        from carillon.metrics import shared
        from carillon.process import launcher
        from carillon.sockets import control, signals  # noqa: F401  (their families and receivers)

        audit.watch()
        conf.check()
        jwts.check_settings()
        tracing.check_settings()
        sessions.check_settings()
        policy.text()
        if process := os.environ.get(launcher.PROCESS_VARIABLE):
            shared.start_with_forks(conf.conf.METRICS_DIRECTORY, process)
            tracing.start(process)
        # Every app's families.py registers what that app emits.
        autodiscover_modules("families")
