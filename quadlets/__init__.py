"""Production in containers for Podman and systemd: the units are made of compose/production.yml."""
