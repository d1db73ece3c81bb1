"""Log in and out, who am I, one's password, tokens and sessions; and the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError as DjangoValidationError
from django.db import transaction
from django.http import HttpResponse, HttpResponseRedirect
from django.middleware.csrf import get_token
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch, get_resolver, get_script_prefix, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.debug import sensitive_post_parameters
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, viewsets
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.generics import ListAPIView
from rest_framework.parsers import FormParser, MultiPartParser
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from carillon.accounts import audit, logins, sessions
from carillon.accounts.jwts import AccessToken
from carillon.accounts.models import ApiToken, AuditEntry, UserSession, lock_user
from carillon.accounts.permissions import IsAdmin, TokenScope
from carillon.api import oidc
from carillon.api.addresses import api, safe_target
from carillon.api.parsers import JSONParser
from carillon.api.serializers import (
    AuditSerializer,
    CredentialsSerializer,
    EndedSerializer,
    PasswordSerializer,
    SessionSerializer,
    TokenSerializer,
    UserSerializer,
)

# awxkit reads from this header which cookie is the session's.
SESSION_COOKIE_HEADER = "X-API-Session-Cookie-Name"


class RootView(APIView):
    """Where to start. Sets the cookie `csrftoken` that a login needs."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(responses={200: dict})
    def get(self, request: Request) -> Response:
        get_token(request._request)
        return Response(
            {
                "description": "Carillon",
                "current_version": api(""),
                "available_versions": {"v2": api("")},
                "schema": api("schema/"),
                "login": reverse("login"),
                "logout": reverse("logout"),
                "websocket": f"{get_script_prefix()}websocket/",
            },
            headers={SESSION_COOKIE_HEADER: settings.SESSION_COOKIE_NAME},
        )


def routes() -> dict[str, str]:
    """The path of every route below /api/v2/ that needs no id, by its name: the project's own ones too."""
    found = {}
    for route in get_resolver().reverse_dict:
        with suppress(NoReverseMatch):
            place = reverse(route) if isinstance(route, str) else ""
            if place.startswith(api("")) and (name := place.removeprefix(api("")).strip("/")):
                found[name] = place
    return dict(sorted(found.items()))


class IndexView(APIView):
    """What there is in this version, by name."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    @extend_schema(operation_id="index_retrieve", responses={200: dict})
    def get(self, request: Request) -> Response:
        return Response(routes())


def wants_json(request: Request) -> bool:
    """Did the client ask for JSON by name? `*/*` (awxkit, curl, a form) means the redirect of AWX."""
    return "application/json" in request.headers.get("Accept", "")


def answer(request: Request, data: dict[str, Any]) -> HttpResponse:
    """200 with `data` for programs, else a redirect to `next` (when it is ours) as AWX does."""
    if wants_json(request):
        response: HttpResponse = Response(data)
    else:
        wanted = request.data.get("next") if isinstance(request.data, Mapping) else None
        response = HttpResponseRedirect(safe_target(request._request, wanted))
    response[SESSION_COOKIE_HEADER] = settings.SESSION_COOKIE_NAME
    return response


@method_decorator([csrf_protect, sensitive_post_parameters("password")], name="dispatch")
class LoginView(APIView):
    """Start a session: `username`, `password`, `next`, with the header `X-CSRFToken`."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    parser_classes = (FormParser, MultiPartParser, JSONParser)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        return HttpResponseRedirect(resolve_url(settings.LOGIN_URL))

    @extend_schema(request=CredentialsSerializer, responses={200: dict, 302: None, 401: dict, 429: dict})
    def post(self, request: Request) -> HttpResponse:
        serializer = CredentialsSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        user = authenticate(
            request._request,
            username=serializer.validated_data["username"],
            password=serializer.validated_data["password"],
        )
        if user is None:
            return Response({"detail": "Wrong user name or password, or the user is not active."}, status=401)
        login(request._request, user)
        return answer(request, {"id": user.pk, "username": user.get_username()})


@method_decorator(csrf_protect, name="dispatch")
class LogoutView(APIView):
    """End the session, and the sockets that came in by it. `end_session`, or the redirect, ends it at the
    OpenID provider that it came by."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    parser_classes = (FormParser, MultiPartParser, JSONParser)

    @extend_schema(request=None, responses={200: dict, 302: None})
    def post(self, request: Request) -> HttpResponse:
        elsewhere = oidc.way_out(request._request)
        logout(request._request)
        if elsewhere and not wants_json(request):
            return HttpResponseRedirect(elsewhere)
        return answer(request, {"detail": "Logged out."} | ({"end_session": elsewhere} if elsewhere else {}))


class MeView(APIView):
    """Who am I? As AWX answers it: a list of one."""

    @extend_schema(responses=UserSerializer(many=True))
    def get(self, request: Request) -> Response:
        return Response(
            {"count": 1, "next": None, "previous": None, "results": [UserSerializer(request.user).data]}
        )


class PasswordView(APIView):
    """A new password of one's own. Ends one's other sessions; this one goes on under a new cookie."""

    @method_decorator(sensitive_post_parameters("current", "new"))
    def dispatch(self, *args: Any, **kwargs: Any) -> HttpResponse:
        return super().dispatch(*args, **kwargs)

    @extend_schema(
        request=PasswordSerializer, responses={200: EndedSerializer, 400: dict, 403: dict, 429: dict}
    )
    def post(self, request: Request) -> Response:
        user: Any = request.user
        if not isinstance(request.successful_authenticator, SessionAuthentication):
            raise PermissionDenied("A password is changed by who is logged in: start a session.")
        if not user.has_usable_password():
            raise PermissionDenied("You have no password here: change it where you log in.")
        serializer = PasswordSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        said, http = serializer.validated_data, request._request
        try:
            validate_password(said["new"], user)
        except DjangoValidationError as error:
            raise ValidationError({"new": error.messages}) from None
        # By the gate: the password of an open session is not guessed faster than any other.
        known = authenticate(http, username=user.get_username(), password=said["current"])
        if known is None:
            raise ValidationError({"current": ["This is not your password."]})
        with transaction.atomic():
            user.set_password(said["new"])
            user.save(update_fields=["password"])
            keys = list(UserSession.objects.filter(user=user).values_list("session_id", flat=True))
            others = [key for key in keys if key != http.session.session_key]
            # Django takes no session of before the change, this one neither: who has changed it logs in anew.
            login(http, user, backend=known.backend)
            sessions.end_rows(keys)
        return Response({"ended": len(others)})


class TokenViewSet(
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.CreateModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet,
):
    """One's own tokens. A token is shown once, in the answer to POST; deleting it revokes it at once."""

    serializer_class = TokenSerializer
    queryset = ApiToken.objects.none()

    def perform_create(self, serializer: Any) -> None:
        # It would outlive what it was made by, and whoever ends that at its issuer would not know of it.
        if isinstance(self.request.auth, AccessToken):
            raise PermissionDenied("A token of another issuer makes none of ours: log in, or use a token.")
        # Who finds somebody's browser open is not to take his account away with him.
        if isinstance(self.request.successful_authenticator, SessionAuthentication) and logins.is_stale(
            self.request.session
        ):
            raise PermissionDenied("This login is too old to make a token: log in again.")
        super().perform_create(serializer)

    def perform_destroy(self, instance: ApiToken) -> None:
        with transaction.atomic():
            lock_user(instance.user_id)  # whoever has the token would make another by it meanwhile
            instance.delete()

    def get_queryset(self) -> Any:
        return ApiToken.objects.filter(user=self.request.user).order_by("-id")


class SessionViewSet(mixins.ListModelMixin, mixins.DestroyModelMixin, viewsets.GenericViewSet):
    """One's own sessions, newest first, each by where its login was from. 404 where SESSION_ENGINE keeps them
    so that nobody can list them."""

    serializer_class = SessionSerializer
    queryset = UserSession.objects.none()
    lookup_value_regex = "[0-9]{1,18}"

    def get_queryset(self) -> Any:
        if not sessions.are_rows():
            raise NotFound(
                f"Sessions cannot be listed here: {settings.SESSION_ENGINE} keeps none of them as rows. "
                "Each ends when its browser logs out, or in time."
            )
        mine = UserSession.objects.filter(user=self.request.user, session__expire_date__gt=timezone.now())
        return mine.select_related("session").order_by("-created", "-pk")

    def perform_destroy(self, instance: UserSession) -> None:
        """It ends at once, and the sockets that came in by it."""
        with transaction.atomic():
            lock_user(instance.user_id)  # first, as whoever changes his password has it
            sessions.end_rows([instance.session_id])
            audit.note("session ended", self.request.user.get_username(), address=instance.address)

    @extend_schema(request=None, responses={200: EndedSerializer, 404: dict})
    @action(detail=False, methods=["post"])
    def end_others(self, request: Request) -> Response:
        """Ends all but the one whose cookie the request has."""
        others = self.get_queryset().exclude(session=request.session.session_key)
        with transaction.atomic():
            lock_user(request.user.pk)
            keys = list(others.values_list("session_id", flat=True))
            sessions.end_rows(keys)
            audit.note("sessions ended", request.user.get_username(), count=len(keys))
        return Response({"ended": len(keys)})


class AuditView(ListAPIView):
    """What was done to accounts and rights, newest first; for admins."""

    permission_classes = (IsAuthenticated, TokenScope, IsAdmin)
    serializer_class = AuditSerializer
    queryset = AuditEntry.objects.none()
    FILTERS = ("what", "name", "by", "address", "request")

    def get_queryset(self) -> Any:
        asked = self.request.query_params
        wanted = {name: asked[name] for name in self.FILTERS if name in asked}
        if odd := next((name for name, value in wanted.items() if "\0" in value), None):
            raise ValidationError({odd: ["a NUL character is in no entry"]})
        return AuditEntry.objects.filter(**wanted).order_by("-pk")

    @extend_schema(parameters=[OpenApiParameter(name, str, description="exactly this") for name in FILTERS])
    def get(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().get(request, *args, **kwargs)
