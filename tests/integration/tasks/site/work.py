"""Tasks that leave a line in a file when they begin and when they end."""

import os
import time

from django_tasks import task


def note(*words):
    with open(os.environ["SITE_LINES"], "a") as file:
        file.write(" ".join(map(str, words)) + "\n")


@task
def step(number, seconds=0.0):
    note("begin", number)
    time.sleep(seconds)
    note("end", number)
    return number
