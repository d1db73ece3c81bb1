"""The settings of this deployment: Carillon's, and yours below. Values that differ between machines belong in
the environment (docs/how-to/production-host.md), not here."""

from carillon.settings import *  # noqa: F403
from carillon.settings import INSTALLED_APPS

INSTALLED_APPS = [
    *INSTALLED_APPS,
    # "yours",
]
