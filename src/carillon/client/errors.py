"""What can go wrong between a client and Carillon: one line of words each, and the command's exit code."""

from __future__ import annotations


class ClientError(Exception):
    """The text is for people: what is wrong, where, and what to do."""

    exit_code = 1


class ConfigurationError(ClientError):
    """No address, no token, an unreadable file, words that are no groups."""

    exit_code = 2


class SubscriptionError(ClientError):
    """Nothing of what was asked for can be subscribed to."""

    exit_code = 2


class Away(ClientError):
    """No connection, or one that is not Carillon's. Coming back later may help."""

    exit_code = 3


class NotThere(Away):
    """The API knows no such path, or does not show it to this token."""


class UnknownJob(ClientError):
    """There is no such job, or the token may not see it."""

    exit_code = 2


class Refused(ClientError):
    """The server knows whom it has before it and does not let them in. Coming back does not help."""

    exit_code = 4


class CertificateError(ClientError):
    """The server's certificate is not trusted."""

    exit_code = 5
