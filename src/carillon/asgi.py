"""What daphne serves: the websocket, and for plain HTTP on its path a word about what is missing."""

import os

import django

from carillon.process.environment import SETTINGS_MODULE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS_MODULE)
django.setup(set_prefix=False)

from carillon.sockets.application import application  # noqa: E402  (needs Django's apps)

__all__ = ["application"]
