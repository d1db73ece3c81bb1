"""The two models that the tests create and change."""

from django.db import models


class TestModel(models.Model):  # noqa: DJ008 - nobody prints it
    __test__ = False

    name = models.CharField(max_length=255)


class TestModelWithCustomPK(models.Model):  # noqa: DJ008
    __test__ = False

    name = models.CharField(max_length=255, primary_key=True)
    description = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001
