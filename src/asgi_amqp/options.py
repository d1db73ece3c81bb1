"""The options of a layer, read and checked. A bad one is a ConfigurationError that says what to write."""

import fnmatch
import functools
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from .exceptions import ConfigurationError

_PORT = re.compile("[0-9]{0,5}")
_PORTS = range(1, 2**16)
URL_SHAPE = "amqp[s]://user:password@host:port/vhost"


def checked(name: str, value: object, least: float, most: float = 2**53, *, whole: bool = False) -> None:
    """ConfigurationError unless `value` is a number from `least` to `most`."""
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        limit = f"of at least {least:g}" if most == 2**53 else f"from {least:g} to {most:g}"
        raise ConfigurationError(f"{name}={value!r}: write {kind} {limit}")


@dataclass(frozen=True)
class Target:
    """One broker. Neither repr nor str shows the password."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    vhost: str
    tls: bool

    @classmethod
    def parse(cls, url: object) -> "Target":
        """From `amqp[s]://user:password@host:port/vhost`, each part percent-encoded; no vhost means "/"."""
        if not isinstance(url, str):
            raise ConfigurationError(f"url: write {URL_SHAPE} or a list of such, not a {type(url).__name__}")
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in ("amqp", "amqps"):
            raise ConfigurationError("url: a broker URL starts with amqp:// or amqps://")
        if "?" in rest or "#" in rest:
            raise ConfigurationError(
                "url: a broker URL has no query and no fragment. Percent-encode ? as %3F and # as %23 "
                "in the password, and give TLS and heartbeat as options of the layer"
            )
        authority, slash, vhost = rest.partition("/")
        userinfo, _, address = authority.rpartition("@")
        user, _, password = userinfo.partition(":")
        host, colon, port = address.rpartition(":")
        if address.endswith("]") or not colon:
            host, port = address, ""
        if (
            not host
            or "@" in userinfo
            or "/" in vhost
            or not _PORT.fullmatch(port)
            or int(port or 1) not in _PORTS
        ):
            raise ConfigurationError(
                f"url: a broker URL reads {URL_SHAPE}; percent-encode @ : / # and % inside user, password "
                "and vhost. A port is from 1 to 65535"
            )
        return cls(
            host.strip("[]"),
            int(port or (5671 if scheme == "amqps" else 5672)),
            unquote(user) or "guest",
            unquote(password) or "guest",
            unquote(vhost) if slash and vhost else "/",
            scheme == "amqps",
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Options:
    """How to connect. `heartbeat`: seconds of silence after which a broker is given up, 0 for never."""

    targets: tuple[Target, ...]
    name: str
    heartbeat: int = 10
    connect_timeout: float = 5.0
    ssl_ca: str | None = None
    ssl_cert: str | None = None
    ssl_key: str | None = None
    ssl_context: ssl.SSLContext | None = None
    auth: str = "plain"
    byte_path: bool = True  # False: every frame goes through aiormq, at a tenth of the rate

    def __post_init__(self) -> None:
        if not self.targets:
            raise ConfigurationError(f"url: write at least one {URL_SHAPE}")
        checked("heartbeat", self.heartbeat, 0, 3600, whole=True)
        checked("connect_timeout", self.connect_timeout, 0.01, 3600)
        if self.auth not in ("plain", "external"):
            raise ConfigurationError(
                f"auth={self.auth!r}: write 'plain' (password) or 'external' (certificate)"
            )
        if not isinstance(self.name, str):
            raise ConfigurationError(f"name={self.name!r}: write a string")
        self._check_tls()

    def _check_tls(self) -> None:
        """What has no effect is refused: whoever wrote it believes that it protects."""
        files = {"ssl_ca": self.ssl_ca, "ssl_cert": self.ssl_cert, "ssl_key": self.ssl_key}
        given = [name for name, file in files.items() if file is not None]
        for name in given:
            if not isinstance(files[name], str | os.PathLike) or files[name] == "":
                raise ConfigurationError(f"{name}={files[name]!r}: write the path of a file, or None")
        if self.ssl_context is not None:
            if not isinstance(self.ssl_context, ssl.SSLContext):
                kind = type(self.ssl_context).__name__
                raise ConfigurationError(f"ssl_context: write an ssl.SSLContext or None, not a {kind}")
            if given:
                raise ConfigurationError(
                    f"ssl_context: it holds authorities and certificate itself, drop {' and '.join(given)}"
                )
            given = ["ssl_context"]
        if self.ssl_key is not None and self.ssl_cert is None:
            raise ConfigurationError("ssl_key: write ssl_cert, too, the file of the certificate for this key")
        if given and not any(target.tls for target in self.targets):
            raise ConfigurationError(
                f"{' and '.join(given)}: no url is one of TLS, write amqps:// there or drop what is for TLS"
            )

    @functools.cached_property
    def tls(self) -> ssl.SSLContext | None:
        """Verification is on unless `ssl_context` says otherwise; `ssl_ca` replaces the machine's own
        authorities.
        """
        if self.ssl_context is not None or not any(target.tls for target in self.targets):
            return self.ssl_context
        try:
            context = ssl.create_default_context(cafile=self.ssl_ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"ssl_ca {self.ssl_ca}: cannot read authorities from it ({error})"
            ) from None
        if self.ssl_cert is not None:
            try:
                context.load_cert_chain(self.ssl_cert, self.ssl_key)
            except (OSError, ssl.SSLError) as error:
                raise ConfigurationError(
                    f"ssl_cert {self.ssl_cert}, ssl_key {self.ssl_key}: no certificate with its key ({error})"
                ) from None
        return context

    def named(self, role: str) -> "Options":
        """These, for a connection of this role; the broker's management pages show it."""
        return replace(self, name=f"{self.name} {role} {os.getpid()}")


@dataclass(frozen=True, slots=True)
class Durable:
    """Options of a durable channel; see docs/reference/asgi_amqp.md."""

    batch: int = 256  # most events in one message, so most that are redelivered together after a crash
    delivery_limit: int | None = 20  # how often a message comes back, and then dies; None: no limit
    max_length: int | None = None  # messages; more: ChannelFull
    max_bytes: int = 256 * 1024 * 1024  # bytes; more: ChannelFull
    single: bool = False  # one consumer at a time is given messages, the others stand by: keeps the order
    ttl: float | None = None  # seconds until an unread message goes to the dead-letter queue; None: never

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("delivery_limit", 1), ("max_length", 1), ("max_bytes", 1000)):
            if getattr(self, name) is not None or name in ("batch", "max_bytes"):
                checked(name, getattr(self, name), least, whole=True)
        if self.ttl is not None:
            checked("ttl", self.ttl, 0.001)
        if not isinstance(self.single, bool):
            raise ConfigurationError(f"single={self.single!r}: write True or False")


def capacities(given: Mapping[str | re.Pattern[str], int] | None) -> Mapping[str | re.Pattern[str], int]:
    """The `channel_capacity` option, checked."""
    shape = "{'jobs*': 1000}, of globs or compiled regexes and whole numbers"
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"channel_capacity={given!r}: write a mapping, {shape}")
    for pattern, capacity in given.items():
        text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
        if not isinstance(text, str):
            raise ConfigurationError(f"channel_capacity: {pattern!r} is no glob, write a mapping, {shape}")
        checked(f"channel_capacity[{pattern!r}]", capacity, 1, whole=True)
    return given


def durable_options(
    durable: Iterable[str] | Mapping[str, Mapping[str, Any]],
) -> list[tuple[re.Pattern[str], Durable]]:
    """The `durable` option, globs or globs with options, as patterns. ConfigurationError names a bad key."""
    if isinstance(durable, str):
        raise ConfigurationError(f"durable={durable!r}: write a list, [{durable!r}]")
    shape = "['jobs'], or a mapping, {'jobs': {'batch': 1}}"
    if isinstance(durable, bytes) or not isinstance(durable, Iterable):
        raise ConfigurationError(f"durable={durable!r}: write a list of globs, {shape}")
    patterns = []
    for glob in durable:
        if not isinstance(glob, str):
            raise ConfigurationError(f"durable: {glob!r} is no glob, write a list of globs, {shape}")
        options = durable[glob] if isinstance(durable, Mapping) else {}
        try:
            patterns.append((re.compile(fnmatch.translate(glob)), Durable(**options)))
        except ConfigurationError as error:
            raise ConfigurationError(f"durable[{glob!r}]: {error}") from None
        except TypeError:
            known = ", ".join(Durable.__dataclass_fields__)
            raise ConfigurationError(
                f"durable[{glob!r}]: write a mapping of some of {known}, not {options!r}"
            ) from None
    return patterns
