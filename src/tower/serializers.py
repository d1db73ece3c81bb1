"""Jobs, events and schedules as JSON."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from carillon import text
from carillon.accounts.models import Team
from carillon.api.addresses import api
from carillon.conf import conf
from tower.models import Job, JobEvent, Kind, Schedule, Status
from tower.payloads import event_url

EOF = "EOF"
MAX_BATCH = 1000


class OwnTeam(serializers.PrimaryKeyRelatedField):
    """A team that the user is a member of: any other does not exist for him."""

    def get_queryset(self) -> Any:
        user = self.context["request"].user
        return Team.objects.all() if user.is_superuser else Team.objects.filter(members=user)


class VisibleJob(serializers.PrimaryKeyRelatedField):
    """A job that the user may see."""

    def get_queryset(self) -> Any:
        return Job.objects.visible_to(self.context["request"].user)


def summary(owned: Job | Schedule) -> dict[str, Any]:
    """Who owns it, by name as well."""
    fields: dict[str, Any] = {"owner": {"id": owned.owner_id, "username": owned.owner.username}}
    if owned.team is not None:
        fields["team"] = {"id": owned.team_id, "name": owned.team.name}
    return fields


class JobSerializer(serializers.ModelSerializer):
    type = serializers.CharField(source="kind", read_only=True)
    url = serializers.SerializerMethodField()
    status = serializers.ChoiceField(choices=[Status.NEW, Status.PENDING], default=Status.NEW)
    elapsed = serializers.FloatField(read_only=True)
    failed = serializers.BooleanField(read_only=True)
    event_family = serializers.CharField(read_only=True)
    team = OwnTeam(queryset=Team.objects.all(), required=False, allow_null=True)
    workflow_job = VisibleJob(queryset=Job.objects.all(), required=False, allow_null=True)
    related = serializers.SerializerMethodField()
    summary_fields = serializers.SerializerMethodField()

    class Meta:
        model = Job
        fields = (
            "id",
            "type",
            "url",
            "name",
            "status",
            "kind",
            "created",
            "modified",
            "started",
            "finished",
            "elapsed",
            "failed",
            "owner",
            "team",
            "workflow_job",
            "resource",
            "event_family",
            "related",
            "summary_fields",
        )
        read_only_fields = ("owner", "created", "modified", "started", "finished")

    def get_url(self, job: Job) -> str:
        return api(f"jobs/{job.pk}/")

    def get_related(self, job: Job) -> dict[str, str]:
        return {"events": api(f"jobs/{job.pk}/events/"), "cancel": api(f"jobs/{job.pk}/cancel/")}

    def get_summary_fields(self, job: Job) -> dict[str, Any]:
        return summary(job)

    def validate_workflow_job(self, workflow: Job | None) -> Job | None:
        if workflow is not None and workflow.kind != Kind.WORKFLOW_JOB:
            raise serializers.ValidationError(f"job {workflow.pk} is a {workflow.kind}, not a workflow_job")
        return workflow


class StatusSerializer(serializers.Serializer):
    """What PATCH of a job takes."""

    status = serializers.ChoiceField(choices=Status.choices)


class EventSerializer(serializers.ModelSerializer):
    counter = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    event_data = serializers.JSONField(default=dict)
    stdout = serializers.CharField(default="", allow_blank=True, trim_whitespace=False, max_length=2**20)
    url = serializers.SerializerMethodField()

    class Meta:
        model = JobEvent
        fields = (
            "id",
            "job",
            "url",
            "counter",
            "event",
            "uuid",
            "parent_uuid",
            "stdout",
            "start_line",
            "end_line",
            "event_data",
            "failed",
            "changed",
            "event_level",
            "play",
            "role",
            "task",
            "created",
        )
        read_only_fields = ("job",)
        extra_kwargs = {"created": {"required": False}}

    @extend_schema_field(serializers.CharField)
    def get_url(self, row: JobEvent) -> str:
        job = self.context.get("job") or row.job
        return event_url(job.kind, row.pk)

    def to_internal_value(self, data: Any) -> Any:
        return super().to_internal_value(storable(data))

    def validate_event(self, value: str) -> str:
        if value == EOF:
            raise serializers.ValidationError(f"{EOF} takes final_counter, and nothing else")
        return value

    def validate_event_data(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise serializers.ValidationError("this must be an object")
        if (length := stored_length(value)) > conf.EVENT_DATA_CHARACTERS:
            raise serializers.ValidationError(
                f"{length} characters of JSON: the most is {conf.EVENT_DATA_CHARACTERS}"
            )
        return value


class SummarySerializer(serializers.Serializer):
    """What events come to."""

    events = serializers.IntegerField()
    lines = serializers.IntegerField()
    tasks = serializers.IntegerField()
    ok = serializers.IntegerField()
    changed = serializers.IntegerField()
    failed = serializers.IntegerField()
    unreachable = serializers.IntegerField()
    skipped = serializers.IntegerField()
    ignored = serializers.IntegerField()


class HitsSerializer(serializers.Serializer):
    """Events by their counters: `count` in all, of which `counters` are those from `offset` on."""

    count = serializers.IntegerField()
    offset = serializers.IntegerField()
    counters = serializers.ListField(child=serializers.IntegerField())


class EndSerializer(serializers.Serializer):
    """`{"event": "EOF", "final_counter": n}`: all events are in."""

    event = serializers.ChoiceField(choices=[EOF])
    final_counter = serializers.IntegerField(min_value=0, max_value=2**31 - 1)


class EventsResultSerializer(serializers.Serializer):
    created = serializers.IntegerField()
    duplicates = serializers.IntegerField()


class ScheduleSerializer(serializers.ModelSerializer):
    url = serializers.SerializerMethodField()
    team = OwnTeam(queryset=Team.objects.all(), required=False, allow_null=True)
    summary_fields = serializers.SerializerMethodField()

    class Meta:
        model = Schedule
        fields = (
            "id",
            "url",
            "name",
            "rrule",
            "enabled",
            "next_run",
            "owner",
            "team",
            "created",
            "modified",
            "summary_fields",
        )
        read_only_fields = ("owner", "created", "modified")

    def get_url(self, schedule: Schedule) -> str:
        return api(f"schedules/{schedule.pk}/")

    def get_summary_fields(self, schedule: Schedule) -> dict[str, Any]:
        return summary(schedule)


def stored_length(value: Any) -> int:
    """Characters of JSON as PostgreSQL has it: of 1e308, and of 1e-308, it writes every zero."""
    text, zeros = json.dumps(value), []
    json.loads(text, parse_float=lambda number: zeros.append(len(f"{Decimal(number):f}") - len(number)))
    return len(text) + sum(zeros)


def storable(value: Any) -> Any:
    """The same JSON with U+FFFD for what PostgreSQL does not store, at any depth: NUL and lone surrogates.

    Programs print such things all the same, and one odd character must not cost a batch of events.
    """
    if isinstance(value, str):
        return text.storable(value)
    if isinstance(value, list):
        return [storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): storable(item) for key, item in value.items()}
    return value
