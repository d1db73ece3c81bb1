"""Bearer tokens and passwords for the REST API. Sessions are Django REST framework's own class."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import authentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from carillon.accounts import logins
from carillon.accounts.models import ApiToken


class BearerAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer <token>`; `request.auth` is the `ApiToken`."""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        found = ApiToken.find(token.strip())
        if found is None:
            raise AuthenticationFailed("The token is unknown, expired or revoked: make a new one.")
        return found.user, found

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="carillon"'


class PasswordAuthentication(authentication.BasicAuthentication):
    """`Authorization: Basic`; `carillon.accounts.logins` has a say first."""

    def authenticate_credentials(self, userid: str, password: str, request: Any = None) -> tuple[Any, None]:
        if "\0" in userid or "\0" in password:
            raise AuthenticationFailed("A name or password with a NUL character is none.")
        found = super().authenticate_credentials(userid, password, request)
        logins.password_was_right(request)
        return found


class PasswordScheme(OpenApiAuthenticationExtension):
    """How the schema speaks of it."""

    target_class = PasswordAuthentication
    name = "basicAuth"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "basic"}


class BearerScheme(OpenApiAuthenticationExtension):
    """How the schema speaks of it."""

    target_class = BearerAuthentication
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}
