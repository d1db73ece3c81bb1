"""The settings of this deployment: Carillon's, and yours below. Values that differ between machines belong in
the environment, not here: `env.project["PROJECT_NAME"]` has yours (docs/how-to/your-app.md)."""

from carillon.settings import *  # noqa: F403
from carillon.settings import INSTALLED_APPS

INSTALLED_APPS = [
    *INSTALLED_APPS,
    # "yours",
]
