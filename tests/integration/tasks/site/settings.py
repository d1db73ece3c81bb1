"""A project with a backend of tasks and little else, in a database that is a file."""

import os

SECRET_KEY = "a-key-for-tests"
INSTALLED_APPS = ["django_tasks", "carillon.tasks"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["SITE_DATABASE"],
        "OPTIONS": {"timeout": 30},
    }
}
USE_TZ = True
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_amqp.AMQPChannelLayer",
        "CONFIG": {
            "url": os.environ["SITE_BROKER"],
            "prefix": os.environ["SITE_PREFIX"],
            "durable": {"carillon.tasks.*": {"batch": 1, "delivery_limit": None}},
        },
    }
}
TASKS = {"default": {"BACKEND": "carillon.tasks.backend.DurableBackend", "QUEUES": ["default", "mail"]}}
LOGGING = {
    "version": 1,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
