"""The judge of composed chaos must be right, and a seed must say everything."""

import itertools
import json

import pytest

from tests.chaos import report
from tests.chaos.composed.checker import check
from tests.chaos.composed.schedule import BEGIN_WITHIN, BROKERS, CLOSELY, KINDS, schedule
from tests.chaos.composed.stage import judged

TOLD = "told"
NUMBERS = (
    "seen", "lost", "unseen", "told", "doubled", "disordered", "unknown", "announcements", "for_nothing",
)  # fmt: skip


def records(heard, confirmed=None, client="c"):
    """What one client heard: numbers of publisher p, pairs, or TOLD."""
    yield from (
        {"publisher": publisher, "confirmed": [0, count - 1]}
        for publisher, count in (confirmed or {"p": 4}).items()
    )
    yield {"client": client, "connected": True}
    for each in heard:
        if each == TOLD:
            yield {"client": client, "told": "retention"}
        else:
            yield {"client": client, "saw": list(each) if isinstance(each, tuple) else ["p", each]}


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ([0, 1, 2, 3], {"seen": 4}),
        ([0, 1, 1, 2, 3], {"seen": 4, "doubled": 1}),
        ([0, 2, 3], {"seen": 3, "lost": 1}),
        ([0, TOLD, 2, 3], {"seen": 3, "told": 1, "announcements": 1}),
        ([0, TOLD, 1, 2, 3], {"seen": 4, "announcements": 1, "for_nothing": 1}),
        ([0, TOLD, 1, 3], {"seen": 3, "lost": 1, "announcements": 1, "for_nothing": 1}),
        ([0, 2, 1, 3], {"seen": 4, "disordered": 1}),
        ([0, TOLD, 2, 1, 3], {"seen": 4, "disordered": 1, "announcements": 1}),
        ([0, 1], {"seen": 2, "unseen": 2}),
        ([0, 1, TOLD], {"seen": 2, "told": 2, "announcements": 1}),
        ([], {"unseen": 4}),
        ([0, 1, 2, 3, ("q", 0)], {"seen": 4, "unknown": 1}),
        ([0, 1, 2, 3, 4], {"seen": 5}),
    ],
)
def test_an_account(heard, expected):
    (account,) = check(records(heard)).accounts
    assert {name: getattr(account, name) for name in NUMBERS} == {**dict.fromkeys(NUMBERS, 0), **expected}
    assert bool(account.cases) == bool(account.wrong)
    assert account.connects == 1


def test_an_announcement_excuses_each_publisher_once():
    confirmed = {"p": 3, "q": 3}
    heard = [("p", 0), ("q", 0), TOLD, ("p", 2), ("q", 2)]
    assert check(records(heard, confirmed)).accounts[0].told == 2
    heard = [("p", 0), TOLD, ("p", 1), ("q", 0), ("q", 2)]
    (account,) = check(records(heard, confirmed)).accounts
    assert (account.lost, account.unseen, account.told) == (1, 1, 0)


def test_two_clients_hear_the_same_order():
    confirmed = {"p": 1, "q": 1}
    one = list(records([("p", 0), ("q", 0)], confirmed, "one"))
    other = list(records([("q", 0), ("p", 0)], confirmed, "other"))[2:]
    verdict = check([*one, *other])
    assert verdict.sum("disordered") == 1
    assert verdict.sum("wrong") == 1


def test_a_publisher_confirms_in_its_order():
    with pytest.raises(ValueError, match="p confirms 3 after 2 events"):
        check([{"publisher": "p", "confirmed": [0, 1]}, {"publisher": "p", "confirmed": [3, 4]}])


SEEDS = range(500)


def test_a_seed_says_everything():
    assert [schedule(seed) for seed in SEEDS] == [schedule(seed) for seed in SEEDS]
    assert len({schedule(seed).faults for seed in SEEDS}) == len(SEEDS)
    found = {kind for seed in SEEDS for kind in schedule(seed).kinds}
    assert found == {kind.__name__ for kind in KINDS}


def test_faults_compose():
    for each in map(schedule, SEEDS):
        faults = each.faults
        assert len(faults) >= 2, each
        for before, after in itertools.pairwise(faults):
            assert before.at <= after.at, each
        for number, fault in enumerate(faults[1:], 1):
            assert fault.at <= max(before.end for before in faults[:number]) + CLOSELY + 0.1, each
        assert max(fault.end for fault in faults) <= BEGIN_WITHIN + 5, each
        once = [name for fault in faults if fault.kind not in ("partition", "line") for name in fault.on]
        assert len(once) == len(set(once)), f"{each}: how is it seen that the second takes effect?"
        assert all(set(fault.on) <= set(BROKERS) for fault in faults if fault.kind == "power"), each
        assert len(each.words()) == len(faults), each


def test_who_may_be_told_that_something_is_missing():
    with_power = next(each for each in map(schedule, SEEDS) if each.may_lose_the_log)
    without = next(each for each in map(schedule, SEEDS) if not each.may_lose_the_log)
    missed = check(records([0, TOLD, 2, 3], client="v2"))
    assert judged(missed, with_power) == []
    assert judged(missed, without) == ["v2: told 1 times that something is missing"]
    heard_all = check(records([0, TOLD, 1, 2, 3], client="v2"))
    assert judged(heard_all, with_power) == ["v2: told 1 times for nothing"]
    assert judged(check(records([0, TOLD, 1, 2, 3], client="v1")), without) == []
    assert judged(check(records([0, 2, 3], client="v1")), with_power) == [
        "v1: p 1 to 1: 1 lost, nothing was said"
    ]


def test_the_page_has_the_newest_of_each_seed_and_all_seeds(tmp_path):
    numbers = ("confirmed", "heard", "doubled", "disordered", "lost", "unseen", "told")
    row = {
        **dict.fromkeys(numbers, 0), "told for nothing": 0, "longest publish, s": 0, "level after, s": 0,
    }  # fmt: skip
    rows = [
        {"composed": 0, "faults": ["kill", "pause"], **row, "confirmed": 10, "lost": 7, "failures": ["x"]},
        {"composed": 0, "faults": ["kill", "pause"], **row, "confirmed": 20},
        {"composed": 1, "faults": ["kill"], **row, "confirmed": 5},
        {"composed": 3, "faults": ["kill"], **row, "lost": 1, "failures": ["y"]},
        {"composed": 4, "faults": ["disk"], "void": "it is not slow"},
    ]
    lines, page = tmp_path / "record.jsonl", tmp_path / "page.md"
    lines.write_text("".join(json.dumps(each) + "\n" for each in rows))
    page.write_text(f"before\n{report.COMPOSED[0]}\noutdated\n{report.COMPOSED[1]}\nafter\n")
    report.main(str(lines), str(page))
    text = page.read_text()
    assert "| kill | 3 | 25 | 0 | 0 | 0 | 1 |" in text
    assert "| pause | 1 | 20 |" in text
    assert "| all | 3 | 25 |" in text
    assert "Seeds that were played: 0-1, 3. Failed: 3. Void, since a fault took no effect: 4." in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "outdated" not in text
