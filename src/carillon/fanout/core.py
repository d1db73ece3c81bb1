"""What the tail decides, without broker, clock or loop: which epoch is read, up to which number, what is
missing."""

from asgi_amqp import Position
from carillon.events.event import END, Malformed, unpack
from carillon.fanout.log import Place, Reading


class TailCore:
    """It is told what happened, and answers with steps for the hub, in order:

    - ("begin", number, reason): what follows does not follow what was read, and the window is empty. The
      listeners have missed something, and the reason says what (`epoch`, `retention`); "": there are none yet
    - ("events", events)
    - ("jump", before, after): the place `before` is `after` from now on, and no event between them is to be
      had here; what the log has lost of what was read comes again below `after`
    - ("reached", number): the log has been read up to there
    - ("over", epoch): this epoch is said to have ended, and that one to go on
    - ("malformed", offset): a message that is no batch of events was skipped
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.place: Place | None = None
        """The last message with a number that was read of this epoch."""
        self._reading = Reading()
        self._goal = 0
        self._reason = ""

    @property
    def last(self) -> int | None:
        """The number up to which this epoch has been read."""
        return self._reading.last

    @property
    def level(self) -> bool:
        """Whether all has been read that the log had when its reading began."""
        return self.last is not None and self.last >= self._goal

    def over(self, current: Position | None) -> bool:
        """Whether another epoch is the current one: nothing comes here any more, and no error says so."""
        return current is not None and current.epoch != self.epoch

    def attached(self, current: Position) -> None:
        """The stream of the current epoch is there, to be read from its last place or some way before."""
        self._reading.attached()
        if self.over(current):
            self._reason = "epoch" if self.epoch else ""
            self.epoch, self.place, self._goal = current.epoch, None, current.number
            self._reading = Reading()

    def arrived(self, messages) -> list[tuple]:
        """(offset, body) pairs of the stream, in its order, some of them perhaps not for the first time."""
        steps: list[tuple] = []
        events: list = []

        def step(*what) -> None:
            nonlocal events
            if events:
                steps.append(("events", events))
                events = []
            steps.append(what)

        for offset, body in messages:
            try:
                batch = unpack(body)
            except Malformed:
                step("malformed", offset)
                continue
            if batch.word.startswith(END):
                step("over", batch.word[len(END) :].decode())
                continue
            if not batch.number:
                continue
            self.place, fresh = Place(offset, batch.number), self.last is None
            found, missing = self._reading.take(batch)
            if fresh:
                step("begin", batch.number - 1, self._reason)
            elif missing:
                step("begin", batch.number - 1, "retention")
            elif self._reading.jump is not None:
                step("jump", *self._reading.jump)
            events += found
        if self.last is not None:
            step("reached", self.last)
        return steps
