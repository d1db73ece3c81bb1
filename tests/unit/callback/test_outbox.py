"""The pure parts of the callback: the bounded outbox, results, output in pieces."""

import itertools
import json

import pytest


def event(stdout="", **more):
    return {"event": "verbose", "stdout": stdout, "event_data": {}, **more}


def taken(outbox, events=1000, size=10**9):
    return [json.loads(text) for text in outbox.take(events, size)]


def test_events_are_numbered_when_they_are_taken(plugin):
    outbox = plugin.Outbox(10**6)
    for text in ("one\n", "", "two\nthree\n", "\n", "no end"):
        outbox.put(event(text))
    first, rest = taken(outbox, events=2), taken(outbox)
    numbers = [(e["counter"], e["start_line"], e["end_line"], e["stdout"]) for e in first + rest]
    assert numbers == [
        (1, 0, 1, "one"),
        (2, 1, 1, ""),
        (3, 1, 3, "two\nthree"),
        (4, 3, 4, ""),
        (5, 4, 5, "no end"),
    ]
    assert len(outbox) == 0
    assert outbox.bytes == 0


def test_a_batch_is_bounded_in_bytes_but_never_empty(plugin):
    outbox = plugin.Outbox(10**6)
    for _ in range(3):
        outbox.put(event("x" * 1000))
    assert len(outbox.take(100, 2500)) == 2
    assert len(outbox.take(100, 10)) == 1


def test_too_much_drops_the_oldest_output_first_and_says_how_much(plugin):
    outbox = plugin.Outbox(20_000)
    for number in range(40):
        outbox.put(event(f"{number} " + "x" * 2000 + "\n", task=f"task {number}"))
    assert outbox.bytes <= 20_000
    notice, *events = taken(outbox)
    assert "bytes of output and results were dropped here" in notice["stdout"]
    assert notice["event_data"]["dropped_bytes"] > 50_000
    assert [e["task"] for e in events] == [f"task {number}" for number in range(40)]  # none is missing
    kept = [bool(e["stdout"]) for e in events]
    assert kept == sorted(kept)  # the newest output is what is kept
    assert any(kept)
    assert [e["counter"] for e in (notice, *events)] == list(range(1, 42))


def test_far_too_much_drops_whole_events_and_leaves_no_gap_in_the_counters(plugin):
    outbox = plugin.Outbox(5_000)
    outbox.put(event("first\n"))
    assert taken(outbox)[0]["counter"] == 1
    for number in range(1000):
        outbox.put(event("x" * 2000, task=f"task {number}"))
    assert outbox.bytes <= 5_000
    assert outbox.dropped_events > 900
    notice, *events = taken(outbox)
    assert notice["event_data"]["dropped_events"] == outbox.dropped_events
    assert len(events) + outbox.dropped_events == 1000
    assert events[-1]["task"] == "task 999"
    assert [e["counter"] for e in (notice, *events)] == list(range(2, len(events) + 3))
    lines = [(e["start_line"], e["end_line"]) for e in (notice, *events)]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(lines))


def test_an_event_larger_than_the_outbox_does_not_hang_it(plugin):
    outbox = plugin.Outbox(10)
    outbox.put(event("x" * 10_000))
    assert len(outbox) == 0
    assert "1 whole events" in taken(outbox)[0]["stdout"]


def test_the_token_is_starred_out_wherever_it_stands(plugin):
    outbox = plugin.Outbox(10**6, secret="s3cret")
    outbox.put(event("a s3cret\n", event_data={"res": {"env": {"CARILLON_TOKEN": "s3cret"}}}))
    (text,) = outbox.take(1, 10**6)
    assert "s3cret" not in text
    assert text.count("********") == 2


@pytest.mark.parametrize("size", [0, 5, 10, 11, 35])
def test_output_is_cut_into_pieces_at_line_ends(plugin, size):
    text = ("abcdefgh\n" * 10)[:size] + "x" * size
    pieces = plugin.split_output(text, 10)
    assert "".join(pieces) == text
    assert pieces
    assert all(len(piece) <= 10 for piece in pieces)


class Copied(str):
    """Counts the characters of its slices."""

    count = 0

    def __getitem__(self, key):
        found = str.__getitem__(self, key)
        Copied.count += len(found)
        return Copied(found)


def test_output_is_copied_once(plugin):
    """Each piece copied all that came behind it: 40 MiB of one task held the run for seconds."""
    assert len(plugin.split_output(Copied("line\n" * 2000), 100)) == 100
    assert Copied.count == 10_000


def test_a_result_carries_no_environment_no_arguments_and_no_bulk(plugin):
    result = {
        "msg": "hello",
        "invocation": {"module_args": {"password": "x"}},
        "ansible_facts": {"ansible_env": {"CARILLON_TOKEN": "x"}},
        "_ansible_parsed": True,
        "results": [{}, {}],
        "stdout": "x" * 100_000,
        "odd": {1, 2},
        "nan": float("nan"),
    }
    trimmed = json.loads(plugin.dump(plugin.trim_result(result)))
    assert trimmed == {
        "msg": "hello",
        "ansible_facts": "1 facts, not sent",
        "results": "2 items, sent as events of their own",
        "stdout": "100002 bytes, not sent",
        "odd": "{1, 2}",
        "nan": "nan",
    }


@pytest.mark.parametrize("name", ["cmd", "content"])
def test_what_was_run_or_read_is_sent_when_it_is_asked_for(plugin, name):
    result = {name: "mysql -ps3cret", "rc": 0}
    assert plugin.trim_result(result) == {"rc": 0}
    assert plugin.trim_result(result, send_content=True) == result


def test_nul_becomes_visible(plugin):
    assert json.loads(plugin.dump({"a\0": ["b\0", "\\u0000"]})) == {"a\ufffd": ["b\ufffd", "\\u0000"]}


def test_a_circle_does_not_hang(plugin):
    circle = {"name": "c"}
    circle["again"] = circle
    assert json.loads(plugin.dump(circle))["again"]["again"]["name"] == "c"


def test_pauses_grow_to_a_bound(plugin):
    assert [plugin.pause_before(n, lambda: 1.0) for n in (0, 1, 2, 50)] == [0.5, 1.0, 2.0, 15.0]
    assert plugin.pause_before(9, lambda: 0.0) == 0


@pytest.mark.parametrize("url", ["", "tower", "ftp://tower", "https://"])
def test_an_address_that_is_none_is_refused(plugin, url):
    with pytest.raises(ValueError, match="no address"):
        plugin.Api(url, "token")


def test_a_password_in_the_address_is_in_no_message(plugin):
    assert plugin.Api("http://me:pw@tower:80/base/", "token").url == "http://tower:80/base"
