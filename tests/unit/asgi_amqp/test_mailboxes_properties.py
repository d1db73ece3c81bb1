"""Mailboxes in any order of events: each message is read once or is counted as lost, nobody waits in vain."""

from collections import Counter
from operator import length_hint
from types import SimpleNamespace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgi_amqp.exceptions import ChannelFull
from asgi_amqp.mailboxes import GRACE, Mailboxes
from tests.unit.asgi_amqp.properties import SETTINGS

CHANNELS = ["x.p!a", "x.p!b", "x.p!c"]
GROUPS = ["one", "two"]
CAPACITY, EXPIRY, GROUP_EXPIRY = 4, 60.0, 500.0
CHANNEL = st.sampled_from(CHANNELS)


class Reader:
    """Someone who waits, as an asyncio.Future does."""

    def __init__(self):
        self.state = "waits"

    def done(self):
        return self.state != "waits"

    def set_result(self, result):
        assert self.state == "waits"
        self.state = "woken"

    def set_exception(self, error):
        assert self.state == "waits"
        self.state = "failed"


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.number = 0
        self.readers = {channel: [] for channel in CHANNELS}
        self.given = Counter()  # messages put before a channel
        self.read = Counter()
        self.lost = Counter()
        self.told = Counter()  # losses that readers have heard of
        self.last = Counter()  # the number that was read last
        self.hand = {}  # channel: the message that somebody has just read

    @initialize(gaps=st.booleans(), oldest=st.booleans(), small=st.booleans())
    def begin(self, gaps, oldest, small):
        self.gaps = gaps
        self.limit = 100 if small else 1 << 30
        config = SimpleNamespace(
            capacity=lambda channel: CAPACITY,
            overflow="drop-oldest" if oldest else "drop-newest",
            expiry=EXPIRY,
            group_expiry=GROUP_EXPIRY,
            buffer_bytes=self.limit,
            gap=lambda reason, count: {"reason": reason, "count": count} if gaps else None,
        )
        self.without_clock = False
        self.boxes = Mailboxes(config, self.dropped)

    def dropped(self, reason, count, channel):
        assert count > 0
        self.lost[channel] += count

    def box(self, channel):
        return self.boxes.open(channel, self.now)

    def pending(self, channel):
        """Readers that wait, or were woken and have not had their turn."""
        return [reader for reader in self.readers[channel] if reader.state in ("waits", "woken")]

    # What arrives

    @rule(where=st.sampled_from(CHANNELS + GROUPS), count=st.integers(1, 6), size=st.sampled_from([10, 60]))
    def deliver(self, where, count, size):
        members = [where] if where in CHANNELS else list(self.boxes.groups.get(where, ()))
        sure = [channel for channel in members if self.pending(channel)]
        before = self.lost.copy()
        messages = []
        for _ in range(count):
            self.number += 1
            messages.append((where, {"n": self.number, "list": [self.number]}))
        fits = self.boxes.used + size // count * count <= self.limit
        delivered = self.boxes.deliver(messages, size, self.now)
        assert delivered == count * len(members)
        for channel in members:
            self.given[channel] += count
        if fits:
            assert all(self.lost[channel] == before[channel] for channel in sure), "a reader that waited"
        assert self.boxes.used <= self.limit

    @rule(channel=CHANNEL)
    def send_to_itself(self, channel):
        box = self.box(channel)
        room = box.count + box.arriving < CAPACITY
        try:
            box.reserve()
        except ChannelFull:
            assert not room
        else:
            assert room

    # Who reads

    def take(self, channel):
        box = self.box(channel)
        message = next(box.unread, None) if self.without_clock else None
        if message is not None and box.copy is not None:
            message = box.copy(message)
        if message is None:
            message = box.take(self.now)
        if message is None:
            assert not box.count
            assert not box.gaps
        elif "n" in message:
            assert not box.gaps or not self.gaps, "a gap comes first"
            assert message["n"] > self.last[channel], "in order"
            assert message["list"] == [message["n"]], "what others did to theirs is not seen"
            message["list"].append("mine")
            self.last[channel] = message["n"]
            self.read[channel] += 1
            self.hand[channel] = message
        elif message["count"] is not None:
            self.told[channel] += message["count"]
        return message

    @rule(without_clock=st.booleans())
    def read_so(self, without_clock):
        self.without_clock = without_clock

    @rule(channel=CHANNEL)
    def receive(self, channel):
        """One reader comes: it has a message at once, or waits."""
        if self.take(channel) is None:
            reader = Reader()
            self.readers[channel].append(reader)
            self.box(channel).waiters.append(reader)

    @rule(channel=CHANNEL)
    def turns(self, channel):
        """One of those who were woken runs."""
        woken = [reader for reader in self.readers[channel] if reader.state == "woken"]
        if woken:
            self.readers[channel].remove(woken[0])
            self.box(channel).turn()
            self.receive(channel)

    @precondition(lambda self: any(self.readers.values()))
    @rule(data=st.data())
    def cancel(self, data):
        channel = data.draw(st.sampled_from([channel for channel in CHANNELS if self.readers[channel]]))
        reader = data.draw(st.sampled_from(self.readers[channel]))
        self.readers[channel].remove(reader)
        woken = reader.state == "woken"
        if not woken:
            reader.state = "cancelled"
        self.box(channel).forsaken(reader, woken=woken)

    @precondition(lambda self: self.hand)
    @rule(data=st.data())
    def give_back(self, data):
        """Who has just read a message went away before it could have it."""
        channel = data.draw(st.sampled_from(sorted(self.hand)))
        message = self.hand.pop(channel)
        if message["n"] == self.last[channel]:
            message["list"].pop()
            self.last[channel] -= 1
            self.read[channel] -= 1
            self.box(channel).put_first(message)

    # The rest

    @rule(group=st.sampled_from(GROUPS), channel=CHANNEL)
    def join(self, group, channel):
        new = channel not in self.boxes.groups.get(group, ())
        assert self.boxes.join(group, channel, self.box(channel)) == new

    @rule(group=st.sampled_from(GROUPS), channel=CHANNEL)
    def leave(self, group, channel):
        last = list(self.boxes.groups.get(group, ())) == [channel]
        assert self.boxes.leave(group, channel) == last
        assert channel not in self.boxes.groups.get(group, ())

    @rule()
    def announce(self):
        self.boxes.announce("reconnect")

    @rule(seconds=st.sampled_from([0.1, GRACE + 0.1, 61.0, 501.0]))
    def time(self, seconds):
        self.now += seconds

    @rule()
    def sweep(self):
        before = {channel: box.count for channel, box in self.boxes.boxes.items()}
        for box in self.boxes.sweep(self.now):
            assert not self.pending(box.channel), "somebody would wait for ever"
            assert before[box.channel] == 0 or self.lost[box.channel]
            self.told[box.channel] = self.lost[box.channel]  # there is nobody to tell
            self.hand.pop(box.channel, None)
            for group in GROUPS:
                self.boxes.leave(group, box.channel)

    @rule(channel=CHANNEL)
    def shed(self, channel):
        if self.box(channel).count:
            self.box(channel).shed()

    @rule()
    def expire_all(self):
        self.boxes.expire(self.now)
        for parcel in self.boxes._parcels:
            assert parcel.expires > self.now or not parcel.holders

    @rule(channel=CHANNEL)
    def expire(self, channel):
        self.box(channel).expire(self.now)

    # What holds

    @invariant()
    def nothing_is_forgotten(self):
        for channel in CHANNELS:
            box = self.boxes.boxes.get(channel)
            unread = 0 if box is None else box.count
            assert self.given[channel] == self.read[channel] + self.lost[channel] + unread
            if self.gaps and box is not None:
                gaps = sum(each["count"] or 0 for each in box.gaps.values())
                assert self.lost[channel] == self.told[channel] + gaps

    @invariant()
    def nobody_waits_in_vain(self):
        for channel, box in self.boxes.boxes.items():
            waiting = [reader for reader in self.readers[channel] if reader.state == "waits"]
            assert waiting == list(box.waiters)
            assert box.woken == len(self.pending(channel)) - len(waiting)
            if waiting and (box.count or box.gaps):
                assert len(self.pending(channel)) > len(waiting)

    @invariant()
    def sums_are_right(self):
        held = {}
        for box in self.boxes.boxes.values():
            box.settle()
            assert box.count == sum(len(each) for _, each in box._waiting) + length_hint(box._reading)
            assert box.arriving >= 0
            parcels = [parcel for parcel, _ in box._waiting]
            assert (box._parcel is not None) == bool(length_hint(box._reading))
            if box._parcel is not None:
                parcels.append(box._parcel)
            for parcel in parcels:
                if parcel.holders:
                    held.setdefault(parcel, set()).add(box)
        if hasattr(self, "boxes"):
            assert {parcel: set(parcel.holders) for parcel in self.boxes._parcels} == held
            assert self.boxes.used == sum(parcel.size for parcel in held)

    def teardown(self):
        """When those who were woken have had their turn, and all is read, nothing is left."""
        if not hasattr(self, "boxes"):
            return
        self.limit = 1 << 30
        for channel in CHANNELS:
            while any(reader.state == "woken" for reader in self.readers[channel]):
                self.turns(channel)
            if self.readers[channel]:
                assert not self.box(channel).count
                assert not self.box(channel).gaps
            while self.take(channel) is not None:
                pass
        self.nothing_is_forgotten()
        assert self.boxes.used == 0
        self.boxes.close(RuntimeError("closed"))
        assert {reader.state for readers in self.readers.values() for reader in readers} <= {"failed"}


TestMailboxes = Machine.TestCase
TestMailboxes.settings = SETTINGS
