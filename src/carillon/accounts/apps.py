from django.apps import AppConfig


class AccountsConfig(AppConfig):
    name = "carillon.accounts"

    def ready(self) -> None:
        from carillon.accounts import signals  # noqa: F401  (connects the receivers)
