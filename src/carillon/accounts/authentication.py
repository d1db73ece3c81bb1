"""Bearer tokens and passwords for the REST API. Sessions are Django REST framework's own class."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import authentication
from rest_framework.exceptions import APIException, AuthenticationFailed
from rest_framework.request import Request

from carillon.accounts import identities, jwts, logins
from carillon.accounts.kept import Away
from carillon.accounts.models import ApiToken


class IssuerAway(APIException):
    """503: whether a token is good cannot be told. The same one may be good in a moment."""

    status_code = 503
    wait = 5  # seconds, of Retry-After

    def __init__(self, why: Away) -> None:
        super().__init__(f"The token cannot be checked now, for its issuer's keys are not here: {why}.")


class UnknownToken(AuthenticationFailed):
    default_detail = "The token is unknown, expired or revoked: make a new one."


class BearerAuthentication(authentication.BaseAuthentication):
    """`Authorization: Bearer <token>`; `request.auth` is the `ApiToken`, or the `AccessToken` of an issuer
    outside."""

    def authenticate(self, request: Request) -> tuple[Any, ApiToken | jwts.AccessToken] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = token.strip()
        if jwts.is_one(token):
            return self._by_access_token(token)
        found = ApiToken.find(token)
        if found is None:
            raise UnknownToken
        return found.user, found

    def _by_access_token(self, token: str) -> tuple[Any, jwts.AccessToken]:
        try:
            claims = jwts.access().verify(token)
            return identities.find(claims).user, jwts.AccessToken(claims.expires)
        except jwts.Refused as refused:
            raise AuthenticationFailed(f"The token {refused}.") from None
        except identities.Unwelcome as unwelcome:
            raise AuthenticationFailed(str(unwelcome)) from None
        except Away as away:
            raise IssuerAway(away) from None

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
