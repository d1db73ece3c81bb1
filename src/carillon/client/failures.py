"""Exceptions of sockets, TLS and handshakes, as errors in words."""

from __future__ import annotations

import json
import socket
import ssl

from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, SecurityError

from carillon.client.errors import Away, CertificateError, ClientError, ConfigurationError, NotThere, Refused


def connection_failure(error: Exception, where: str) -> ClientError:
    """What a failed connection to `where` (an address) was."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CertificateError(
            f"the certificate of {where} is not trusted ({error.verify_message}): "
            "CARILLON_CA_CERT or --ca-cert names the CA to trust"
        )
    if isinstance(error, InvalidStatus):
        return http_failure(error.response.status_code, error.response.body, where)
    if isinstance(error, (InvalidURI, SecurityError)):
        return Away(f"{where} redirects to another address: name that one ({error})")
    if isinstance(error, ssl.SSLError):
        return Away(f"{where} does not speak TLS as it should ({error.reason or error})")
    if isinstance(error, TimeoutError):
        return Away(f"{where} does not answer in time")
    if isinstance(error, ConnectionRefusedError):
        return Away(f"nothing listens at {where}")
    if isinstance(error, socket.gaierror):
        return Away(f"the name in {where} is not known")
    if isinstance(error, OSError):
        return Away(f"no connection to {where}: {_cause(error)}")
    if isinstance(error, InvalidHandshake):
        return Away(f"what answers at {where} speaks no websocket: {error}")
    return Away(f"no connection to {where}: {_cause(error)}")


def _cause(error: Exception) -> str:
    """An error's cause in words, also when it has none of its own: asyncio's resets are empty."""
    words = getattr(error, "strerror", None) or str(error)
    if words:
        return str(words).lower()
    if isinstance(error, (ConnectionError, EOFError)):
        return "the other side closed it"
    return type(error).__name__


def http_failure(status: int, body: bytes | bytearray | None, where: str) -> ClientError:
    """What an HTTP answer other than 2xx means. A JSON body's `detail` or `error` is quoted."""
    try:
        answer = json.loads(body or b"")
        detail = (
            str(answer.get("detail") or answer.get("error") or "")[:300] if isinstance(answer, dict) else ""
        )
    except ValueError:
        detail = ""
    quoted = f": {detail.rstrip('.')}" if detail else ""
    if status in (401, 403):
        return Refused(f"{where} refuses the token ({status}){quoted}")
    if status in (400, 414):
        return ConfigurationError(f"{where} takes no such request ({status}){quoted}")
    if status == 404:
        return NotThere(f"{where} is not there (404){quoted}")
    if status == 426:
        return Away(f"{where} saw no websocket (426): something between eats the Upgrade header{quoted}")
    return Away(f"{where} answers {status}{quoted}")
