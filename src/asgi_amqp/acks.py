"""Which deliveries of a wire are done with, told to the broker in as few frames as can be. Pure."""


class Acks:
    """Delivery tags count from 1 on each AMQP channel. A frame that says "all up to this tag" spares one for
    each of them, and may be sent once nothing before that tag is open.
    """

    def __init__(self) -> None:
        self._fresh: list[int] = []  # not told yet
        self._ended: set[int] = set()  # from _next on: told, or about to be
        self._next = 1  # the oldest that is open

    def add(self, tag: int) -> bool:
        """A delivery has been dealt with; whether it is the first since `take`."""
        self._fresh.append(tag)
        return len(self._fresh) == 1

    def ended(self, tag: int, *, multiple: bool = False) -> None:
        """The broker was told of this one otherwise, or of all up to it."""
        if multiple:
            self._next = max(self._next, tag + 1)
            self._ended = {each for each in self._ended if each > tag}
            self._fresh = [each for each in self._fresh if each > tag]
        else:
            self._ended.add(tag)
        while self._next in self._ended:
            self._ended.remove(self._next)
            self._next += 1

    def take(self) -> list[tuple[int, bool]]:
        """What to tell now: (tag, whether all before it are meant too)."""
        fresh, self._fresh = self._fresh, []
        for tag in fresh:
            self.ended(tag)
        # The broker knows no tag that it was told of before: the frame names one that is fresh.
        whole = [tag for tag in fresh if tag < self._next]
        singly = [(tag, False) for tag in fresh if tag > self._next]
        return [(max(whole), len(whole) > 1), *singly] if whole else singly
