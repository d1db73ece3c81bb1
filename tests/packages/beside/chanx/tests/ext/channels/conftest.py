"""Django for chanx's tests of Channels, with SQLite where its own settings want PostgreSQL and Redis."""

import os

from django.conf import settings

os.environ.setdefault("CHANX_USE_DJANGO", "True")


def pytest_configure():
    settings.configure(
        SECRET_KEY="of a test",
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=[
            *("django.contrib.auth", "django.contrib.contenttypes"),
            *("django.contrib.sessions", "django.contrib.admin"),
        ],
        CHANX={"CAMELIZE": True, "SEND_COMPLETION": True, "LOG_WEBSOCKET_MESSAGE": True},
        ASGI_APPLICATION=None,
    )  # fmt: skip
