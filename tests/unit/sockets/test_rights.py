"""The machine of rights: who is asked about, what an answer is worth, and that nobody is held for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from carillon.sockets.rights import CHANGES, MOST, PATIENCE, Rights


def test_many_changes_are_one_question():
    rights = Rights()
    assert rights.doubt("a", 1.0)
    assert not any(rights.doubt("a", 1.0 + n) for n in range(50)), "it is held already"
    assert rights.ask() == ["a"]
    assert rights.ask() == [], "asked once at a time"
    assert rights.answered("a")
    assert not rights.waiting
    assert rights.doubt("a", 2.0)


def test_who_is_held_is_counted():
    rights = Rights()
    assert rights.held == 0
    for socket, since in (("a", 1.0), ("b", 2.0), ("c", None)):
        rights.doubt(socket, since)
    assert rights.held == 2, "the third is only looked at"


def test_an_answer_of_before_the_last_change_is_none():
    rights = Rights()
    rights.doubt("a", 1.0)
    assert rights.ask() == ["a"]
    rights.doubt("a", 1.1)
    rights.doubt("a", 1.2)
    assert not rights.answered("a")
    assert rights.holds("a")
    assert rights.ask() == ["a"]
    assert rights.answered("a")
    assert not rights.holds("a")
    assert not rights.answered("a"), "nobody asked"


def test_a_change_during_a_look_holds():
    rights = Rights()
    assert not rights.doubt("a")
    assert rights.ask() == ["a"]
    assert not rights.holds("a")
    assert rights.doubt("a", 3.0)
    assert rights.holds("a")
    assert not rights.answered("a")
    assert rights.ask() == ["a"]


def test_all_that_wait_are_asked_about_together():
    rights = Rights()
    for number in range(MOST + 5):
        rights.doubt(number, 0.0)
    assert rights.ask() == list(range(MOST))
    assert rights.ask() == list(range(MOST, MOST + 5))


def test_who_is_gone_is_not_asked_about():
    rights = Rights()
    for each in "ab":
        rights.doubt(each, 0.0)
    rights.forget("a")
    assert rights.ask() == ["b"]
    rights.forget("b")
    assert not rights.answered("b")
    assert rights.overdue(10**6) == []


def test_who_is_held_too_long_is_named():
    rights = Rights()
    rights.doubt("a", 100.0)
    rights.doubt("b")
    rights.ask()
    rights.doubt("a", 105.0)
    assert rights.overdue(99.0 + PATIENCE) == []
    assert rights.overdue(100.0 + PATIENCE) == ["a"]


def test_what_has_changed_since():
    rights = Rights()
    before = rights.changes
    assert not rights.changed_since(before, (1, "jobs-summary"))
    rights.changed((1,))
    assert rights.changed_since(before, (1,))
    assert not rights.changed_since(rights.changes, (1,))
    assert not rights.changed_since(before, (2, "jobs-summary"))
    rights.changed(("jobs-summary",))
    assert rights.changed_since(before, (2, "jobs-summary"))
    now = rights.changes
    rights.unknown()
    assert rights.changed_since(now, ())
    assert not rights.changed_since(rights.changes, ())


def test_what_is_forgotten_may_have_been_just_now():
    rights = Rights()
    before = rights.changes
    for user in range(CHANGES + 2):
        rights.changed((user,))
    assert rights.changed_since(before, ("somebody",))
    assert not rights.changed_since(rights.changes - 1, ("somebody",))


def test_so_many_changes_are_remembered_and_the_newest_of_each():
    rights = Rights()
    for user in range(CHANGES):
        rights.changed((user,))
    assert not rights.changed_since(0, ("somebody",)), "nothing is forgotten yet"
    rights.changed((0,))
    assert not rights.changed_since(0, ("somebody",)), "it was among them"
    rights.changed(("one more",))
    assert rights.changed_since(1, ("somebody",))
    assert not rights.changed_since(2, ("somebody",)), "user 1 is forgotten, whose change was the second"
    assert rights.changed_since(CHANGES, (0,))
    assert not rights.changed_since(CHANGES + 1, (0,))


def test_who_is_in_question():
    rights = Rights()
    assert (rights.waiting, rights.doubts("a"), rights.holds("a")) == (False, False, False)
    rights.doubt("a")
    assert (rights.waiting, rights.doubts("a"), rights.doubts("b"), rights.holds("a")) == (
        True, True, False, False,
    )  # fmt: skip
    assert rights.doubt("a", 0.0)
    assert rights.holds("a"), "also at the time 0"
    rights.ask()
    assert rights.answered("a")
    assert (rights.waiting, rights.doubts("a"), rights.holds("a")) == (False, False, False)


STEPS = st.one_of(
    st.tuples(st.sampled_from(["change", "look", "leave"]), st.integers(0, 4)),
    st.tuples(st.just("ask"), st.just(0)),
    st.tuples(st.just("answer"), st.integers(0, 4)),
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=60))
def test_no_stale_answer_and_nobody_forgotten(steps):
    rights = Rights()
    truth = dict.fromkeys(range(5), 0)  # what the database would answer
    knows = dict(truth)  # what the socket goes by
    held: set[int] = set()
    flying: dict[int, int] = {}  # what it will answer
    for what, socket in steps:
        if what == "change":
            truth[socket] += 1
            if rights.doubt(socket, 0.0):
                held.add(socket)
        elif what == "look":
            rights.doubt(socket)
        elif what == "leave":
            rights.forget(socket)
            held.discard(socket)
            flying.pop(socket, None)
            knows[socket] = truth[socket]
        elif what == "ask":
            for each in rights.ask():
                assert each not in flying
                flying[each] = truth[each]
        elif socket in flying:
            answer = flying.pop(socket)
            if rights.answered(socket):
                knows[socket] = answer
                held.discard(socket)
        for each in range(5):
            assert each in held or knows[each] == truth[each], "it goes by what was so before"
            assert rights.holds(each) == (each in held)
    for _ in range(2):
        for each in rights.ask():
            flying[each] = truth[each]
        for each in list(flying):
            del flying[each]
            if rights.answered(each):
                held.discard(each)
    assert not held, "held for ever"
    assert not rights.waiting
