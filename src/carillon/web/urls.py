"""Routes of the page: include at the root."""

from django.urls import path

from carillon.web.views import page

urlpatterns = [path("", page, name="page")]
