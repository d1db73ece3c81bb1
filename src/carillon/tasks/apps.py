from django.apps import AppConfig


class TasksConfig(AppConfig):
    name = "carillon.tasks"
    label = "carillon_tasks"
