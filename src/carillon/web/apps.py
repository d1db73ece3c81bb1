"""The page at `/`: a template, its style and its ES modules. No models: it asks the REST API."""

from django.apps import AppConfig


class WebConfig(AppConfig):
    name = "carillon.web"
    label = "web"
