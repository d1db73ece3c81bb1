"""The settings of this deployment: Carillon's with the reference application, and yours below. Without jobs
and their page: import from `carillon.settings`, and leave `tower` out of urls.py. Values that differ between
machines belong in the environment, not here: `env.project["PROJECT_NAME"]` has yours
(docs/how-to/your-app.md)."""

from tower.settings import *  # noqa: F403
from tower.settings import INSTALLED_APPS

INSTALLED_APPS = [
    *INSTALLED_APPS,
    # "yours",
]
