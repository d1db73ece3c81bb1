"""The frames that tell of jobs, key by key as clients of Tower know them. Functions of rows, and of where the
API is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from carillon.api.addresses import api
from carillon.events import Notification
from tower.models import Job, JobEvent, Kind, Schedule, Status

# A frame is for looking at: what is longer is cut here, and whole in the REST API.
STDOUT_LIMIT = 64 * 1024  # characters
EVENT_DATA_LIMIT = 128 * 1024  # characters of JSON

_URLS = {Kind.JOB: "job_events", Kind.AD_HOC_COMMAND: "ad_hoc_command_events"}


def event_url(kind: str, event_id: int) -> str:
    """Where an event is in the REST API; as in AWX, "" for the kinds whose events have no address."""
    return api(f"{_URLS[kind]}/{event_id}/") if kind in _URLS else ""


def status_changed(job: Job) -> list[Notification]:
    """What a job's new status says, and to whom: all jobs' subscribers, its workflow's, an inventory's."""
    payload: dict[str, Any] = {
        "group_name": "jobs",
        "unified_job_id": job.pk,
        "status": job.status,
        "type": job.kind,
    }
    if job.status == Status.WAITING:
        payload["instance_group_name"] = None  # AWX names the group of machines here; we have none
    if job.finished is not None:
        payload["finished"] = job.finished.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    if job.kind == Kind.PROJECT_UPDATE:
        payload["project_id"] = job.resource
    elif job.kind == Kind.INVENTORY_UPDATE:
        payload |= {"inventory_source_id": job.resource, "inventory_id": job.resource, "group_id": None}
    if job.workflow_job_id:
        # A node is a job here, nothing else: its id is the job's.
        payload |= {"workflow_job_id": job.workflow_job_id, "workflow_node_id": job.pk}
    found = [Notification("jobs-status_changed", payload, job.audience)]
    if job.workflow_job_id:
        # Who may subscribe to a workflow may hear of each of its jobs.
        found.append(
            Notification(
                f"workflow_events-{job.workflow_job_id}",
                {**payload, "group_name": "workflow_events", "workflow_job_template_id": None},
            )
        )
    if job.kind == Kind.INVENTORY_UPDATE and job.resource is not None:
        inventory = {"group_name": "inventories", "inventory_id": job.resource, "status": job.status}
        found.append(Notification("inventories-status_changed", inventory, job.audience))
    return found


def summary(job: Job, final_counter: int) -> Notification:
    """All events are in. No key `status`: that is how clients tell it from a change of status."""
    payload = {"group_name": "jobs", "unified_job_id": job.pk, "final_counter": final_counter}
    return Notification("jobs-summary", payload, job.audience)


def event(job: Job, row: JobEvent) -> Notification:
    """One event of a job, to those who watch this job."""
    family = job.event_family
    stdout = row.stdout if len(row.stdout) <= STDOUT_LIMIT else row.stdout[:STDOUT_LIMIT] + "…"
    event_data = row.event_data
    if len(json.dumps(event_data)) > EVENT_DATA_LIMIT:
        event_data = {"truncated": True}
    created = row.created.isoformat()
    payload = {
        "id": row.pk,
        job.kind: job.pk,
        "created": created,
        "modified": created,
        "group_name": family,
        "url": event_url(job.kind, row.pk),
        "stdout": stdout,
        "counter": row.counter,
        "uuid": row.uuid,
        "parent_uuid": row.parent_uuid,
        "start_line": row.start_line,
        "end_line": row.end_line,
        "event": row.event,
        "event_data": event_data,
        "failed": row.failed,
        "changed": row.changed,
        "event_level": row.event_level,
        "play": row.play,
        "role": row.role,
        "task": row.task,
    }
    return Notification(f"{family}-{job.pk}", payload)


def schedule_changed(schedule: Schedule, before: Mapping[str, list[int]] | None = None) -> Notification:
    """A schedule was made, changed or removed: look again. `before`: its audience until now, which is told
    that it has gone to others."""
    audience = schedule.audience
    if before is not None:
        audience = {whom: sorted({*ids, *before[whom]}) for whom, ids in audience.items()}
    return Notification("schedules-changed", {"id": schedule.pk, "group_name": "schedules"}, audience)
