"""Jobs, their events, and schedules: the REST API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import Any

from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import mixins, viewsets
from rest_framework.decorators import action
from rest_framework.exceptions import APIException, NotFound, ValidationError
from rest_framework.fields import DateTimeField
from rest_framework.request import Request
from rest_framework.response import Response

from carillon.api import quotas
from carillon.api.pagination import BoundedPagination
from tower import changes
from tower.models import RESULTS, Job, JobEvent, Kind, Schedule, Status
from tower.serializers import (
    EOF,
    MAX_BATCH,
    EndSerializer,
    EventSerializer,
    EventsResultSerializer,
    HitsSerializer,
    JobSerializer,
    ScheduleSerializer,
    StatusSerializer,
    SummarySerializer,
)

ORDERS = {"id", "name", "status", "kind", "created", "modified", "started", "finished"}
JOB_NUMBERS = ("owner", "team")
JOB_NAMES = ("owner__username", "team__name")
JOB_TIMES = ("created__gte", "created__lt")
EVENT_FILTERS = ("counter__gt", "counter__gte", "counter__lt", "counter__lte", "end_line__gte")
EVENT_TEXTS = ("event", "host", "search")
EVENT_ORDERS = ("counter", "-counter")

EVENT_PARAMETERS = [
    *(OpenApiParameter(name, int) for name in EVENT_FILTERS),
    OpenApiParameter("event", str, description="comma list"),
    OpenApiParameter("result", str, description=f"comma list of {', '.join(RESULTS)}"),
    OpenApiParameter("host", str, description="what happened on it, under its headings"),
    OpenApiParameter("search", str, description="part of the output, without its colours"),
]
MOST_HITS = 10_000  # of one answer
MOST_SEARCHED = 300  # characters
SEARCHES = 2  # through the output of jobs, of one user at a time, in each uwsgi process


class Conflict(APIException):
    """409: the request is understood, and the job is not in a state for it."""

    status_code = 409
    default_code = "conflict"


def team_of(serializer: Any) -> int | None:
    """The team of what is to be made."""
    team = serializer.validated_data.get("team")
    return None if team is None else team.pk


def integer(request: Request, name: str) -> int | None:
    """The query parameter as a number, or None without it. Raises ValidationError (400)."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ValidationError({name: [f"{text[:50]!r} is not a whole number"]})
    return int(text)


def words(request: Request, name: str, known: Any) -> list[str]:
    """The query parameter as a comma list of known words. Raises ValidationError (400)."""
    found = [word for word in request.query_params.get(name, "").split(",") if word]
    if unknown := [word for word in found if word not in known]:
        raise ValidationError(
            {name: [f"unknown: {', '.join(unknown)[:100]}; choose from {', '.join(known)}"]}
        )
    return found


def moment(request: Request, name: str) -> datetime | None:
    """The query parameter as a time, or None without it. Raises ValidationError (400)."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        found: datetime = DateTimeField().to_internal_value(text)
    except (ValidationError, OverflowError):
        raise ValidationError({name: [f"{text[:50]!r} is no date or time, as 2026-11-01T12:00Z"]}) from None
    return found


@contextmanager
def _still_there() -> Iterator[None]:
    """What somebody else deletes meanwhile is not found."""
    try:
        yield
    except (Job.DoesNotExist, Schedule.DoesNotExist):
        raise NotFound() from None


class JobViewSet(
    mixins.ListModelMixin, mixins.RetrieveModelMixin, mixins.CreateModelMixin, viewsets.GenericViewSet
):
    """Jobs that one may see: one's own, one's teams', an admin's all."""

    serializer_class = JobSerializer
    queryset = Job.objects.none()
    lookup_value_regex = "[0-9]{1,18}"

    def get_queryset(self) -> Any:
        return Job.objects.visible_to(self.request.user).select_related("owner", "team")

    def filter_queryset(self, queryset: Any) -> Any:
        if self.action != "list":
            return queryset
        request = self.request
        if statuses := words(request, "status", Status.values):
            queryset = queryset.filter(status__in=statuses)
        if kinds := words(request, "kind", Kind.values):
            queryset = queryset.filter(kind__in=kinds)
        for name in JOB_NUMBERS:
            if (number := integer(request, name)) is not None:
                queryset = queryset.filter(**{name: number})
        for name in JOB_NAMES:
            if text := request.query_params.get(name):
                queryset = queryset.none() if "\0" in text else queryset.filter(**{name: text})
        for name in JOB_TIMES:
            if (time := moment(request, name)) is not None:
                queryset = queryset.filter(**{name: time})
        if search := request.query_params.get("search", "").replace("\0", ""):
            queryset = queryset.filter(name__icontains=search)
        order = request.query_params.get("order_by", "-id")
        if order.removeprefix("-") not in ORDERS:
            raise ValidationError(
                {"order_by": [f"choose from {', '.join(sorted(ORDERS))}, with or without '-'"]}
            )
        return queryset.order_by(order, "-id")

    @extend_schema(
        parameters=[
            OpenApiParameter("status", str, description="comma list"),
            OpenApiParameter("kind", str, description="comma list"),
            *(OpenApiParameter(name, int) for name in JOB_NUMBERS),
            *(OpenApiParameter(name, str, description="the name, whole") for name in JOB_NAMES),
            *(OpenApiParameter(name, datetime, description="a date, or with a time") for name in JOB_TIMES),
            OpenApiParameter("search", str, description="part of the name"),
            OpenApiParameter("order_by", str, description="default -id"),
        ]
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        return super().list(request, *args, **kwargs)

    def perform_create(self, serializer: Any) -> None:
        with quotas.spent("jobs", self.request.user, team=team_of(serializer)):
            serializer.instance = changes.create_job(owner=self.request.user, **serializer.validated_data)

    @extend_schema(request=StatusSerializer, responses={200: JobSerializer, 409: dict})
    def partial_update(self, request: Request, pk: str) -> Response:
        job = self.get_object()
        serializer = StatusSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        # It is told of, like an event.
        with quotas.spent("events", request.user, team=job.team_id):
            return Response(self.changed(job, serializer.validated_data["status"]))

    @extend_schema(request=None, responses={202: JobSerializer, 409: dict})
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Nothing here runs jobs: whoever does reads the status, or hears of it, and stops."""
        job = self.get_object()
        with quotas.spent("events", request.user, team=job.team_id):
            return Response(self.changed(job, Status.CANCELED), status=202)

    def changed(self, job: Job, status: str) -> dict[str, Any]:
        try:
            with _still_there():
                changes.set_status(job.pk, status)
                return self.get_serializer(self.get_queryset().get(pk=job.pk)).data
        except changes.IllegalTransition as error:
            raise Conflict(str(error)) from None

    @extend_schema(
        methods=["GET"],
        parameters=[
            *EVENT_PARAMETERS,
            OpenApiParameter("order_by", str, enum=EVENT_ORDERS, description="default counter"),
            OpenApiParameter("count", str, description="no: `count` is null, which is quicker"),
        ],
        responses=EventSerializer(many=True),
    )
    @extend_schema(
        methods=["POST"],
        request=PolymorphicProxySerializer(
            "EventOrEnd",
            serializers=[EventSerializer, EndSerializer],
            resource_type_field_name=None,
            many=False,
        ),
        responses={201: EventsResultSerializer},
        description=f"One object, or a list of up to {MAX_BATCH}. A counter sent again is a duplicate.",
    )
    @action(detail=True, methods=["get", "post"])
    def events(self, request: Request, pk: str) -> Response:
        job = self.get_object()
        return self.add_events(job) if request.method == "POST" else self.list_events(job)

    @extend_schema(parameters=EVENT_PARAMETERS, responses=SummarySerializer)
    @action(detail=True)
    def summary(self, request: Request, pk: str) -> Response:
        """What the job's events come to: how many, their lines of output, and the results in them."""
        with self.searching():
            return Response(self.events_of(self.get_object()).summary())

    @extend_schema(parameters=[*EVENT_PARAMETERS, OpenApiParameter("offset", int)], responses=HitsSerializer)
    @action(detail=True)
    def hits(self, request: Request, pk: str) -> Response:
        """The counters of the events that the query asks for, from `offset` on, and how many there are."""
        found = self.events_of(self.get_object()).order_by("counter").values_list("counter", flat=True)
        offset = integer(request, "offset") or 0
        with self.searching():
            counters = list(found[offset : offset + MOST_HITS + 1])
            whole = len(counters) <= MOST_HITS and (counters or not offset)
            count = offset + len(counters) if whole else found.count()
        return Response({"count": count, "offset": offset, "counters": counters[:MOST_HITS]})

    def searching(self) -> AbstractContextManager[None]:
        """Around what reads the output of a whole job."""
        if not self.request.query_params.get("search"):
            return nullcontext()
        return quotas.at_once("searches", self.request.user, SEARCHES)

    def events_of(self, job: Job) -> Any:
        """The job's events that the query asks for."""
        events = JobEvent.objects.filter(job=job)
        for name in EVENT_FILTERS:
            if (value := integer(self.request, name)) is not None:
                events = events.filter(**{name: value})
        if results := words(self.request, "result", RESULTS):
            events = events.with_result(results)
        text = {name: self.request.query_params.get(name, "").replace("\0", "") for name in EVENT_TEXTS}
        if names := [name for name in text["event"].split(",") if name]:
            events = events.filter(event__in=names)
        if text["host"]:
            events = events.of_host(text["host"])
        if len(text["search"]) > MOST_SEARCHED:
            raise ValidationError({"search": [f"longer than {MOST_SEARCHED} characters"]})
        if text["search"]:
            events = events.with_text(text["search"])
        return events

    def list_events(self, job: Job) -> Response:
        order = self.request.query_params.get("order_by", "counter")
        if order not in EVENT_ORDERS:
            raise ValidationError({"order_by": [f"choose from {', '.join(EVENT_ORDERS)}"]})
        events = self.events_of(job).order_by(order)
        pages = BoundedPagination()
        pages.after = "counter__gt" if order == "counter" else "counter__lt"
        with self.searching():
            page = pages.paginate_queryset(events, self.request, self, size=JobEvent.BYTES)
        try:
            data = EventSerializer(page, many=True, context={"job": job}).data
            return pages.get_paginated_response(data)
        except BaseException:
            pages.release()
            raise

    def add_events(self, job: Job) -> Response:
        if job.kind == Kind.WORKFLOW_JOB:
            raise ValidationError({"detail": "A workflow_job has no events of its own: its jobs have."})
        data = self.request.data
        items = data if isinstance(data, list) else [data]
        if len(items) > MAX_BATCH:
            raise ValidationError({"detail": f"{len(items)} events in one request: the most is {MAX_BATCH}."})
        ends = [item for item in items if isinstance(item, dict) and item.get("event") == EOF]
        events = [item for item in items if not (isinstance(item, dict) and item.get("event") == EOF)]
        end_serializer = EndSerializer(data=ends, many=True)
        end_serializer.is_valid(raise_exception=True)
        serializer = EventSerializer(data=events, many=True)
        serializer.is_valid(raise_exception=True)
        rows = [JobEvent(**fields) for fields in serializer.validated_data]
        final_counter = end_serializer.validated_data[-1]["final_counter"] if ends else None
        with quotas.spent("events", self.request.user, len(events), job.team_id), _still_there():
            created, duplicates = changes.add_events(job.pk, rows, final_counter)
        return Response({"created": created, "duplicates": duplicates}, status=201)


class EventView(mixins.RetrieveModelMixin, viewsets.GenericViewSet):
    """One event at the address that its notification carries."""

    serializer_class = EventSerializer
    queryset = JobEvent.objects.none()
    lookup_value_regex = "[0-9]{1,18}"
    kind: str = Kind.JOB

    def get_queryset(self) -> Any:
        jobs = Job.objects.visible_to(self.request.user).filter(kind=self.kind)
        return JobEvent.objects.filter(job__in=jobs).select_related("job")


class AdHocCommandEventView(EventView):
    kind = Kind.AD_HOC_COMMAND


class ScheduleViewSet(viewsets.ModelViewSet):
    """Schedules that one may see. Each change is told of in `schedules-changed`."""

    serializer_class = ScheduleSerializer
    queryset = Schedule.objects.none()
    lookup_value_regex = "[0-9]{1,18}"
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]

    def get_queryset(self) -> Any:
        schedules = Schedule.objects.visible_to(self.request.user).select_related("owner", "team")
        return schedules.order_by("id")

    def perform_create(self, serializer: Any) -> None:
        with quotas.spent("schedules", self.request.user, team=team_of(serializer)):
            serializer.instance = changes.create_schedule(
                owner=self.request.user, **serializer.validated_data
            )

    def perform_update(self, serializer: Any) -> None:
        was = serializer.instance
        with quotas.spent("events", self.request.user, team=was.team_id), _still_there():
            serializer.instance = changes.change_schedule(was.pk, serializer.validated_data)

    def perform_destroy(self, instance: Schedule) -> None:
        with quotas.spent("events", self.request.user, team=instance.team_id), _still_there():
            changes.delete_schedule(instance.pk)
