"""`runtasks` with deadlines that a test can wait for."""

import sys

import django
from django.core.management import call_command

django.setup()

from carillon.tasks import running  # noqa: E402

running.LOOK, running.SAY, running.LEASE, running.IDLE = 0.2, 0.5, 3.0, 3.0
call_command("runtasks", *sys.argv[1:])
