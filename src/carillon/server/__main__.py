"""`python -m carillon.server`: what the launcher starts for daphne."""

from carillon.server.server import Launcher

Launcher.entrypoint()
