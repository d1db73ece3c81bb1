"""Metrics and spans of a process that is measured, as far as its environment asks for them."""

import os
from pathlib import Path

METRICS, TRACES = os.environ.get("BENCH_METRICS"), os.environ.get("BENCH_TRACES")


def begin(process):
    """`process` leaves its metrics and sends its spans; Django's settings may be configured already."""
    if METRICS:
        from carillon.metrics import shared

        shared.start(Path(METRICS), process)
    if TRACES:
        from django.conf import settings

        if not settings.configured:
            settings.configure()
        settings.CARILLON = {**getattr(settings, "CARILLON", {}), "TRACES_ENDPOINT": TRACES}
        from carillon import tracing

        tracing.start(process)
