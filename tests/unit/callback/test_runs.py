"""Real runs: what arrives at the API, and what an API that is away, dying or slow does to it: nothing."""

import contextlib
import re
import signal
import time
from collections import Counter

import pytest

from tests.unit.callback.stub_api import TOKEN, StubApi

SECRET = "hunter2-never-to-be-seen"

EVERYTHING = f"""
- name: First play
  hosts: all
  gather_facts: false
  tasks:
    - name: Speak
      debug:
        msg: hello
    - name: Change
      raw: echo changed things
      notify: Handle
    - name: Each
      debug:
        msg: "{{{{ item }}}}"
      loop: [a, b, c]
    - name: Leave out
      debug:
      when: false
    - name: Hidden
      raw: echo {SECRET}
      no_log: true
      register: hidden
    - name: Hidden in a loop
      raw: echo {{{{ item }}}}
      loop: [{SECRET}]
      no_log: true
    - name: Hidden and failing
      fail:
        msg: {SECRET}
      no_log: true
      ignore_errors: true
    - name: Hidden if told so
      fail:
        msg: {SECRET}
      no_log: "{{{{ 1 == 1 }}}}"
      ignore_errors: true
    - name: Shrugged off
      fail:
        msg: never mind
      ignore_errors: true
    - name: Try again
      raw: 'test -e again || {{ touch again; exit 1; }}'
      register: tried
      until: tried is succeeded
      retries: 3
      delay: 0
    - name: Guarded
      block:
        - name: Fall
          fail:
            msg: caught below
      rescue:
        - name: Catch
          debug:
            msg: caught
    - name: Show my own token
      debug:
        msg: "{{{{ lookup('env', 'CARILLON_TOKEN') }}}}"
    - name: Write
      copy:
        content: "new line\\n"
        dest: "{{{{ playbook_dir }}}}/written"
      diff: true
  handlers:
    - name: Handle
      debug:
        msg: handled
- name: Second play
  hosts: all
  gather_facts: false
  tasks:
    - name: Odd characters
      debug:
        msg: "nul \\0, bell \\a, é, 🔔"
"""

SHORT = """
- hosts: all
  gather_facts: false
  tasks:
    - debug: {msg: "number {{ item }}"}
      loop: [1, 2, 3]
    - debug: {msg: the end}
"""

PAUSING = """
- hosts: all
  gather_facts: false
  tasks:
    - debug: {msg: before}
    - raw: "while ! test -e %s/go; do sleep 0.05; done"
    - debug: {msg: after}
"""


@pytest.fixture(scope="module")
def whole(start):
    with StubApi() as api:
        run = start(api.url, EVERYTHING, ANSIBLE_FORCE_COLOR="1").end()
    assert run.code == 0, run.out + run.err
    return run, api


@pytest.fixture(scope="module")
def loud(start):
    """The same, with everything that Ansible can tell: arguments, environments, connections."""
    with StubApi() as api:
        run = start(api.url, EVERYTHING, "-vvvv").end()
    return run, api


def named(api, name, task=None):
    return [event for event in api.events if event["event"] == name and task in (None, event["task"])]


def test_the_job_has_a_life(whole):
    _, api = whole
    assert api.jobs == {
        41: {
            "id": 41,
            "name": "play.yml",
            "kind": "job",
            "statuses": ["pending", "running", "successful"],
            "eof": len(api.events),
        }
    }


def test_counters_and_lines_have_no_gap(whole):
    _, api = whole
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    line = 0
    for event in api.events:
        assert event["start_line"] == line
        line = event["end_line"]
        if line > event["start_line"]:
            assert event["stdout"].count("\n") + 1 == line - event["start_line"]
    assert len({event["uuid"] for event in api.events}) == len(api.events)


def test_every_kind_of_event_is_there(whole):
    _, api = whole
    found = Counter(event["event"] for event in api.events)
    assert found["playbook_on_start"] == found["playbook_on_stats"] == 1
    assert found["playbook_on_play_start"] == 2
    assert found["runner_on_start"] == found["playbook_on_task_start"] == 16
    assert found["runner_item_on_ok"] == 4
    assert found["runner_retry"] == 1
    assert found["runner_on_skipped"] == 1
    assert found["runner_on_file_diff"] == 1
    assert found["runner_on_failed"] == 4
    assert found["runner_on_ok"] == 11
    assert found["playbook_on_notify"] == 1


def test_events_know_where_they_belong(whole):
    _, api = whole
    by_uuid = {event["uuid"]: event for event in api.events}
    parents = {
        "playbook_on_play_start": "playbook_on_start",
        "playbook_on_stats": "playbook_on_start",
        "playbook_on_task_start": "playbook_on_play_start",
        "runner_on_ok": "playbook_on_task_start",
        "runner_on_failed": "playbook_on_task_start",
        "runner_item_on_ok": "playbook_on_task_start",
    }
    for event in api.events:
        if event["event"] in parents:
            parent = by_uuid[event["parent_uuid"]]
            assert parent["event"] == parents[event["event"]]
            assert parent["counter"] < event["counter"]
            if event["event_level"] == 3:
                assert parent["task"] == event["task"]
    assert named(api, "runner_on_ok", "Odd characters")[0]["play"] == "Second play"
    assert {event["event_level"] for event in api.events} == {0, 1, 2, 3}


def test_results_are_told_apart(whole):
    _, api = whole
    (rescued,) = named(api, "runner_on_failed", "Fall")
    assert (rescued["failed"], rescued["event_data"]["rescued"]) == (True, True)
    (ignored,) = named(api, "runner_on_failed", "Shrugged off")
    assert (ignored["failed"], ignored["event_data"]["ignore_errors"]) == (False, True)
    assert named(api, "runner_on_ok", "Change")[0]["changed"] is True
    assert named(api, "runner_on_ok", "Speak")[0]["changed"] is False
    assert [event["event_data"]["item"] for event in named(api, "runner_item_on_ok", "Each")] == [
        "a",
        "b",
        "c",
    ]
    (stats,) = named(api, "playbook_on_stats")
    assert stats["event_data"]["rescued"] == {"one": 1}
    assert stats["event_data"]["ok"]["one"] > 9
    assert stats["failed"] is False


def hidden(text):
    """The output without what Ansible prints of hidden failures, which is exactly what is not sent."""
    return re.sub(r"(TASK \[Hidden[^\n]*\n).*?(?=\n[^\n]*TASK)", r"\1", text, flags=re.DOTALL)


def test_the_output_is_what_ansible_printed_colours_and_all(whole):
    run, api = whole
    printed = run.out.replace(TOKEN, "********").replace("\0", "\ufffd")
    assert hidden(api.stdout()).strip() == hidden(printed).strip()
    assert "\x1b[0;32mok: [one]" in api.stdout()
    assert "+new line" in named(api, "runner_on_file_diff")[0]["stdout"]


def test_hidden_results_look_as_ansible_shows_them(whole):
    _, api = whole
    assert "changed: [one]\x1b" in named(api, "runner_on_ok", "Hidden")[0]["stdout"]
    assert '"censored"' in named(api, "runner_on_failed", "Hidden and failing")[0]["stdout"]
    assert list(named(api, "runner_on_ok", "Hidden")[0]["event_data"]["res"]) == ["censored", "changed"]


@pytest.mark.parametrize("kind", ["whole", "loud"])
def test_what_is_hidden_is_nowhere_in_what_was_sent(kind, request):
    run, api = request.getfixturevalue(kind)
    assert run.code == 0
    assert SECRET in run.out + run.err  # Ansible itself did print it: the error of a hidden result quotes it
    assert SECRET not in api.sent()
    assert TOKEN not in api.sent()


def test_a_worker_that_tells_of_a_hidden_task_is_not_heard_through_another_hosts_events(start):
    """At -vvv workers print the commands they run, also while other hosts' results come in."""
    playbook = f"""
- hosts: all
  gather_facts: false
  strategy: free
  tasks:
    - raw: "echo {SECRET}; sleep 1"
      no_log: true
      when: inventory_hostname == "one"
    - debug: {{msg: hi}}
    - raw: echo there
    - debug: {{msg: hi}}
"""
    with StubApi() as api:
        run = start(api.url, playbook, "-vvvv", "-i", "one,two,", "-c", "local").end()
    assert run.code == 0
    assert f"EXEC echo {SECRET}" in run.out
    assert SECRET not in api.sent()
    assert "echo there" in api.stdout()


def test_a_loud_run_is_heard_whole(loud):
    _, api = loud
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    assert "EXEC" in api.stdout()
    assert "no unhandled" not in api.stdout()


def test_the_plugin_says_where_the_job_is_and_nothing_else(whole):
    run, api = whole
    assert f"Carillon: job 41: {api.url}/#/jobs/41" in run.err
    assert "Carillon" not in run.out
    assert run.warnings == []


def test_a_failed_run_fails_its_job_and_keeps_its_exit_code(start):
    with StubApi() as api:
        run = start(
            api.url, "- hosts: all\n  gather_facts: no\n  tasks: [{fail: {msg: no}}]", CARILLON_JOB_NAME="N"
        ).end()
    assert run.code == 2
    assert (api.jobs[41]["statuses"][-1], api.jobs[41]["name"]) == ("failed", "N")


def test_a_run_that_breaks_off_ends_in_error(start):
    with StubApi() as api:
        run = start(
            api.url, SHORT + "\n- hosts: all\n  vars_files: [missing.yml]\n  strategy: nonsense\n"
        ).end()
    assert run.code not in (0, 2)
    assert api.jobs[41]["statuses"][-1] == "error"
    assert api.jobs[41]["eof"] == len(api.events)


@contextlib.contextmanager
def inherited(number, handler):
    """What is started meanwhile has it: whoever runs these tests may ignore SIGHUP (nohup) or SIGINT (&)."""
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_is_canceled(start, number, tmp_path):
    with StubApi() as api:
        with inherited(number, signal.SIG_DFL):
            run = start(api.url, PAUSING % tmp_path)
        api.wait_for(lambda a: any(e["event"] == "runner_on_start" and e["task"] == "raw" for e in a.events))
        time.sleep(0.2)  # lets the worker set up its own signal handling; it is killed either way
        run.process.send_signal(number)
        run.end(15)
    (tmp_path / "go").touch()  # Ansible may leave behind what its task has begun
    assert run.code == (99 if number == signal.SIGINT else -number)
    assert api.jobs[41]["statuses"][-1] == "canceled"
    assert api.jobs[41]["eof"] == len(api.events)


def test_a_run_under_nohup_outlives_its_terminal(start, tmp_path):
    with StubApi() as api:
        with inherited(signal.SIGHUP, signal.SIG_IGN):
            run = start(api.url, PAUSING % tmp_path)
        api.wait_for(lambda a: any(e["event"] == "runner_on_start" and e["task"] == "raw" for e in a.events))
        run.process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        run.end(30)
    assert run.code == 0
    assert api.jobs[41]["statuses"][-1] == "successful"


def test_an_api_that_is_away_costs_warnings_only(start):
    run = start("http://127.0.0.1:9", SHORT).end()
    assert run.code == 0
    assert "the end" in run.out
    assert len(run.warnings) == 2
    assert "is away: nothing listens there. The run goes on" in run.warnings[0]
    assert re.match(r"\d+ events at the end of this run were not sent to Carillon", run.warnings[1])


def test_an_api_that_dies_midway_costs_the_rest_of_the_events(start, tmp_path):
    with StubApi(die_after=3) as api:
        run = start(api.url, PAUSING % tmp_path, CARILLON_FINISH_TIMEOUT="1")
        api.wait_for(lambda a: len(a.events) >= 3)
        (tmp_path / "go").touch()
        run.end()
    assert run.code == 0
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    assert any("events at the end of this run were not sent" in words for words in run.warnings)
    assert len(run.warnings) <= 2


def test_an_api_that_fails_for_a_while_gets_everything_later(start, tmp_path):
    with StubApi(answer=(500, 0)) as api:
        run = start(api.url, PAUSING % tmp_path)
        api.wait_for(lambda a: a.requests >= 2)
        (tmp_path / "go").touch()
        with api.changed:
            api.answer = None
        run.end()
    assert run.code == 0
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    assert api.jobs[41]["statuses"] == ["pending", "running", "successful"]
    assert len(run.warnings) == 1
    assert "answers 500" in run.warnings[0]


def test_an_api_that_is_away_too_long_gets_a_notice_instead_of_the_output(start, tmp_path):
    playbook = (
        PAUSING % tmp_path + "    - raw: head -c 60000 /dev/zero | tr '\\0' x\n    - debug: {msg: last}\n"
    )
    playbook = playbook.replace("{msg: before}", "{msg: \"{{ 'y' * 30000 }}\"}")
    with StubApi(answer=(503, 0)) as api:
        run = start(api.url, playbook, CARILLON_BUFFER_BYTES="9000")
        api.wait_for(lambda a: a.requests >= 2)
        (tmp_path / "go").touch()
        with api.changed:
            api.answer = None
        run.end()
    assert run.code == 0
    assert api.events[0]["event"] == "verbose"
    assert "dropped here" in api.events[0]["stdout"]
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    assert "last" in api.stdout()
    assert "yyyyy" not in api.stdout()


def test_a_slow_api_does_not_slow_the_run(start, tmp_path):
    """Every answer takes a second; the playbook is through long before the API is."""
    with StubApi(answer=(200, 1.0)) as api:
        (tmp_path / "go").touch()
        run = start(api.url, PAUSING % tmp_path + "    - raw: touch end\n")
        run.end()
    assert run.code == 0
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    assert api.jobs[41]["statuses"][-1] == "successful"
    # Job, running, events, EOF, status: five requests. The end of the run waited for them, its tasks did not.
    assert api.last_request - (run.folder / "end").stat().st_mtime > 1
    assert run.warnings == []


def test_an_api_that_hangs_holds_the_end_no_longer_than_its_deadline(start):
    with StubApi(answer=(200, 60)) as api:
        run = start(api.url, SHORT, CARILLON_FINISH_TIMEOUT="1").end(20)
    assert run.code == 0
    assert "deadline of 1 s" in " ".join(run.warnings)


def test_a_refused_token_is_said_once_and_not_tried_again(start):
    with StubApi() as api:
        run = start(api.url, SHORT, CARILLON_TOKEN="wrong-token").end()
    assert run.code == 0
    assert api.requests == 1
    assert len(run.warnings) == 1
    assert "refuses the token" in run.warnings[0]
    assert "wrong-token" not in run.out + run.err


def test_a_job_that_somebody_canceled_is_left_alone(start, tmp_path):
    with StubApi() as api:
        run = start(api.url, PAUSING % tmp_path)
        api.wait_for(lambda a: len(a.events) >= 3)
        with api.changed:
            api.jobs[41]["statuses"].append("canceled")
        (tmp_path / "go").touch()
        run.end()
    assert run.code == 0
    assert api.jobs[41]["statuses"][-1] == "canceled"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"CARILLON_URL": ""}, "CARILLON_URL is not set"),
        ({"CARILLON_URL": "https://localhost:1", "CARILLON_CA_CERT": "/nonexistent"}, "No such file"),
    ],
)
def test_without_an_address_or_a_token_the_run_is_as_ever(start, environ, words):
    run = start(environ.pop("CARILLON_URL", "http://127.0.0.1:9"), SHORT, **environ).end()
    assert run.code == 0
    assert len(run.warnings) == 1
    assert words in run.warnings[0]


def test_many_hosts_and_forks_arrive_whole(start):
    """Workers are forked while the sender's thread is at work: none may hang, and nothing may be missing."""
    hosts = ",".join(f"h{number}" for number in range(20)) + ","
    playbook = (
        "- hosts: all\n  gather_facts: no\n  strategy: free\n  tasks:\n" + "    - debug: {msg: hi}\n" * 4
    )
    with StubApi() as api:
        run = start(api.url, playbook, "-i", hosts, "-f", "10", CARILLON_FLUSH_INTERVAL="0").end(90)
    assert run.code == 0, run.err
    assert len(named(api, "runner_on_ok")) == 80 + 4
    assert [event["counter"] for event in api.events] == list(range(1, len(api.events) + 1))
    assert len(api.batches) > 5
