"""Settings of the unit tests: SQLite in memory, and a channel layer in memory. No server is needed."""

import os

for _name, _value in {
    "CARILLON_ENVIRONMENT_FILE": os.devnull,
    "CARILLON_SECRET_KEY": "a-key-for-tests-that-is-long-enough-to-pass",
    "CARILLON_ALLOWED_HOSTS": "testserver,localhost,carillon.test",
    "CARILLON_TRUSTED_ORIGINS": "https://trusted.test:8443",
    "CARILLON_DATABASE_HOST": "sqlite",
    "CARILLON_AMQP_HOSTS": "127.0.0.1:1",
    "CARILLON_AMQP_PASSWORD": "unused",
}.items():
    # Set, not defaulted: a developer's own configuration has no part in unit tests.
    os.environ[_name] = _value

from tower.settings import *  # noqa: E402, F403
from tower.settings import INSTALLED_APPS  # noqa: E402

INSTALLED_APPS = [*INSTALLED_APPS, "django_tasks", "carillon.tasks"]

CHANNEL_LAYERS = {"default": {"BACKEND": "tests.unit.support.fakes.FakeLayer"}}
# No stream to tail: a test gives events to the hub itself.
CARILLON = {"STREAM": None, "WEBSOCKET_URLCONF": "project.routing"}
# The real one is slow on purpose.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Without collectstatic there is no manifest.
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Tasks that tests declare; those of the backend of carillon.tasks say so.
TASKS = {
    "default": {"BACKEND": "django_tasks.backends.immediate.ImmediateBackend", "QUEUES": ["default", "slow"]}
}
