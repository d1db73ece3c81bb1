"""How the artifacts were made, as an in-toto statement with SLSA's predicate. Pure."""

from collections.abc import Mapping
from typing import Any


def statement(
    subjects: Mapping[str, str], materials: Mapping[str, str], asked: Mapping[str, Any], builder: str
) -> dict[str, Any]:
    """`subjects` are artifacts and `materials` the locks that went in, each with its SHA-256 digest; `asked`
    is the commit and what else was chosen.
    """
    commit = asked["commit"]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://example.org/carillon/make-release/v1",
                "externalParameters": dict(asked),
                "resolvedDependencies": [
                    {"uri": f"git+file:carillon@{commit}", "digest": {"gitCommit": commit}},
                    *({"uri": name, "digest": {"sha256": materials[name]}} for name in sorted(materials)),
                ],
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }
