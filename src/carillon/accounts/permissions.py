"""What a token's scope allows. Sessions and passwords are the user himself and may do all that he may."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from carillon.accounts.jwts import AccessToken
from carillon.accounts.models import ApiToken


def allows(request: Request, scope: str) -> bool:
    """Whether that by which somebody came has this scope. Sessions and passwords have all."""
    return not isinstance(request.auth, (ApiToken, AccessToken)) or request.auth.allows(scope)


class TokenScope(BasePermission):
    """`read` for GET, HEAD and OPTIONS, `write` for the rest."""

    message = "This token's scope does not allow that: make one with the scope it needs."

    def has_permission(self, request: Request, view: Any) -> bool:
        return allows(request, "read" if request.method in SAFE_METHODS else "write")


class IsAdmin(BasePermission):
    """A superuser, and by a token only as far as its scope goes (TokenScope)."""

    message = "Operations are for admins."

    def has_permission(self, request: Request, view: Any) -> bool:
        return bool(request.user and request.user.is_superuser)


class MayPublish(BasePermission):
    """Whoever publishes can speak as any job: an admin, or who has the permission `carillon.publish`, now; by
    a session, or a token with the scope `publish`."""

    message = "Publishing needs a token with the scope publish, of an admin or a user who may publish."

    def has_permission(self, request: Request, view: Any) -> bool:
        return allows(request, "publish") and may_publish(request.user)


def may_publish(user: Any) -> bool:
    """May this user publish, as his rights are now?"""
    return bool(user and user.has_perm("carillon.publish"))
