"""Carillon's routes that uwsgi serves. /static/ and the websocket are nginx's to send elsewhere."""

from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework.permissions import AllowAny
from rest_framework.routers import SimpleRouter

from carillon.api import oidc
from carillon.api.accounts import (
    AuditView,
    IndexView,
    LoginView,
    LogoutView,
    MeView,
    PasswordView,
    RootView,
    SessionViewSet,
    TokenViewSet,
)
from carillon.api.connections import ConnectionsView, upgrade_required
from carillon.api.documents import AsyncAPIView, OpenAPIView
from carillon.api.health import HealthView, PingView
from carillon.api.metrics import MetricsView
from carillon.api.publish import NotificationsView
from carillon.operations import DeadLettersView, ExplainView, OperationsView

router = SimpleRouter()
router.register("tokens", TokenViewSet, basename="token")
router.register("sessions", SessionViewSet, basename="session")

v2 = [
    path("", IndexView.as_view(), name="index"),
    path("ping/", PingView.as_view(), name="ping"),
    path("health/", HealthView.as_view(), name="health"),
    path("metrics/", MetricsView.as_view(), name="metrics"),
    path("operations/", OperationsView.as_view(), name="operations"),
    path("dead_letters/", DeadLettersView.as_view(), name="dead_letters"),
    path("explain/", ExplainView.as_view(), name="explain"),
    path("me/", MeView.as_view(), name="me"),
    path("me/password/", PasswordView.as_view(), name="password"),
    path("audit/", AuditView.as_view(), name="audit"),
    path("notifications/", NotificationsView.as_view(), name="notifications"),
    path("connections/", ConnectionsView.as_view(), name="connections"),
    path(
        "schema/",
        OpenAPIView.as_view(),
        name="schema",
    ),
    path(
        "docs/",
        SpectacularSwaggerSplitView.as_view(
            authentication_classes=(), permission_classes=(AllowAny,), template_name="carillon/docs.html"
        ),
        name="docs",
    ),
    path("asyncapi/", AsyncAPIView.as_view(), name="asyncapi"),
    *router.urls,
]

urlpatterns = [
    path("api/", RootView.as_view(), name="api"),
    path("api/login/", LoginView.as_view(), name="login"),
    path("api/login/oidc/", oidc.start, name="oidc"),
    path("api/login/oidc/callback/", oidc.callback, name="oidc-callback"),
    path("api/login/oidc/logged_out/", oidc.logged_out, name="oidc-logged-out"),
    path("api/logout/", LogoutView.as_view(), name="logout"),
    path("api/v2/", include(v2)),
    re_path("^websocket/?$", upgrade_required, name="websocket"),
]

handler400 = "carillon.api.errors.bad_request"
handler404 = "carillon.api.errors.not_found"
handler500 = "carillon.api.errors.server_error"
