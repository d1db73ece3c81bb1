"""Which suite types which page of Operate, and which commands nobody types, and why."""

from __future__ import annotations

DEVELOPMENT = "of the stack of `make dev`: tests/chaos/test_first_steps.py and `make test`"
CLUSTER = "on several hosts: tests/production/cluster"
PODMAN = "on a host with Podman: tests/production/quadlet"
BUNDLE = "on a network without an index: tests/production/bundle"
COMPOSED = "with three brokers: tests/production/container_cluster"

# In the order of a newcomer's life. A page of hosts is typed on a control node and its host.
HOST_PAGES = (
    *("production-host", "certificates", "sign-in", "retention", "rotate", "backup", "upgrade"),
    *("watch-it", "troubleshooting"),
)
# Typed on this machine, in a clone.
CONTAINER_PAGES = ("production-container",)
ELSEWHERE = {
    "production-cluster": CLUSTER,
    "add-node": CLUSTER,
    "remove-node": CLUSTER,
    "production-bundle": BUNDLE,
    "behind-a-proxy": "no command: settings",
}
# A page to the beginnings of commands that are not typed, with the reason.
NOT_TYPED: dict[str, dict[str, str]] = {
    "production-host": {"make test-production-full": "this very test"},
    "sign-in": {"make down": DEVELOPMENT, "make dev": DEVELOPMENT},
    "watch-it": {
        "make observe": DEVELOPMENT,
        "make dev": DEVELOPMENT,
        "ssh -L": "the beginning of one, for a browser",
        "carillon top": "goes on until it is interrupted: tests/unit/observability/test_top.py",
    },
    "troubleshooting": {"make bench-stack": DEVELOPMENT},
    "production-container": {
        "apt ": PODMAN,
        "podman ": PODMAN,
        "systemctl ": PODMAN,
        "journalctl ": PODMAN,
        "rm ": PODMAN,
        "make quadlets": PODMAN,
        "for name in ": PODMAN,
        "make cluster": COMPOSED,
        "docker kill carillon-cluster-": COMPOSED,
        "docker start": COMPOSED,
        "docker restart carillon-cluster-": COMPOSED,
        "docker exec carillon-cluster-": COMPOSED,
    },
}


def not_typed(page: str, command: str) -> str | None:
    """Why it is not typed, or None."""
    reasons = NOT_TYPED.get(page, {})
    return next((reason for start, reason in reasons.items() if command.startswith(start)), None)
