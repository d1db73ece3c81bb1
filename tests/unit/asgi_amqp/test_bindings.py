"""Bindings: what is wanted becomes what is bound, one operation on a group at a time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asgi_amqp.bindings import LINGER, TOGETHER, Bindings
from tests.unit.asgi_amqp.properties import SETTINGS

NEVER = float("inf")
AT_ONCE = float("-inf")


def connected(*groups, now=0.0):
    bindings = Bindings()
    bindings.up(list(groups), now)
    return bindings


def bound(*groups):
    """Bindings with members in these groups, which are bound."""
    bindings = connected()
    for group in groups:
        bindings.want(group)
    bindings.start(0.0)
    for group in groups:
        bindings.finished(group, 0.0, bound=True)
    return bindings


def test_a_group_that_gets_a_member_is_bound_once():
    bindings = connected()
    assert bindings.due == NEVER
    bindings.want("a")
    bindings.want("a")
    assert bindings.due == AT_ONCE
    assert bindings.start(0.0) == (["a"], [])
    assert bindings.bound == set()
    bindings.want("a")  # under way
    assert bindings.due == NEVER
    assert bindings.start(0.0) == ([], [])
    bindings.finished("a", 0.0, bound=True)
    assert bindings.bound == {"a"}
    bindings.want("a")
    assert bindings.start(0.0) == ([], [])


def test_groups_are_bound_in_the_order_in_which_they_were_joined():
    bindings = connected()
    for group in "cab":
        bindings.want(group)
    assert bindings.start(0.0) == (["c", "a", "b"], [])


def test_a_group_stays_bound_for_a_while_after_its_last_member():
    bindings = bound("a")
    bindings.unwant("a", 10.0)
    assert bindings.due == 10.0 + LINGER
    assert bindings.start(10.0 + LINGER - 0.1) == ([], [])
    assert bindings.bound == {"a"}
    assert bindings.start(10.0 + LINGER) == ([], ["a"])
    assert bindings.bound == set()
    bindings.finished("a", 16.0, bound=False)
    assert (bindings.bound, bindings.due) == (set(), NEVER)


def test_who_comes_back_after_the_group_was_unbound_is_bound_again():
    bindings = bound("a")
    bindings.unwant("a", 0.0)
    assert bindings.start(LINGER) == ([], ["a"])
    bindings.finished("a", LINGER, bound=False)
    bindings.want("a")
    assert bindings.start(LINGER) == (["a"], [])
    bindings.finished("a", LINGER, bound=True)
    assert bindings.bound == {"a"}


def test_so_many_are_unbound_at_once_and_the_others_in_their_turn():
    groups = [str(number) for number in range(TOGETHER + 1)]
    bindings = bound(*groups)
    for group in groups:
        bindings.unwant(group, 0.0)
    assert bindings.start(LINGER) == ([], groups[:TOGETHER])
    assert bindings.bound == {groups[-1]}
    assert bindings.due == LINGER
    assert bindings.start(LINGER) == ([], groups[TOGETHER:])


def test_who_joins_meanwhile_costs_nothing():
    bindings = bound("a")
    bindings.unwant("a", 0.0)
    bindings.want("a")
    assert bindings.due == NEVER
    assert bindings.start(100.0) == ([], [])
    assert bindings.bound == {"a"}


def test_the_first_of_those_that_linger_is_due_first():
    bindings = bound("a", "b")
    bindings.unwant("b", 2.0)
    bindings.unwant("a", 1.0)
    assert bindings.due == 1.0 + LINGER
    assert bindings.start(1.0 + LINGER) == ([], ["a"])
    assert bindings.due == 2.0 + LINGER


def test_who_joins_while_the_group_is_unbound_is_bound_again():
    """Else it would be deaf for good."""
    bindings = bound("a")
    bindings.unwant("a", 0.0)
    assert bindings.start(LINGER) == ([], ["a"])
    bindings.want("a")
    assert bindings.bound == set()  # it must wait
    assert bindings.start(LINGER) == ([], [])
    bindings.finished("a", LINGER, bound=False)
    assert bindings.due == AT_ONCE
    assert bindings.start(LINGER) == (["a"], [])
    bindings.finished("a", LINGER, bound=True)
    assert (bindings.bound, bindings.due) == ({"a"}, NEVER)


def test_who_leaves_while_the_group_is_bound_has_it_unbound_later():
    bindings = connected()
    bindings.want("a")
    bindings.start(0.0)
    bindings.unwant("a", 1.0)
    assert bindings.due == NEVER
    bindings.finished("a", 2.0, bound=True)
    assert (bindings.bound, bindings.due) == ({"a"}, 2.0 + LINGER)
    assert bindings.start(2.0 + LINGER) == ([], ["a"])


def test_who_joins_and_leaves_before_anything_began_leaves_nothing_to_do():
    bindings = connected()
    bindings.want("a")
    bindings.unwant("a", 0.0)
    assert bindings.due == NEVER
    assert bindings.start(100.0) == ([], [])


def test_without_a_link_nothing_begins():
    bindings = Bindings()
    bindings.want("a")
    assert bindings.due == NEVER
    assert bindings.start(0.0) == ([], [])
    bindings.up([], 0.0)
    assert bindings.due == AT_ONCE
    assert bindings.start(0.0) == (["a"], [])


def test_a_link_that_is_lost_takes_everything_with_it():
    bindings = bound("a", "b")
    bindings.want("c")
    bindings.start(0.0)  # c is under way
    bindings.unwant("b", 0.0)
    bindings.down()
    assert (bindings.bound, bindings.due) == (set(), NEVER)
    assert bindings.start(100.0) == ([], [])
    bindings.finished("c", 0.0, bound=True)  # of the link that is gone
    assert bindings.bound == set()
    bindings.up([], 1.0)
    bind, unbind = bindings.start(100.0)
    assert (sorted(bind), unbind) == (["a", "c"], [])


def test_a_new_link_has_what_its_setup_bound():
    bindings = bound("a", "b")
    bindings.unwant("b", 0.0)
    bindings.want("d")
    bindings.up(["a", "b", "c"], 7.0)
    assert bindings.bound == {"a", "b", "c"}
    assert bindings.start(7.0) == (["d"], [])
    assert bindings.due == 7.0 + LINGER
    bind, unbind = bindings.start(7.0 + LINGER)
    assert (bind, sorted(unbind)) == ([], ["b", "c"])


def test_a_new_link_forgets_what_lingered_on_the_one_before():
    bindings = bound("a", "b")
    bindings.unwant("a", 0.0)
    bindings.up(["b"], 1.0)
    assert bindings.due == NEVER
    bindings.finished("a", 1.0, bound=True)
    assert bindings.bound == {"b"}


def test_what_was_under_way_on_a_link_that_is_gone_can_begin_on_the_next():
    bindings = connected()
    bindings.want("a")
    bindings.start(0.0)
    bindings.down()
    bindings.up([], 0.0)
    assert bindings.start(0.0) == (["a"], [])
    bindings.unwant("a", 0.0)
    bindings.finished("a", 0.0, bound=True)
    bindings.want("a")
    assert bindings.bound == {"a"}


def test_leaving_a_group_that_nobody_joined_changes_nothing():
    bindings = connected()
    bindings.unwant("a", 0.0)
    assert bindings.due == NEVER


GROUPS = st.sampled_from("abc")


class Machine(RuleBasedStateMachine):
    """Members come and go, links too; the broker's bindings are what its operations made them."""

    def __init__(self):
        super().__init__()
        self.bindings = Bindings()
        self.now = 0.0
        self.wanted = set()
        self.up = False
        self.broker = set()
        self.under_way = []  # (group, whether it binds)

    @rule(group=GROUPS)
    def want(self, group):
        self.wanted.add(group)
        self.bindings.want(group)

    @rule(group=GROUPS)
    def unwant(self, group):
        self.wanted.discard(group)
        self.bindings.unwant(group, self.now)

    @rule(groups=st.none() | st.sets(GROUPS))
    def link_up(self, groups):
        """The setup of a link binds what has members, as far as it was known when it began."""
        self.broker = set(self.wanted if groups is None else groups)
        self.up = True
        self.under_way.clear()
        self.bindings.up(sorted(self.broker), self.now)

    @rule()
    def link_down(self):
        self.up = False
        self.under_way.clear()
        self.broker.clear()
        self.bindings.down()

    @rule(seconds=st.sampled_from([0.0, 1.0, LINGER, 2 * LINGER]))
    def start(self, seconds):
        self.now += seconds
        due = self.bindings.due
        bind, unbind = self.bindings.start(self.now)
        assert bool(bind or unbind) == (due <= self.now)
        assert self.up or not (bind or unbind)
        assert set(bind) <= self.wanted
        assert not set(unbind) & self.wanted
        busy = {group for group, _ in self.under_way}
        assert not busy & {*bind, *unbind}, "one operation on a group at a time"
        assert len({*bind, *unbind}) == len(bind) + len(unbind)
        self.under_way += [(group, True) for group in bind] + [(group, False) for group in unbind]

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def finish(self, data):
        group, binds = data.draw(st.sampled_from(self.under_way))
        self.under_way.remove((group, binds))
        self.broker.add(group) if binds else self.broker.discard(group)
        self.bindings.finished(group, self.now, bound=binds)

    @invariant()
    def what_it_says_is_bound_is_bound(self):
        assert self.bindings.bound <= self.broker
        assert self.bindings.bound == self.broker - {group for group, _ in self.under_way}

    def teardown(self):
        """When all is quiet, wanted and bound agree."""
        if not self.up:
            self.link_up(None)
        for _ in range(10):
            self.start(2 * LINGER)
            for group, binds in list(self.under_way):
                self.under_way.remove((group, binds))
                self.broker.add(group) if binds else self.broker.discard(group)
                self.bindings.finished(group, self.now, bound=binds)
        assert self.bindings.bound == self.broker == self.wanted
        assert self.bindings.due == NEVER


TestBindings = Machine.TestCase
TestBindings.settings = SETTINGS
