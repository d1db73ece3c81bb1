"""Carillon: everyone within earshot hears. The Django project; `asgi_amqp` beside it is the channel layer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("carillon")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+checkout"
