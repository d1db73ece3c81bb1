"""The settings of this deployment: Carillon's with the reference application, and the chat's."""

from carillon.settings import env
from tower.settings import *  # noqa: F403
from tower.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "chat"]

# Characters of the longest message, at most 1000. PROJECT_CHAT_LONGEST is set where it differs.
CHAT_LONGEST = int(env.project.get("PROJECT_CHAT_LONGEST", "1000"))
