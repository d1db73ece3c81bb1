"""The reference application's routes, beside Carillon's: the page, and jobs and schedules in the API."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from tower.page import page
from tower.views import AdHocCommandEventView, EventView, JobViewSet, ScheduleViewSet

router = SimpleRouter()
router.register("jobs", JobViewSet, basename="job")
router.register("job_events", EventView, basename="job_event")
router.register("ad_hoc_command_events", AdHocCommandEventView, basename="ad_hoc_command_event")
router.register("schedules", ScheduleViewSet, basename="schedule")

urlpatterns = [
    path("", page, name="page"),
    path("api/v2/", include(router.urls)),
]
