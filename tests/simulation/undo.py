"""Mends undone, one at a time: the simulation is to find what they mended.

Each entry names the world that finds it and puts the code as it was before, or with the line left out that
keeps the promise.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest import mock

from asgi_amqp import bindings, connection, mailboxes, outbox, queues, stream
from carillon.events.seen import Seen
from carillon.fanout import core, cursor, hub, log, replay, window
from carillon.relay import core as relay
from carillon.sockets import rights, session
from tests.simulation import browser, path

Undone = Callable[[], AbstractContextManager]
UNDONE: dict[str, tuple[str, Undone]] = {}


def undoes(world: str):
    """Register a context manager in which a mend is undone, under its name in words."""

    def register(function):
        UNDONE[function.__name__.replace("_", " ")] = world, contextlib.contextmanager(function)
        return function

    return register


def patched(where, name: str, value) -> AbstractContextManager:
    return mock.patch.object(where, name, value)


@undoes("layer")
def a_call_that_its_link_ends_cancels_who_waits() -> Iterator[None]:
    async def outcome(self, task):
        return await asyncio.shield(task)

    with patched(connection.Link, "_outcome", outcome):
        yield


@undoes("layer")
def a_group_counts_as_bound_on_a_link_that_is_gone() -> Iterator[None]:
    def down(self):
        self._busy.clear()

    with patched(bindings.Bindings, "down", down):
        yield


@undoes("layer")
def bytes_in_flight_are_not_given_back_when_the_link_is_lost() -> Iterator[None]:
    true = outbox.Outbox.lost

    def lost(self, reason):
        flying = self.flying_bytes
        true(self, reason)
        self.flying_bytes = flying

    with patched(outbox.Outbox, "lost", lost):
        yield


@undoes("layer")
def bytes_that_were_read_stay_counted() -> Iterator[None]:
    with patched(mailboxes.Mailboxes, "release", lambda self, parcel, box: None):
        yield


@undoes("layer")
def what_was_in_flight_is_sent_again() -> Iterator[None]:
    true = outbox.Outbox.lost

    def lost(self, reason):
        gone = list(getattr(self, "_sent", []))
        true(self, reason)
        for batch in gone:
            self._put_back(batch)

    taken = outbox.Outbox.take

    def take(self, now):
        batches = taken(self, now)
        self._sent = [batch for batch in batches if batch.lane is self._plain] or getattr(self, "_sent", [])
        return batches

    with patched(outbox.Outbox, "lost", lost), patched(outbox.Outbox, "take", take):
        yield


# The path


@undoes("path")
def what_the_log_has_is_relayed_again() -> Iterator[None]:
    class Forgetful(Seen):
        def add(self, id):
            super().add(id)
            return True

    with patched(relay, "Seen", Forgetful), patched(hub, "Seen", Forgetful):
        yield


@undoes("path")
def what_was_in_hand_when_the_link_was_lost_counts_as_relayed() -> Iterator[None]:
    with patched(Seen, "discard", lambda self, id: None):
        yield


@undoes("path")
def the_queue_is_emptied_before_the_log_has_it() -> Iterator[None]:
    def done(self):
        tag = 0
        while self._held:
            tag = self._held.popleft().tag
        return tag

    with patched(relay.RelayCore, "done", done):
        yield


@undoes("path")
def a_log_that_lost_its_end_is_read_as_if_it_had_not() -> Iterator[None]:
    true = log.Reading.take

    def take(self, batch):
        return true(self, batch)[0], 0

    with patched(log.Reading, "take", take):
        yield


@undoes("path")
def a_tail_stays_with_its_epoch() -> Iterator[None]:
    with patched(core.TailCore, "over", lambda self, current: not self.epoch):
        yield


@undoes("path")
def the_window_gives_what_it_does_not_have() -> Iterator[None]:
    with patched(window.Window, "covers", lambda self, number: self.start is not None):
        yield


@undoes("path")
def a_replay_begins_too_late() -> Iterator[None]:
    async def locate(link, name, number, guess=None):
        return await stream.end_of(link, name)

    with patched(replay, "locate", locate):
        yield


@undoes("path")
def whose_rights_are_not_known_is_written_to() -> Iterator[None]:
    with patched(cursor.Cursor, "hold", lambda self, at: None):
        yield


@undoes("path")
def an_answer_of_before_the_last_change_counts() -> Iterator[None]:
    def answered(self, socket):
        known = self.doubts(socket)
        self.forget(socket)
        return known

    with patched(rights.Rights, "answered", answered):
        yield


@undoes("path")
def nobody_is_held_while_it_is_asked_about() -> Iterator[None]:
    true = rights.Rights.doubt

    def doubt(self, socket, held_at=None):
        true(self, socket)
        return False

    with patched(rights.Rights, "doubt", doubt):
        yield


@undoes("path")
def what_changes_while_a_client_logs_in_is_not_looked_for() -> Iterator[None]:
    with patched(rights.Rights, "changed_since", lambda self, before, whose: False):
        yield


@undoes("path")
def a_page_forgets_what_it_has_heard() -> Iterator[None]:
    true = browser.Memory.is_new

    def is_new(self, event):
        true(self, event)
        return True

    with patched(path, "MEMORIES", (browser.Memory,)), patched(browser.Memory, "is_new", is_new):
        yield


@undoes("path")
def who_does_not_read_keeps_a_pass_over_the_log() -> Iterator[None]:
    with patched(replay, "LATE", 100.0), patched(replay, "STILL", 100.0):
        yield


@undoes("path")
def a_socket_that_is_being_ended_goes_on_hearing() -> Iterator[None]:
    def end(self, close):
        if self._ending is None and not self.task.done():
            self._ending = close
            self.task.cancel()

    with patched(session.Session, "end", end):
        yield


@undoes("path")
def a_slow_reader_is_written_to_all_the_same() -> Iterator[None]:
    def later(self, size):
        self.put(b"x" * size)

    with patched(hub.Listener, "later", later):
        yield


@undoes("path")
def a_stream_whose_broker_is_down_is_not_gone() -> Iterator[None]:
    with patched(queues, "is_gone", lambda error: True):
        yield
