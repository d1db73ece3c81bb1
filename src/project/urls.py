"""The routes that uwsgi serves: Carillon's, and yours behind them."""

from carillon import urls as carillon_urls

handler404 = carillon_urls.handler404
handler500 = carillon_urls.handler500

urlpatterns = [
    *carillon_urls.urlpatterns,
    # path("api/yours/", include("yours.urls")),
]
