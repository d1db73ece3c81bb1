"""What daphne serves: the websocket, and for plain HTTP on its path a word about what is missing."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "carillon.settings")
django.setup(set_prefix=False)

from carillon.websocket import daphne_fixes  # noqa: E402  (needs Django's apps)
from carillon.websocket.application import application  # noqa: E402

daphne_fixes.install()

__all__ = ["application"]
