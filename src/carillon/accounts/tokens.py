"""API tokens: made once, shown once, kept as a hash. Pure: knows nothing of the database."""

from __future__ import annotations

import hashlib
import secrets

SCOPES = ("read", "write", "publish", "metrics")

LONGEST = 8192
"""Characters of a token that is looked at: an issuer's own may have many claims, and a header has room for no
more (nginx/snippets/limits.conf)."""

# A fixed beginning lets secret scanners find a token that leaked, and no token starts with a '-'.
_PREFIX = "car_"


def new_token() -> str:
    """A fresh token: 256 random bits in letters, digits, '_' and '-'."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored: SHA-256 in hex. No salt, no slow hash: a token is random, not a word to be guessed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def parse_scope(text: str) -> str:
    """`"publish read"` to `"read publish"`. Raises ValueError naming what is unknown, or that it is empty."""
    words = set(text.split())
    if unknown := words - set(SCOPES):
        raise ValueError(f"unknown scope {', '.join(sorted(unknown))}: choose from {' '.join(SCOPES)}")
    if not words:
        raise ValueError(f"the scope is empty: choose from {' '.join(SCOPES)}")
    return " ".join(word for word in SCOPES if word in words)
