"""The routes that uwsgi serves: Carillon's, and the chat's behind them."""

from django.urls import include, path

from carillon import urls as carillon_urls

handler404 = carillon_urls.handler404
handler500 = carillon_urls.handler500

urlpatterns = [*carillon_urls.urlpatterns, path("api/chat/", include("chat.urls"))]
