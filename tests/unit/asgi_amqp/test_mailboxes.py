"""Mailboxes: what has arrived is read once, in order, or is counted as lost."""

from types import SimpleNamespace

import pytest

from asgi_amqp.exceptions import ChannelFull
from asgi_amqp.mailboxes import GRACE, Mailbox, Mailboxes, Parcel

A, B = "specific.cafe!a", "specific.cafe!b"


def gap(reason, count):
    return {"type": "gap", "reason": reason, "count": count}


class Waiter:
    """Someone who waits, as an asyncio.Future does."""

    def __init__(self):
        self.heard = None

    def done(self):
        return self.heard is not None

    def set_result(self, result):
        assert self.heard is None
        self.heard = "woken"

    def set_exception(self, error):
        assert self.heard is None
        self.heard = error

    def cancel(self):
        self.heard = "cancelled"


class Reading:
    """The mailboxes of a process, and short words for what comes and who reads."""

    def __init__(self, capacity=3, buffer_bytes=10_000, overflow="drop-newest", gaps=False):
        self.losses = []
        self.controls = []
        self.now = 100.0
        config = SimpleNamespace(
            capacity=lambda channel: capacity,
            overflow=overflow,
            expiry=60.0,
            group_expiry=1000.0,
            buffer_bytes=buffer_bytes,
            gap=gap if gaps else lambda reason, count: None,
        )
        self.boxes = Mailboxes(config, lambda *loss: self.losses.append(loss), self.controls.append)

    def box(self, channel=A):
        return self.boxes.open(channel, self.now)

    def put(self, *numbers, target=A, size=None):
        """One AMQP message with these events; how many deliveries that made."""
        pairs = [(target, {"n": number}) for number in numbers]
        return self.boxes.deliver(pairs, size if size is not None else 10 * len(pairs), self.now)

    def read(self, channel=A):
        """All that is there."""
        found = []
        while (message := self.box(channel).take(self.now)) is not None:
            found.append(message.get("n", message))
        return found

    def wait(self, channel=A):
        assert self.box(channel).take(self.now) is None
        waiter = Waiter()
        self.box(channel).waiters.append(waiter)
        return waiter

    def join(self, group, *channels):
        return [self.boxes.join(group, channel, self.box(channel)) for channel in channels]


@pytest.fixture
def reading():
    return Reading()


# Reading


def test_messages_are_read_once_in_their_order(reading):
    assert reading.put(1, 2) == 2
    assert reading.put(3) == 1
    assert reading.box().count == 3
    assert reading.read() == [1, 2, 3]
    assert (reading.box().count, reading.boxes.used, reading.losses) == (0, 0, [])
    assert reading.read() == []


def test_messages_for_several_channels_in_one_body_go_to_each(reading):
    pairs = [(A, {"n": 1}), (B, {"n": 2}), (A, {"n": 3}), (A, {"n": 4})]
    assert reading.boxes.deliver(pairs, 80, reading.now) == 4
    assert (reading.read(A), reading.read(B)) == ([1, 3, 4], [2])


def test_a_body_without_events_is_nothing(reading):
    assert reading.boxes.deliver([], 5, reading.now) == 0
    assert reading.boxes.used == 0


def test_what_other_processes_ask_goes_to_who_answers(reading):
    pairs = [("", {"type": "1"}), ("", {"type": "2"}), (A, {"n": 1})]
    assert reading.boxes.deliver(pairs, 30, reading.now) == 1
    assert [message["type"] for message in reading.controls] == ["1", "2"]
    assert reading.read() == [1]


def test_a_group_without_members_gets_nothing(reading):
    assert reading.put(1, target="group") == 0
    assert reading.boxes.used == 0


def test_a_process_without_an_ear_for_others_is_deaf_to_them():
    boxes = Mailboxes(SimpleNamespace(overflow="drop-newest", buffer_bytes=1000), lambda *loss: None)
    assert boxes.deliver([("", {"type": "x"})], 10, 0.0) == 0


# Capacity


def test_a_full_mailbox_takes_no_more(reading):
    reading.put(1, 2)
    reading.put(3, 4, 5)
    reading.put(6, 7)
    assert reading.losses == [("overflow", 2, A), ("overflow", 2, A)]
    assert reading.read() == [1, 2, 3]


def test_a_slow_reader_loses_the_oldest_counted():
    reading = Reading(overflow="drop-oldest")
    for number in range(5):
        reading.put(number)
    assert reading.losses == [("overflow", 1, A)] * 2
    assert reading.read() == [2, 3, 4]
    assert reading.boxes.used == 0


def test_a_burst_larger_than_the_capacity_keeps_its_newest_where_the_oldest_go():
    reading = Reading(overflow="drop-oldest")
    reading.put(1, 2)
    reading.put(*range(3, 9))
    assert reading.losses == [("overflow", 5, A)]
    assert reading.read() == [6, 7, 8]


def test_the_oldest_go_across_the_bodies_they_came_in():
    reading = Reading(capacity=4, overflow="drop-oldest")
    reading.put(1, 2)
    reading.put(3)
    reading.put(4, 5, 6)
    assert reading.losses == [("overflow", 2, A)]
    assert reading.boxes.used == 40  # the first body is gone
    assert reading.read() == [3, 4, 5, 6]


def test_the_oldest_go_from_a_body_that_is_being_read():
    reading = Reading(capacity=4, overflow="drop-oldest")
    reading.put(1, 2, 3)
    assert reading.box().take(reading.now) == {"n": 1}
    reading.put(4, 5, 6)
    assert reading.losses == [("overflow", 1, A)]
    assert reading.read() == [3, 4, 5, 6]


def test_a_reader_that_waits_loses_nothing_of_a_burst(reading):
    waiter = reading.wait()
    reading.now += 1000
    reading.put(*range(10))
    assert waiter.heard == "woken"
    reading.put(*range(10, 20))  # it has not had its turn yet
    assert reading.read() == list(range(20))
    assert not reading.losses


def test_a_reader_that_has_just_read_all_has_a_moment(reading):
    reading.read()
    reading.now += GRACE
    reading.put(*range(10))
    assert not reading.losses
    reading.now += 0.1
    reading.put(10)
    assert reading.losses == [("overflow", 1, A)]
    assert reading.read() == list(range(10))


def test_beyond_the_capacity_only_what_is_new_can_be_lost(reading):
    reading.read()
    reading.put(*range(10))
    reading.now += GRACE + 1
    reading.put(10, 11)
    assert reading.losses == [("overflow", 2, A)]


def test_a_channel_whose_reader_went_away_has_its_capacity(reading):
    waiter = reading.wait()
    waiter.cancel()
    reading.box().forsaken(waiter, woken=False)
    assert not reading.box().waiters
    reading.put(*range(10))
    assert reading.losses == [("overflow", 7, A)]


def test_dropping_the_oldest_of_nothing_gives_nobody_a_moment():
    reading = Reading(overflow="drop-oldest")
    waiter = reading.wait()
    waiter.cancel()
    reading.box().forsaken(waiter, woken=False)
    reading.put(*range(5))
    reading.put(*range(5, 10))
    assert reading.box().count == 3
    assert reading.read() == [7, 8, 9]


@pytest.mark.parametrize("members", [100, 3000])
def test_readers_that_only_wait_lose_nothing(members):
    """A body's bytes are charged once, however many hold it; and who waits has room for a burst."""
    reading = Reading(capacity=100, buffer_bytes=200 * 500)
    channels = [f"specific.cafe!{number}" for number in range(members)]
    reading.join("group", *channels)
    for channel in channels:
        reading.wait(channel)
    for number in range(200):
        reading.put(number, target="group", size=500)
        assert reading.boxes.used == 500 * (number + 1)
    assert all(reading.read(channel) == list(range(200)) for channel in channels)
    assert not reading.losses
    assert reading.boxes.used == 0


def test_capacity_is_exact_for_the_process_itself(reading):
    for _ in range(3):
        reading.box().reserve()
    with pytest.raises(ChannelFull, match=r"specific.cafe!a holds 3 messages"):
        reading.box().reserve()
    reading.put(1, 2)
    assert (reading.box().count, reading.box().arriving) == (2, 1)
    with pytest.raises(ChannelFull):
        reading.box().reserve()
    reading.box().take(reading.now)
    reading.box().reserve()


def test_what_others_sent_takes_no_more_room_than_there_is(reading):
    reading.put(1, 2)
    assert reading.box().arriving == 0


def test_what_was_on_its_way_when_a_link_was_lost_takes_up_no_room(reading):
    for _ in range(3):
        reading.box().reserve()
    reading.boxes.announce("reconnect")
    reading.box().reserve()


# Bytes


def test_bytes_are_bounded_for_all_mailboxes_together():
    reading = Reading(capacity=100, buffer_bytes=25)
    reading.put(1, target=A)
    reading.put(2, target=B)
    assert not reading.losses
    reading.put(3, target=B)
    assert reading.losses == [("overflow", 1, A)]
    assert reading.boxes.used == 20
    assert (reading.read(A), reading.read(B)) == ([], [2, 3])


def test_bytes_that_are_just_as_many_as_allowed_stay():
    reading = Reading(capacity=100, buffer_bytes=30)
    reading.put(1, 2, 3)
    assert reading.boxes.used == 30
    assert not reading.losses


def test_an_empty_mailbox_is_no_way_around_the_bound():
    reading = Reading(buffer_bytes=25)
    reading.put(1, size=26)
    assert reading.losses == [("overflow", 1, A)]
    assert (reading.boxes.used, reading.read()) == (0, [])


def test_the_oldest_goes_wherever_it_is_unread():
    reading = Reading(buffer_bytes=25)
    reading.join("group", A, B)
    reading.put(1, 2, target="group")
    assert reading.box(B).take(reading.now) == {"n": 1}
    reading.put(3, target=A)
    assert reading.losses == [("overflow", 2, A), ("overflow", 1, B)]
    assert (reading.read(A), reading.read(B)) == ([3], [])
    assert reading.boxes.used == 0


def test_a_body_counts_until_the_last_has_read_it(reading):
    reading.join("group", A, B)
    assert reading.put(1, 2, target="group") == 4
    assert reading.boxes.used == 20
    assert reading.read(A) == [1, 2]
    assert reading.boxes.used == 20
    reading.box(B).take(reading.now)
    assert reading.boxes.used == 20
    reading.box(B).take(reading.now)
    reading.box(B).settle()
    assert reading.boxes.used == 0


def test_each_target_of_a_body_has_its_share_of_the_bytes(reading):
    reading.boxes.deliver([(A, {}), (B, {}), (B, {})], 31, reading.now)
    reading.read(A)
    assert reading.boxes.used == 20


# Members


def test_members_of_a_group_have_what_is_nested_each_for_itself(reading):
    reading.join("group", A, B)
    message = {"n": {"list": [1, {"deep": 2}]}}
    reading.boxes.deliver([("group", message)], 10, reading.now)
    mine = reading.box(A).take(reading.now)
    mine["n"]["list"][1]["deep"] = "changed"
    mine["more"] = 1
    assert reading.box(B).take(reading.now) == {"n": {"list": [1, {"deep": 2}]}}


def test_members_of_a_group_have_flat_messages_each_for_itself(reading):
    reading.join("group", A, B)
    reading.put(1, target="group")
    reading.box(A).take(reading.now)["n"] = "changed"
    assert reading.read(B) == [1]


def test_what_one_alone_gets_is_not_copied(reading):
    message = {"n": [1]}
    reading.boxes.deliver([(A, message)], 10, reading.now)
    assert reading.box().take(reading.now) is message


def test_what_follows_a_shared_message_is_not_copied(reading):
    reading.join("group", A, B)
    reading.put(1, target="group")
    message = {"n": [2]}
    reading.boxes.deliver([(A, message)], 10, reading.now)
    reading.box().take(reading.now)
    assert reading.box().take(reading.now) is message


def test_joining_and_leaving(reading):
    assert reading.join("group", A, B, A) == [True, True, False]
    assert not reading.boxes.leave("group", "specific.cafe!other")
    assert not reading.boxes.leave("other", A)
    assert not reading.boxes.leave("group", A)
    assert reading.boxes.leave("group", B)
    assert not reading.boxes.leave("group", B)
    assert reading.boxes.groups == {}
    assert reading.put(1, target="group") == 0


def test_a_member_that_keeps_nothing_costs_no_bytes(reading):
    class Forward:
        got = ()

        def put(self, parcel, messages, now):
            self.got += (*messages, now)

    forward = Forward()
    reading.boxes.join("group", "normal", forward)
    assert reading.put(1, target="group") == 1
    assert forward.got == ({"n": 1}, reading.now)
    assert reading.boxes.used == 0


# Waiting


def test_as_many_wake_as_there_are_messages(reading):
    waiters = [reading.wait() for _ in range(3)]
    reading.put(1, 2)
    assert [waiter.heard for waiter in waiters] == ["woken", "woken", None]


def test_who_went_away_is_not_woken(reading):
    first, second = reading.wait(), reading.wait()
    first.cancel()
    reading.put(1)
    assert (first.heard, second.heard) == ("cancelled", "woken")


def test_who_was_woken_and_went_away_wakes_the_next(reading):
    first, second = reading.wait(), reading.wait()
    reading.put(1)
    reading.box().forsaken(first, woken=True)
    assert second.heard == "woken"
    assert reading.read() == [1]


def test_who_was_woken_for_nothing_wakes_nobody(reading):
    first, second = reading.wait(), reading.wait()
    reading.put(1)
    reading.read()
    reading.box().forsaken(first, woken=True)
    assert second.heard is None


def test_who_was_woken_for_a_gap_and_went_away_wakes_the_next():
    reading = Reading(gaps=True)
    first, second = reading.wait(), reading.wait()
    reading.boxes.announce("reconnect")
    assert (first.heard, second.heard) == ("woken", None)
    reading.box().forsaken(first, woken=True)
    assert second.heard == "woken"


def test_a_reader_that_went_away_leaves_the_others_waiting(reading):
    first, second = reading.wait(), reading.wait()
    first.cancel()
    reading.box().forsaken(first, woken=False)
    assert list(reading.box().waiters) == [second]


def test_a_failure_reaches_everyone_who_waits(reading):
    waiters = [reading.wait() for _ in range(3)]
    waiters[1].cancel()
    error = RuntimeError("over")
    reading.box().fail(error)
    assert list(map(str, [waiter.heard for waiter in waiters])) == ["over", "cancelled", "over"]
    assert waiters[0].heard is not waiters[2].heard  # raised by several, one error would grow
    assert not reading.box().waiters
    reading.put(1)
    assert reading.read() == [1]


def test_a_message_whose_reader_went_away_is_read_first(reading):
    reading.put(1)
    reading.put(2, 3)
    first = reading.box().take(reading.now)
    waiter = Waiter()
    reading.box().waiters.append(waiter)
    reading.box().put_first(first)
    assert waiter.heard == "woken"
    assert reading.box().count == 3
    assert reading.read() == [1, 2, 3]
    assert (reading.box().count, reading.boxes.used) == (0, 0)


def test_a_body_whose_last_message_went_back_is_done_with(reading):
    reading.put(1)
    reading.box().put_first(reading.box().take(reading.now))
    assert (reading.box().count, reading.boxes.used) == (1, 0)


def test_a_message_goes_back_to_a_mailbox_that_was_made_meanwhile(reading):
    reading.box().put_first({"n": 0})
    reading.put(1)
    assert reading.read() == [0, 1]


def test_a_message_of_a_body_that_is_half_read_is_read_first_again(reading):
    reading.put(1, 2)
    reading.box().put_first(reading.box().take(reading.now))
    assert reading.boxes.used == 20
    assert reading.read() == [1, 2]
    assert reading.boxes.used == 0


@pytest.mark.parametrize("numbers", [(1,), (1, 2)])
def test_a_message_that_went_back_is_not_read_without_a_clock(reading, numbers):
    """Its parcel may be gone, and with it the timer that throws away what has expired."""
    reading.put(*numbers)
    box = reading.box()
    box.put_first(box.take(reading.now))
    assert next(box.unread, None) is None
    assert box.take(reading.now) == {"n": 1}
    box.put_first({"n": 1})
    reading.now += 60.0
    reading.boxes.expire(reading.now)
    assert next(box.unread, None) is None
    assert box.take(reading.now) is None


def test_a_message_that_went_back_is_forgotten_with_the_others(reading):
    reading.put(1)
    reading.put(2)
    box = reading.box()
    box.put_first(box.take(reading.now))
    assert (box.count, box.clear(), box.count) == (2, 2, 0)
    assert reading.boxes.used == 0


def test_messages_that_go_back_in_turn_keep_their_order(reading):
    reading.put(1, 2, 3)
    first, second = reading.box().take(reading.now), reading.box().take(reading.now)
    reading.box().put_first(second)
    reading.box().put_first(first)
    assert reading.read() == [1, 2, 3]


def test_what_went_back_still_expires(reading):
    reading.put(1, 2)
    reading.box().put_first(reading.box().take(reading.now))
    reading.now += 60.0
    assert reading.read() == []
    assert sum(count for _, count, _ in reading.losses) == 2


# Gaps


def test_gaps_come_first_and_those_of_one_reason_are_one():
    reading = Reading(gaps=True)
    reading.put(1)
    for reason, count in (("overflow", 2), ("reconnect", None), ("overflow", 3), ("reconnect", None)):
        reading.box().announce(gap(reason, count))
    assert reading.read() == [gap("overflow", 5), gap("reconnect", None), 1]


def test_a_gap_of_unknown_size_stays_one():
    reading = Reading(gaps=True)
    for first, second in ((None, 3), (3, None)):
        reading.box().announce(gap("overflow", first))
        reading.box().announce(gap("overflow", second))
        assert reading.read() == [gap("overflow", None)]


def test_a_gap_wakes_the_reader():
    reading = Reading(gaps=True)
    waiter = reading.wait()
    reading.boxes.announce("reconnect")
    assert waiter.heard == "woken"
    assert reading.read() == [gap("reconnect", None)]


def test_every_channel_hears_of_a_gap_that_may_be_its_own():
    reading = Reading(gaps=True)
    for channel in (A, B):
        reading.box(channel).announce(gap("overflow", 1))
    reading.boxes.announce("overflow")
    assert reading.read(A) == reading.read(B) == [gap("overflow", None)]


def test_who_wants_no_gaps_hears_none(reading):
    waiter = reading.wait()
    reading.boxes.announce("reconnect")
    assert waiter.heard is None
    assert reading.read() == []


def test_an_overflow_is_announced_with_its_number():
    reading = Reading(gaps=True)
    reading.put(1, 2, 3, 4, 5)
    assert reading.read() == [gap("overflow", 2), 1, 2, 3]


def test_nothing_lost_is_nothing_said(reading):
    reading.boxes.lose("overflow", 0, reading.box())
    assert not reading.losses


# Expiry


def test_what_has_expired_is_counted_and_not_given(reading):
    reading.put(1)
    reading.now += 59.0
    reading.put(2)
    reading.now += 1.0
    assert reading.read() == [2]
    assert reading.losses == [("expired", 1, A)]
    assert reading.boxes.used == 0


def test_what_expires_while_its_body_is_read_is_counted(reading):
    reading.put(1, 2, 3)
    assert reading.box().take(reading.now) == {"n": 1}
    reading.now += 60.0
    assert reading.read() == []
    assert reading.losses == [("expired", 2, A)]
    assert reading.box().count == 0


def test_a_sweep_throws_away_what_has_expired(reading):
    reading.put(1, 2, 3)
    assert reading.box().take(reading.now) == {"n": 1}
    reading.now += 59.9
    reading.put(4, target=A)
    reading.boxes.sweep(reading.now)
    assert not reading.losses
    reading.now += 0.1
    assert reading.boxes.sweep(reading.now) == []
    assert reading.losses == [("expired", 2, A)]
    assert (reading.box().count, reading.read()) == (1, [4])


def test_who_reads_without_a_clock_finds_nothing_that_has_expired(reading):
    """What has been begun, too: its reader may have rested in between."""
    reading.join("group", A)
    reading.join("group", B)
    reading.put(1, 2, target="group")
    assert reading.box().take(reading.now) == {"n": 1}
    reading.now += 59.0
    reading.put(3)
    reading.boxes.expire(reading.now)
    assert not reading.losses
    reading.now += 1.0
    reading.boxes.expire(reading.now)
    assert sorted(reading.losses) == [("expired", 1, A), ("expired", 2, B)]
    assert (list(reading.box().unread), reading.read(), reading.read(B)) == ([], [3], [])


def test_a_gap_is_read_before_what_has_been_begun():
    reading = Reading(gaps=True)
    reading.put(1, 2)
    assert reading.box().take(reading.now) == {"n": 1}
    reading.box().announce(gap("reconnect", None))
    assert list(reading.box().unread) == []
    assert reading.read() == [gap("reconnect", None), 2]


def test_what_has_been_begun_can_be_read_without_a_clock(reading):
    reading.put(1, 2)
    assert reading.box().take(reading.now) == {"n": 1}
    assert next(reading.box().unread) == {"n": 2}


def test_what_follows_a_gap_can_be_read_without_a_clock():
    reading = Reading(gaps=True)
    reading.put(1, 2, 3)
    assert reading.box().take(reading.now) == {"n": 1}
    reading.box().announce(gap("reconnect", None))
    assert reading.box().take(reading.now) == gap("reconnect", None)
    assert next(reading.box().unread) == {"n": 2}


def test_channels_that_nobody_reads_are_forgotten_after_the_expiry(reading):
    box = reading.box()
    reading.now += 60.0
    assert reading.boxes.sweep(reading.now) == []
    reading.now += 0.1
    assert reading.boxes.sweep(reading.now) == [box]
    assert reading.boxes.boxes == {}
    assert not reading.losses


def test_channels_that_are_read_stay(reading):
    reading.box()
    reading.now += 50.0
    reading.read()
    reading.now += 50.0
    assert reading.boxes.sweep(reading.now) == []


def test_a_channel_that_somebody_waits_on_is_never_forgotten(reading):
    reading.wait()
    reading.boxes._config.expiry = 0.5  # however short it is
    reading.now += 1e6
    assert reading.boxes.sweep(reading.now) == []


def test_members_of_a_group_are_forgotten_after_the_group_expiry(reading):
    reading.join("group", A)
    reading.now += 1000.0
    reading.put(1, 2)
    assert reading.boxes.sweep(reading.now) == []
    reading.now += 0.1
    assert [box.channel for box in reading.boxes.sweep(reading.now)] == [A]
    assert reading.losses == [("no_receiver", 2, A)]
    assert reading.boxes.used == 0


def test_a_channel_with_unread_messages_is_kept_while_they_live(reading):
    reading.box()
    reading.now += 59.0
    reading.put(1)
    reading.now += 2.0
    assert reading.boxes.sweep(reading.now) == []
    assert reading.read() == [1]


# The end


def test_a_close_reaches_everyone_who_waits_and_forgets_the_rest(reading):
    waiters = [reading.wait(), reading.wait(B)]
    reading.join("group", A)
    box = reading.box()
    reading.put(1, 2, 3)
    error = RuntimeError("closed")
    reading.boxes.close(error)
    assert list(map(str, [waiter.heard for waiter in waiters])) == ["woken", "closed"]
    assert box.closed is error  # for who was woken and comes back for more
    assert (box.take(reading.now), box.count) == (None, 0)
    assert (reading.boxes.used, reading.boxes.boxes, reading.boxes.groups) == (0, {}, {})


def test_clear_forgets_messages_gaps_and_what_was_on_its_way():
    reading = Reading(gaps=True)
    reading.put(1, 2)
    reading.put(3)
    reading.box().take(reading.now)
    reading.box().arriving = 2
    reading.box().announce(gap("reconnect", None))
    assert reading.box().clear() == 2
    assert (reading.box().count, reading.box().arriving, reading.boxes.used) == (0, 0, 0)
    assert reading.read() == []


# A mailbox at another home


class Home:
    drop_oldest = False

    def __init__(self):
        self.released = []
        self.lost = []

    def release(self, parcel, box):
        self.released.append(parcel)

    def lose(self, reason, count, box):
        self.lost.append((reason, count))


def test_what_has_been_begun_is_kept_and_the_rest_given_back():
    home = Home()
    box = Mailbox("jobs", 1 << 62, home, 0.0)
    first, second = Parcel(0, 9.0, None), Parcel(0, 9.0, None)
    box.put(first, [{"n": 1}, {"n": 2}], 0.0)
    box.put(second, [{"n": 3}], 0.0)
    assert box.take(0.0) == {"n": 1}
    assert box.keep_begun() is first
    assert (box.count, home.released) == (1, [])
    assert box.take(0.0) == {"n": 2}
    box.settle()
    assert home.released == [first]
    assert box.take(0.0) is None


def test_what_has_been_read_to_its_end_is_let_go_and_not_kept():
    home = Home()
    box = Mailbox("jobs", 1 << 62, home, 0.0)
    parcel = Parcel(0, 9.0, None)
    box.put(parcel, [{"n": 1}], 0.0)
    assert box.take(0.0) == {"n": 1}
    assert (box.keep_begun(), home.released) == (None, [parcel])


def test_of_what_nobody_has_begun_nothing_is_kept():
    box = Mailbox("jobs", 1 << 62, Home(), 0.0)
    box.put(Parcel(0, 9.0, None), [{"n": 1}], 0.0)
    assert box.keep_begun() is None
    assert (box.count, box.take(0.0)) == (0, None)


def test_a_mailbox_throws_its_expired_messages_away_itself():
    home = Home()
    box = Mailbox("jobs", 1 << 62, home, 0.0)
    box.put(Parcel(0, 9.0, None), [{"n": 1}], 0.0)
    box.put(Parcel(0, 10.0, None), [{"n": 2}], 0.0)
    box.expire(8.9)
    assert not home.lost
    box.expire(9.0)
    assert home.lost == [("expired", 1)]
    box.expire(10.0)
    box.expire(11.0)
    assert (home.lost, box.count) == ([("expired", 1)] * 2, 0)


def test_what_is_shed_is_the_oldest_body_as_a_whole():
    home = Home()
    box = Mailbox("jobs", 1 << 62, home, 0.0)
    for numbers in ((1, 2), (3,)):
        box.put(Parcel(0, 9.0, None), [{"n": number} for number in numbers], 0.0)
    box.shed()
    assert (home.lost, box.count, box.take(0.0)) == ([("overflow", 2)], 1, {"n": 3})


# Faults


def test_a_gap_comes_before_what_is_younger_than_what_expired():
    reading = Reading(gaps=True)
    reading.put(1)
    reading.now += 59.0
    reading.put(2)
    reading.now += 1.0
    assert reading.read() == [gap("expired", 1), 2]


def test_who_finds_that_all_has_expired_hears_it_at_once():
    """It would wait, with the gap unread, until something else comes."""
    reading = Reading(gaps=True)
    reading.put(1, 2)
    reading.now += 60.0
    assert reading.box().take(reading.now) == gap("expired", 2)
    assert reading.box().take(reading.now) is None


def test_a_reader_that_was_woken_and_has_not_had_its_turn_keeps_its_mailbox():
    """It would wait on a mailbox that nothing comes to any more: deaf for good."""
    reading = Reading(gaps=True)
    waiter = reading.wait()
    reading.now += 1001.0  # it has waited for longer than any expiry
    reading.boxes.announce("reconnect")
    assert waiter.heard == "woken"
    assert reading.boxes.sweep(reading.now) == []
    assert reading.read() == [gap("reconnect", None)]


def test_a_second_reader_that_goes_away_takes_no_turn_from_the_first(reading):
    first, second = reading.wait(), reading.wait()
    reading.put(1)
    assert first.heard == "woken"
    second.cancel()
    reading.box().forsaken(second, woken=False)
    reading.put(*range(2, 9))  # the first has not had its turn yet
    assert not reading.losses
    assert reading.read() == list(range(1, 9))


def test_a_message_whose_reader_went_away_is_kept_with_what_has_been_begun():
    """Its body is acknowledged: given back to nobody, it would be lost."""
    home = Home()
    box = Mailbox("jobs", 1 << 62, home, 0.0)
    first, second, third = (Parcel(0, 9.0, None) for _ in range(3))
    box.put(first, [{"n": 1}], 0.0)
    box.put(second, [{"n": 2}], 0.0)
    taken = box.take(0.0)
    box.settle()
    assert home.released == [first]
    box.put_first(taken)
    assert box.keep_begun() not in (first, second)
    assert (box.count, box.take(0.0), box.take(0.0)) == (1, {"n": 1}, None)
    box.put(third, [{"n": 3}, {"n": 4}], 0.0)
    box.put_first(box.take(0.0))
    assert box.keep_begun() is third
    assert [box.take(0.0), box.take(0.0), box.take(0.0)] == [{"n": 3}, {"n": 4}, None]


def test_a_message_whose_reader_went_away_is_kept_when_the_others_come_again():
    """The broker does not have it any more."""
    home = Home()
    box = Mailbox("jobs", 1 << 62, home, 0.0)
    for number, count in ((1, 1), (2, 1), (3, 2), (5, 1)):
        box.put(Parcel(0, 9.0 + number, None), [{"n": number + each} for each in range(count)], 0.0)
    taken = [box.take(0.0) for _ in range(3)]
    for message in reversed(taken[:2]):
        box.put_first(message)
    assert box.count == 4
    box.keep_returned()
    assert (box.count, len(home.released)) == (2, 4)
    box.put(Parcel(0, 20.0, None), [{"n": 3}, {"n": 4}], 0.0)
    assert [box.take(0.0)["n"] for _ in range(4)] == [1, 2, 3, 4]
    box.keep_returned()
    assert box.count == 0


def test_what_was_returned_and_read_or_dropped_since_is_not_kept():
    box = Mailbox("jobs", 1 << 62, Home(), 0.0)
    box.put(Parcel(0, 9.0, None), [{"n": 1}, {"n": 2}, {"n": 3}], 0.0)
    box.put_first(box.take(0.0))
    assert box.take(0.0) == {"n": 1}
    box.keep_returned()
    assert box.count == 0
    box.put(Parcel(0, 9.0, None), [{"n": 1}, {"n": 2}, {"n": 3}], 0.0)
    box.put_first(box.take(0.0))
    box._drop(1)
    box.keep_returned()
    assert box.count == 0


def test_a_message_that_was_kept_expires_when_it_would_have():
    box = Mailbox("jobs", 1 << 62, Home(), 0.0)
    box.put(Parcel(0, 9.0, None), [{"n": 1}], 0.0)
    box.put(Parcel(0, 99.0, None), [{"n": 2}], 0.0)
    box.put_first(box.take(0.0))
    box.keep_returned()
    assert box.take(10.0) is None


def test_one_of_several_readers_that_were_woken_goes_away_and_the_others_lose_nothing(reading):
    first, second = reading.wait(), reading.wait()
    reading.put(1, 2)
    assert (first.heard, second.heard) == ("woken", "woken")
    reading.box().forsaken(first, woken=True)
    reading.put(*range(3, 9))
    reading.box().turn()
    assert reading.box().take(reading.now) == {"n": 1}  # the second has its turn
    assert not reading.losses
    reading.put(9)
    assert reading.losses == [("overflow", 1, A)]


def test_what_has_been_read_is_let_go_before_anything_unread_is_thrown_away():
    reading = Reading(capacity=100, buffer_bytes=25)
    reading.put(1)
    reading.put(2)
    assert reading.box().take(reading.now) == {"n": 1}
    reading.put(3)
    assert not reading.losses
    assert reading.read() == [2, 3]
