"""Messages that have arrived in this process and wait for their readers. Pure: the clock is told.

A mailbox belongs to one process-local channel. What comes together for one target is a parcel: its bytes (as
they were on the wire) count once, however many mailboxes hold it, from its arrival until the last of them has
read it. When all parcels together are over their limit, the oldest goes, wherever it is unread.

A channel that holds `capacity` unread messages takes no more. But a reader that waits loses nothing: until it
has had its turn, and GRACE seconds after it last had nothing to read, a burst is kept beyond the capacity.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from itertools import groupby, islice, takewhile
from operator import itemgetter, length_hint
from typing import Protocol

from .codec import Message, copier
from .config import Config
from .exceptions import ChannelFull

GRACE = 2.0


class Waiter(Protocol):
    """Someone who waits for a message: an asyncio.Future is one."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...
    def set_exception(self, error: Exception, /) -> None: ...


class Parcel:
    """Messages that arrived together; the mailboxes that hold unread ones of them."""

    __slots__ = ("copy", "expires", "holders", "size")

    def __init__(self, size: int, expires: float, copy: Callable[[Message], Message] | None) -> None:
        self.size = size
        self.expires = expires
        self.copy = copy  # for each reader, where there are several
        self.holders: dict[Mailbox, None] = {}


class Member(Protocol):
    """What a group hands its messages to."""

    def put(self, parcel: Parcel, messages: list[Message], now: float) -> None: ...


class Home(Protocol):
    """What a mailbox belongs to."""

    drop_oldest: bool

    def lose(self, reason: str, count: int, box: "Mailbox") -> None: ...
    def release(self, parcel: Parcel, box: "Mailbox") -> None: ...


class Mailbox:
    """The unread messages of one channel: those of the parcel that is being read, then whole parcels."""

    __slots__ = (
        "_expires", "_parcel", "_pending", "_reading", "_waiting", "arriving", "capacity", "channel",
        "closed", "copy", "gaps", "home", "level_at", "read_at", "returned", "unread", "waiters", "woken",
    )  # fmt: skip

    def __init__(self, channel: str, capacity: int, home: Home, now: float) -> None:
        self.channel = channel
        self.capacity = capacity
        self.home = home
        self.closed: Exception | None = None
        self.arriving = 0  # sent by this very process and not back yet: they count for ChannelFull
        self.gaps: dict[str, Message] = {}  # by reason, to be read before the messages
        self.waiters: deque[Waiter] = deque()
        self.read_at = now  # when it was last read: what nobody reads is swept away
        self.level_at = float("-inf")  # when its reader last had nothing to read
        self.woken = 0  # readers that waited and have not had their turn yet
        self._waiting: deque[tuple[Parcel, list[Message]]] = deque()
        self._pending = 0  # messages in _waiting
        self._parcel: Parcel | None = None  # the one that is being read,
        self._reading: Iterator[Message] = iter(())  # and what is left of it
        self._expires = float("inf")
        self.returned = 0  # messages in _reading, the first ones, whose readers went away
        # For who reads without looking at the clock: the same, while nothing is to be said before it. `copy`
        # is how the reader gets a message for itself.
        self.unread = self._reading
        self.copy: Callable[[Message], Message] | None = None

    @property
    def count(self) -> int:
        """Unread messages."""
        return self._pending + length_hint(self._reading)

    def reserve(self) -> None:
        """A message of this very process is on its way. ChannelFull where there will be no room for it."""
        if self.count + self.arriving >= self.capacity:
            raise ChannelFull(f"channel {self.channel} holds {self.capacity} messages that nobody has read")
        self.arriving += 1

    def put(self, parcel: Parcel, messages: list[Message], now: float) -> None:
        """Messages that arrived together, oldest first."""
        excess = self.count + len(messages) - self.capacity
        if excess > 0 and not self.waiters and not self.woken and now - self.level_at > GRACE:
            if self.home.drop_oldest:
                lost = self._drop(excess) + max(0, len(messages) - self.capacity)
                messages = messages[-self.capacity :]
            else:
                lost = min(excess, len(messages))
                messages = messages[: len(messages) - lost]
            self.home.lose("overflow", lost, self)
        if messages:
            parcel.holders[self] = None
            self._waiting.append((parcel, messages))
            self._pending += len(messages)
            if self.waiters:
                self.wake(len(messages))

    def take(self, now: float) -> Message | None:
        """The oldest message that has not expired, for the reader to keep and change; before it, what is said
        of those that are missing.
        """
        if self.gaps:
            gap = self.gaps.pop(next(iter(self.gaps)))
            self._go_on()
            return gap
        while True:
            for message in self._reading:
                if self._expires > now:
                    self.returned -= self.returned > 0
                    return message if self.copy is None else self.copy(message)
                self.home.lose("expired", 1 + self._drop_parcel(), self)
                if self.gaps:  # it has just become one
                    return self.take(now)
            if not self._begin(now):
                return None

    def _begin(self, now: float) -> bool:
        """Go on with the next parcel, if there is one."""
        self.read_at = now
        self.settle()
        if not self._waiting:
            self.level_at = now
            return False
        self._parcel, messages = self._waiting.popleft()
        self._pending -= len(messages)
        self._reading = iter(messages)
        self._expires, self.copy = self._parcel.expires, self._parcel.copy
        self._go_on()
        return True

    def _go_on(self) -> None:
        """Messages may be read, unless there is something to say first."""
        self.unread = iter(()) if self.gaps else self._reading

    def settle(self) -> None:
        """Let go of the parcel of which the last message has been taken."""
        if self._parcel is not None and not length_hint(self._reading):
            parcel, self._parcel, self.returned = self._parcel, None, 0
            self.home.release(parcel, self)

    def _drop(self, count: int) -> int:
        """Throw away this many of the oldest, as far as there are; how many."""
        count = left = min(count, self.count)
        while left:
            if self._parcel is None:
                self._begin(self.read_at)
            dropped = sum(1 for _ in islice(self._reading, left))
            self.returned = max(0, self.returned - dropped)
            left -= dropped
            self.settle()
        return count

    def _drop_parcel(self) -> int:
        """Throw away what is left of the parcel that is being read, or else the next; how many messages."""
        if self._parcel is None:
            self._begin(self.read_at)
        return self._drop(length_hint(self._reading))

    def shed(self) -> None:
        """The parcels are over their limit, and the oldest of them is here."""
        read = self._parcel is not None and not length_hint(self._reading)
        self.settle()
        if not read:
            self.home.lose("overflow", self._drop_parcel(), self)

    def expire(self, now: float) -> None:
        """Throw away what has expired."""
        self.settle()
        while self.count and now >= (self._parcel or self._waiting[0][0]).expires:
            self.home.lose("expired", self._drop_parcel(), self)

    def keep_begun(self) -> Parcel | None:
        """Forget all but the rest of the parcel that is being read; which one that is."""
        self.settle()
        self._waiting.clear()
        self._pending = 0
        return self._parcel

    def keep_returned(self) -> None:
        """Forget all but what readers that went away had taken: it may have been acknowledged. Where it has
        not been, since others of its parcel were still unread, it is read twice.
        """
        kept, expires = list(islice(self._reading, self.returned)), self._expires
        self.clear()
        self._expires = expires
        for message in reversed(kept):
            self.put_first(message)

    def announce(self, gap: Message) -> None:
        """Say that messages are missing: `reason`, and `count` or None. Those of one reason become one."""
        before = self.gaps.get(gap["reason"])
        if before is not None and gap["count"] is not None:
            gap["count"] = None if before["count"] is None else before["count"] + gap["count"]
        self.gaps[gap["reason"]] = gap
        self._go_on()
        self.wake()

    def put_first(self, message: Message) -> None:
        """A message whose reader went away before it could have it."""
        self.settle()
        if self._parcel is None:
            self._parcel, self.copy = Parcel(0, self._expires, None), None
        self._reading = iter([message, *self._reading])
        self.returned += 1
        self.unread = iter(())  # it may have expired meanwhile: the next reader looks at the clock
        self.wake()

    def wake(self, count: int = 1) -> None:
        """As many of those who wait as there are new messages: each takes one."""
        while count and self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self.woken += 1
                count -= 1

    def turn(self) -> None:
        """Who was woken runs, and takes next."""
        self.woken -= 1

    def forsaken(self, waiter: Waiter, *, woken: bool) -> None:
        """Who waited has gone away; whoever comes next takes what it was woken for."""
        self.level_at = float("-inf")
        if woken:
            self.woken -= 1
            if self.count or self.gaps:
                self.wake()
        elif waiter in self.waiters:
            self.waiters.remove(waiter)

    def fail(self, error: Exception) -> None:
        """There will be no messages: everyone who waits hears why."""
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(copy(error))  # each its own: raising it adds to its traceback

    def clear(self) -> int:
        """Forget everything; how many messages."""
        self.arriving = 0
        self.gaps.clear()
        dropped = self._drop(self.count)
        self.settle()
        self._go_on()
        return dropped


class Mailboxes:
    """The mailboxes and groups of one event loop. `dropped(reason, count, channel)` hears of every loss,
    `control` what other processes ask of this one.
    """

    def __init__(
        self,
        config: Config,
        dropped: Callable[[str, int, str], None],
        control: Callable[[Message], None] = lambda message: None,
    ) -> None:
        self.boxes: dict[str, Mailbox] = {}
        self.groups: dict[str, dict[str, Member]] = {}
        self.used = 0  # bytes
        self.drop_oldest = config.overflow == "drop-oldest"
        self._config = config
        self._dropped = dropped
        self._control = control
        self._parcels: OrderedDict[Parcel, None] = OrderedDict()  # oldest first

    def open(self, channel: str, now: float) -> Mailbox:
        """The mailbox of a channel, made when it is first asked for."""
        box = self.boxes.get(channel)
        if box is None:
            box = self.boxes[channel] = Mailbox(channel, self._config.capacity(channel), self, now)
        return box

    def lose(self, reason: str, count: int, box: Mailbox) -> None:
        if count:
            gap = self._config.gap(reason, count)
            if gap is not None:
                box.announce(gap)
            self._dropped(reason, count, box.channel)

    def deliver(self, pairs: Iterable[tuple[str, Message]], size: int, now: float) -> int:
        """Events of one AMQP message of `size` bytes, in order, to the mailboxes of their targets; how many
        mailboxes and messages that were, multiplied.
        """
        pairs = list(pairs)
        each = size // max(1, len(pairs))
        delivered = 0
        for target, run in groupby(pairs, itemgetter(0)):
            messages = [message for _, message in run]
            members: Collection[Member]
            if not target:
                for message in messages:
                    self._control(message)
                continue
            if "!" in target:
                box = self.open(target, now)
                box.arriving = max(0, box.arriving - len(messages))
                members = (box,)
            else:
                members = self.groups.get(target, {}).values()
            if members:
                each_his_own = copier(messages) if len(members) > 1 else None
                parcel = Parcel(each * len(messages), now + self._config.expiry, each_his_own)
                for member in members:
                    member.put(parcel, messages, now)
                if parcel.holders:
                    self._parcels[parcel] = None
                    self.used += parcel.size
                delivered += len(messages) * len(members)
        while self.used > self._config.buffer_bytes:
            for box in list(next(iter(self._parcels)).holders):
                box.shed()
        return delivered

    def release(self, parcel: Parcel, box: Mailbox) -> None:
        """A mailbox has done with a parcel."""
        parcel.holders.pop(box, None)
        if not parcel.holders and parcel in self._parcels:
            del self._parcels[parcel]
            self.used -= parcel.size

    def join(self, group: str, channel: str, member: Member) -> bool:
        """Make a channel a member; whether it was none before."""
        members = self.groups.setdefault(group, {})
        new = channel not in members
        members[channel] = member
        return new

    def leave(self, group: str, channel: str) -> bool:
        """Take a member out; whether it was the last one."""
        members = self.groups.get(group)
        if members is None or members.pop(channel, None) is None or members:
            return False
        del self.groups[group]
        return True

    def announce(self, reason: str) -> None:
        """Every channel may have missed something, nobody knows how much."""
        for box in self.boxes.values():
            box.arriving = 0
            gap = self._config.gap(reason, None)
            if gap is not None:
                box.announce(gap)

    def expire(self, now: float) -> None:
        """Throw away what has expired, wherever it is unread."""
        for parcel in list(takewhile(lambda each: each.expires <= now, self._parcels)):
            for box in list(parcel.holders):
                box.expire(now)

    def sweep(self, now: float) -> list[Mailbox]:
        """Drop what has expired, and forget channels that nobody reads: past the expiry when they are empty
        and in no group, after `group_expiry` whatever they hold. Those that are forgotten.
        """
        grouped = {channel for members in self.groups.values() for channel in members}
        forgotten = []
        for box in list(self.boxes.values()):
            box.expire(now)
            unread = 0.0 if box.waiters or box.woken else now - box.read_at
            empty = not box.count and box.channel not in grouped
            if unread > self._config.group_expiry or (unread > self._config.expiry and empty):
                del self.boxes[box.channel]
                forgotten.append(box)
                count = box.clear()
                if count:
                    self._dropped("no_receiver", count, box.channel)
        return forgotten

    def close(self, error: Exception) -> None:
        """Nothing arrives any more: everybody who waits hears it."""
        for box in self.boxes.values():
            box.closed = error
            box.fail(error)
            box.clear()
        self.boxes.clear()
        self.groups.clear()
