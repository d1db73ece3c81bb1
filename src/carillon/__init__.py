"""Carillon: everyone within earshot hears. The Django app; `asgi_amqp` beside it is the channel layer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("django-carillon")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+checkout"
