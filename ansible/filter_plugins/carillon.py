"""Filters of Carillon's roles."""

from __future__ import annotations

import base64
import hashlib
import hmac


def rabbitmq_password_hash(password: str, salt_secret: str, user: str) -> str:
    """RabbitMQ's salted SHA-256 of `password`: base64(salt || sha256(salt || password)), salt of 4 bytes.

    The salt comes from a secret of the installation and the user's name, so that the same password gives the
    same hash and a second run finds nothing to change.
    """
    salt = hmac.new(salt_secret.encode(), user.encode(), hashlib.sha256).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class FilterModule:
    def filters(self) -> dict:
        return {"rabbitmq_password_hash": rabbitmq_password_hash}
