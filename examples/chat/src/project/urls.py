"""The routes that uwsgi serves: the chat's, then the reference application's and Carillon's."""

from django.urls import include, path

from carillon import urls as carillon_urls
from tower import urls as tower_urls

handler400 = carillon_urls.handler400
handler404 = carillon_urls.handler404
handler500 = carillon_urls.handler500

urlpatterns = [
    path("api/chat/", include("chat.urls")),
    *tower_urls.urlpatterns,
    *carillon_urls.urlpatterns,
]
