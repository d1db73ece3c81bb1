"""Jobs, their events, and schedules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Case, Count, F, Q, Sum, Value, When
from django.db.models.functions import Cast, Coalesce, Length, Replace
from django.utils import timezone

from carillon.accounts.models import Team
from tower import states


class Kind(models.TextChoices):
    JOB = "job"
    AD_HOC_COMMAND = "ad_hoc_command"
    PROJECT_UPDATE = "project_update"
    INVENTORY_UPDATE = "inventory_update"
    SYSTEM_JOB = "system_job"
    WORKFLOW_JOB = "workflow_job"

    @property
    def event_family(self) -> str:
        """The family that tells of such a job's events; for a workflow, of the states of its jobs."""
        return "workflow_events" if self is Kind.WORKFLOW_JOB else f"{self.value}_events"


class Status(models.TextChoices):
    NEW = "new"
    PENDING = "pending"
    WAITING = "waiting"
    RUNNING = "running"
    SUCCESSFUL = "successful"
    FAILED = "failed"
    ERROR = "error"
    CANCELED = "canceled"


class OwnedQuerySet(models.QuerySet):
    def visible_to(self, user: Any) -> OwnedQuerySet:
        """What a user may see and change: his own and his teams'; an admin, everything."""
        if user.is_superuser:
            return self
        # A subquery, not a join: a row must not appear once per team mate.
        return self.filter(Q(owner=user.pk) | Q(team__in=Team.objects.filter(members=user.pk)))

    def visible_to_each(self, users: Iterable[Any]) -> dict[int, set[int]]:
        """visible_to() for many users at once: the ids that each may see, by the user's. Two queries."""
        users = {user.pk: user for user in users}
        rows = list(self.values_list("pk", "owner_id", "team_id"))
        membership = Team.members.through.objects.filter(
            team_id__in={team for _, _, team in rows if team is not None},
            user_id__in=[pk for pk, user in users.items() if not user.is_superuser],
        )
        members = set(membership.values_list("team_id", "user_id"))
        return {
            pk: {
                row for row, owner, team in rows if user.is_superuser or owner == pk or (team, pk) in members
            }
            for pk, user in users.items()
        }


class Owned(models.Model):
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    team = models.ForeignKey(Team, on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    created = models.DateTimeField(default=timezone.now)
    modified = models.DateTimeField(auto_now=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        abstract = True

    @property
    def audience(self) -> dict[str, list[int]]:
        """Who may hear of it, besides admins."""
        return {"users": [self.owner_id], "teams": [self.team_id] if self.team_id else []}


class Job(Owned):
    """Something that runs. What runs it is not Carillon's affair: it reports by the API."""

    name = models.CharField(max_length=512)
    kind = models.CharField(max_length=32, choices=Kind.choices, default=Kind.JOB)
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.NEW)
    started = models.DateTimeField(null=True, blank=True)
    finished = models.DateTimeField(null=True, blank=True)
    workflow_job = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="nodes"
    )
    # The id, in the caller's own books, of what is worked on: a project_update's project, an inventory
    # update's inventory. Clients of Tower look for it in jobs-status_changed.
    resource = models.PositiveBigIntegerField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["status", "-id"], name="job_by_status"),
            models.Index(fields=["owner", "-id"], name="job_by_owner"),
            models.Index(fields=["team", "-id"], name="job_by_team"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.pk}: {self.name}"

    @property
    def event_family(self) -> str:
        return Kind(self.kind).event_family

    @property
    def failed(self) -> bool:
        return self.status in (Status.FAILED, Status.ERROR, Status.CANCELED)

    @property
    def elapsed(self) -> float:
        """Seconds from start to finish, or until now while it runs; 0 before."""
        if self.started is None:
            return 0.0
        end = self.finished or timezone.now()
        return round(max((end - self.started).total_seconds(), 0.0), 3)

    def become(self, status: str) -> None:
        """Take on a status that `states.may_become` allows, with the times that go with it. Does not save."""
        now = timezone.now()
        if status in states.FINAL:
            self.finished = now
        elif status == Status.RUNNING:
            self.started = now
        self.status = status


class OctetLength(models.Func):
    """Bytes of a text; PostgreSQL knows them without reading it."""

    function = "OCTET_LENGTH"
    output_field = models.IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, function="LENGTH", **extra)


# As Ansible counts: items of a loop are no results of their own.
_FAILED = Q(event__in=["runner_on_failed", "runner_on_error", "runner_on_async_failed"])
_IGNORED = _FAILED & Q(event_data__ignore_errors=True)
_TEXT_LINES = Length("stdout") - Length(Replace("stdout", Value("\n"), Value("")))
_LINES = Case(
    When(end_line__gt=F("start_line"), then=F("end_line") - F("start_line")),
    When(Q(stdout="") | Q(stdout__endswith="\n"), then=_TEXT_LINES),
    default=_TEXT_LINES + 1,
    output_field=models.IntegerField(),
)


EVENTS_OF = {
    "failed": [
        f"runner_{name}"
        for name in ("on_failed", "on_error", "on_async_failed", "item_on_failed", "on_unreachable")
    ],
    "skipped": ["runner_on_skipped", "runner_item_on_skipped"],
    "ok": ["runner_on_ok", "runner_item_on_ok"],
    "heading": [
        f"playbook_on_{name}" for name in ("play_start", "task_start", "handler_task_start", "stats")
    ],
}
RESULTS = ("heading", "ok", "changed", "failed", "skipped", "other")
# Of every event one, as the page colours it: a flag says more than a name.
_RESULT = Case(
    When(event__startswith="runner_", failed=True, then=Value("failed")),
    When(event__startswith="runner_", changed=True, then=Value("changed")),
    *(When(event__in=names, then=Value(result)) for result, names in EVENTS_OF.items()),
    default=Value("other"),
)


# Of a sequence that colours, behind its escape: what begins so may be a part of one, and not of the text.
_IN_SEQUENCES = "[0123456789:;mMkK"


class _Uncoloured(models.Func):
    """A text as it is read: without the sequences that colour it. SQLite has no function for that."""

    function = "REGEXP_REPLACE"
    template = r"%(function)s(%(expressions)s, '\x1b\[[0-?]*[ -/]*[@-~]', '', 'g')"
    output_field = models.TextField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="%(expressions)s", **extra)


class EventQuerySet(models.QuerySet):
    def with_text(self, text: str) -> EventQuerySet:
        """Those whose output has the text, in any case; between two words the colour may change."""
        # What PostgreSQL must do for a million rows is the cheap part; the dear one is for few of them.
        words = text.split()
        plainly = Q(*(Q(stdout__icontains=word) for word in words), plain__icontains=text)
        if text[0] not in _IN_SEQUENCES:
            plainly = Q(stdout__icontains=text) | (plainly if len(words) > 1 else Q())
        return self.alias(plain=_Uncoloured("stdout")).filter(plainly)

    def of_host(self, host: str) -> EventQuerySet:
        """What happened on the host, under its headings."""
        return self.filter(Q(event_data__host=host) | Q(event__in=EVENTS_OF["heading"]))

    def with_result(self, results: Iterable[str]) -> EventQuerySet:
        """Those with one of RESULTS."""
        return self.alias(result=_RESULT).filter(result__in=list(results))

    def summary(self) -> dict[str, int]:
        """What these events come to, in one query; a failure that was ignored is `ok` and `ignored`."""
        found = self.aggregate(
            events=Count("pk"),
            lines=Coalesce(Sum(_LINES), 0),
            tasks=Count(
                "pk", filter=Q(event__in=["playbook_on_task_start", "playbook_on_handler_task_start"])
            ),
            ok=Count("pk", filter=Q(event="runner_on_ok")),
            changed=Count("pk", filter=Q(event="runner_on_ok", changed=True)),
            failed=Count("pk", filter=_FAILED),
            unreachable=Count("pk", filter=Q(event="runner_on_unreachable")),
            skipped=Count("pk", filter=Q(event="runner_on_skipped")),
            ignored=Count("pk", filter=_IGNORED),
        )
        ignored = found["ignored"]
        return {**found, "ok": found["ok"] + ignored, "failed": found["failed"] - ignored}


class JobEvent(models.Model):
    """One line of a job's story, numbered by `counter` from 1 on."""

    # Of what may be long.
    BYTES = OctetLength("stdout") + OctetLength(Cast("event_data", models.TextField()))

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    counter = models.PositiveIntegerField()
    event = models.CharField(max_length=100)
    uuid = models.CharField(max_length=100, blank=True, default="")
    parent_uuid = models.CharField(max_length=100, blank=True, default="")
    stdout = models.TextField(blank=True, default="")
    start_line = models.PositiveIntegerField(default=0)
    end_line = models.PositiveIntegerField(default=0)
    event_data = models.JSONField(default=dict, blank=True)
    failed = models.BooleanField(default=False)
    changed = models.BooleanField(default=False)
    event_level = models.PositiveSmallIntegerField(default=0)
    play = models.CharField(max_length=1024, blank=True, default="")
    role = models.CharField(max_length=1024, blank=True, default="")
    task = models.CharField(max_length=1024, blank=True, default="")
    created = models.DateTimeField(default=timezone.now)
    modified = models.DateTimeField(auto_now=True)

    objects = EventQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job", "counter"], name="one_event_per_counter")]

    def __str__(self) -> str:
        return f"{self.event} ({self.counter}) of job {self.job_id}"


class Schedule(Owned):
    """When something is to run, as told by whoever runs it."""

    name = models.CharField(max_length=512)
    rrule = models.CharField(max_length=1000, blank=True, default="")
    enabled = models.BooleanField(default=True)
    next_run = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.name
