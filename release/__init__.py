"""Makes the artifacts of a release, and proves them: docs/reference/release_artifacts.md."""
