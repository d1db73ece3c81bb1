"""Carillon's settings with the reference application: jobs, schedules and the page."""

from carillon.settings import *  # noqa: F403
from carillon.settings import INSTALLED_APPS, SPECTACULAR_SETTINGS

INSTALLED_APPS = [*INSTALLED_APPS, "tower"]

LOGIN_URL = "page"
LOGIN_REDIRECT_URL = "page"

SPECTACULAR_SETTINGS = {
    **SPECTACULAR_SETTINGS,
    "DESCRIPTION": "Jobs, their events and who may hear of them. Live notifications: /websocket/.",
    "ENUM_NAME_OVERRIDES": {"JobKind": "tower.models.Kind", "JobStatus": "tower.models.Status"},
}
