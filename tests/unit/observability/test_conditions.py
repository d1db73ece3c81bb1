"""Whether events flow: the words and bounds of the alerts, and what is said of each state."""

from __future__ import annotations

import re

import pytest

from carillon import conditions
from carillon.conditions import RULES, Facts, holding, verdict
from carillon.top import Row
from tests.unit.observability.test_alerts import FILES, FORM, rules

ALERTS = {alert["alert"]: alert for path in FILES for alert in rules(path)}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.alert)
def test_a_condition_is_the_alert_s(rule):
    alert = ALERTS[rule.alert]
    form = FORM.fullmatch(alert["expr"])
    assert ("<" if rule.below else ">", rule.bound) == (form["operator"], float(form["bound"]))
    assert rule.critical == (alert["labels"]["severity"] == "critical")
    summary = re.sub(r"\{\{ \$value( \| humanizeDuration)? \}\}", "{value}", alert["annotations"]["summary"])
    summary = re.sub(r"\{\{ \$labels\.process \}\}( \{\{ \$labels\.slot \}\})?", "{who}", summary)
    summary = summary.replace("{{ $labels.instance }}", "{who}")
    assert rule.summary.replace("{value} s", "{value}") == summary
    assert rule.action == alert["annotations"]["action"]
    assert not rule.counter or rule.counter in alert["expr"]


def row(name, up=True, behind=None):
    return Row(name, up, None, behind, None, None, None, None, None)


def facts(**other) -> Facts:
    rows = [row("daphne 0", behind=0), row("runworker 0"), row("uwsgi 0"), row("uwsgi 1")]
    well = {"rows": rows, "broker": "rabbitmq:5671", "queue": 0, "dead": 0, "readers": 1, "oldest": 0.0}
    return Facts(**{"heard": {one.name: 0.5 for one in rows}, **well, **other})


def said(seen: Facts) -> tuple[set[str], str, str]:
    holds = list(holding(seen))
    return {one.alert for one in holds}, *verdict(seen, holds)


def test_when_all_is_well_nothing_holds():
    assert said(facts()) == (set(), "flowing", "Events flow.")


def test_without_a_reader_of_the_queue_nothing_is_delivered():
    alerts, state, words = said(facts(readers=0, queue=7))
    assert (alerts, state) == ({"CarillonNoActiveRelay"}, "stopped")
    assert words.startswith("No runworker delivers")


def test_without_the_broker_its_numbers_are_not_known_and_not_zero():
    alerts, state, words = said(facts(readers=None, queue=None, dead=None))
    assert (alerts, state) == ({"CarillonBrokerAway"}, "stopped")
    assert words == "RabbitMQ at rabbitmq:5671 does not answer."


def gone(name):
    return [one._replace(up=one.name != name) for one in facts().rows]


def test_a_kind_without_a_process_is_gone_and_one_of_two_is_not():
    assert said(facts(rows=gone("uwsgi 1"))) == (set(), "flowing", "Events flow.")
    assert said(facts(rows=gone("daphne 0")))[:2] == ({"CarillonProcessGone"}, "stopped")
    alerts, state, words = said(facts(rows=[one for one in facts().rows if one.name != "daphne 0"]))
    assert (alerts, state, words) == (
        {"CarillonProcessGone"}, "stopped", "No daphne has written its metrics for ten seconds.",
    )  # fmt: skip


def test_while_another_host_s_runworker_delivers_a_local_one_that_is_gone_stops_nothing():
    seen = facts(rows=gone("runworker 0"), readers=2, heard={**facts().heard, "runworker 0": 14.0})
    assert said(seen) == ({"CarillonProcessGone"}, "doubtful", "Nothing was heard of runworker for 14 s.")


def test_silence_is_a_doubt_before_it_is_a_death():
    seen = facts(heard={**facts().heard, "runworker 0": conditions.LATE + 1.0})
    assert said(seen) == (set(), "doubtful", "Nothing was heard of runworker for 4 s.")
    # Of two, one is enough.
    assert said(facts(heard={**facts().heard, "uwsgi 0": 9.0}))[1] == "flowing"


@pytest.mark.parametrize(
    ("other", "alert", "words"),
    [
        ({"queue": 1001}, "CarillonQueueGrows", "1,001 messages wait"),
        ({"dead": 1}, "CarillonDeadLetters", "1 events could not be delivered"),
        ({"oldest": 30.5}, "CarillonOutboxWaits", "in the outbox is 30 s old"),
        ({"rows": [*facts().rows, row("daphne 1", behind=1500)], "heard": {**facts().heard, "daphne 1": 0.1}},
         "CarillonFanoutBehind", "daphne 1 is 1,500 events behind"),
    ],
)  # fmt: skip
def test_what_needs_a_look_is_said_while_events_flow(other, alert, words):
    seen = facts(**other)
    assert words in next(iter(holding(seen))).summary
    assert said(seen) == ({alert}, "flowing", "Events flow, and something needs a look.")


@pytest.mark.parametrize(
    "other", [{"queue": 1000}, {"dead": 0}, {"oldest": 30.0}, {"oldest": None}, {"queue": None}]
)
def test_a_bound_is_not_over_itself_and_what_is_not_known_is_not_said(other):
    assert said(facts(**other))[0] == set()


def test_counters_are_told_for_who_looks_twice():
    told = {one["alert"]: one for one in conditions.counted({("carillon_events_lost_total", ""): 3.0})}
    assert told["CarillonEventsLost"]["total"] == 3.0
    assert told["CarillonFanoutGap"]["total"] == 0.0
    assert "{value}" in told["CarillonEventsLost"]["summary"]
