"""Where Carillon is and how to get in: checked once, with words for what is missing."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from carillon.client.errors import ConfigurationError


@dataclass(frozen=True)
class Endpoint:
    """`url` without a slash at its end; `ssl_context` is None exactly for http."""

    url: str
    token: str = field(repr=False)
    ssl_context: ssl.SSLContext | None = field(repr=False, default=None)

    @property
    def websocket_url(self) -> str:
        return "ws" + self.url.removeprefix("http") + "/websocket/"


def endpoint(url: str | None, token: str | None, ca: str | Path | None = None) -> Endpoint:
    """
    :param ca: file of the CA certificates to trust (PEM), instead of the machine's own
    :raises ConfigurationError: something is missing or cannot be used
    """
    if not url:
        raise ConfigurationError("CARILLON_URL is not set: `. .dev/env` sets it, or give --url")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigurationError(f"'{url}' is no address such as https://carillon.example.org")
    if parts.username or parts.password:
        raise ConfigurationError("the address holds a password: give a token instead")
    if not token:
        raise ConfigurationError("CARILLON_TOKEN is not set: `. .dev/env` sets it, or give --token-file")
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError("the token is no single line of printable characters")
    context = None
    if parts.scheme == "https":
        try:
            context = ssl.create_default_context(cafile=str(ca) if ca else None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(f"cannot read the CA certificates in '{ca}': {error}") from None
    return Endpoint(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", token, context)


def from_environment(
    environ: Mapping[str, str] = os.environ,
    *,
    url: str | None = None,
    token_file: str | None = None,
    ca: str | None = None,
) -> Endpoint:
    """
    What the arguments leave open is read from CARILLON_URL, CARILLON_TOKEN or CARILLON_TOKEN_FILE, and
    CARILLON_CA_CERT.

    :raises ConfigurationError:
    """
    token_file = token_file or (None if environ.get("CARILLON_TOKEN") else environ.get("CARILLON_TOKEN_FILE"))
    token = environ.get("CARILLON_TOKEN")
    if token_file:
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a text file"
            raise ConfigurationError(f"cannot read the token in '{token_file}': {why}") from None
    return endpoint(url or environ.get("CARILLON_URL"), token, ca or environ.get("CARILLON_CA_CERT"))
