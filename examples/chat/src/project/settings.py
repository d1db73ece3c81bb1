"""The settings of this deployment: Carillon's, and the chat's."""

from carillon.settings import *  # noqa: F403
from carillon.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "chat"]
