"""The page at `/`: a template, its style and its ES modules. It has no models and asks the REST API for everything."""

from django.apps import AppConfig


class WebConfig(AppConfig):
    name = "carillon.web"
    label = "web"
