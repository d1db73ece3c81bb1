"""`runtasks` refuses in one line what it cannot run."""

import pytest
from django.core.management import CommandError, call_command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "unknown"], "unknown"),
        (["--backend", "reference"], "is no carillon.tasks.backend.DurableBackend"),
        (["--queue", "fast"], "has no queue fast"),
        (["--concurrency", "0"], "at least 1"),
        ([], "is not durable"),
    ],
)
def test_what_cannot_be_run(settings, words, said):
    settings.TASKS = {
        "default": {"BACKEND": "carillon.tasks.backend.DurableBackend"},
        "reference": {"BACKEND": "django_tasks.backends.immediate.ImmediateBackend"},
    }
    with pytest.raises(CommandError, match=said):
        call_command("runtasks", *words)
