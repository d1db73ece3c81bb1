"""Which deliveries of a wire are done with, told to the broker in as few frames as can be. Pure."""


class Acks:
    """A frame that says "all up to this tag" spares one for each of them, and may be sent once nothing before
    that tag is open. Either all deliveries of a wire are `opened`, or none is: then each has its own frame.
    """

    def __init__(self) -> None:
        self._open: dict[int, None] = {}  # in order; the broker gives no more than the prefetch
        self._fresh: dict[int, bool] = {}  # done with and not told yet; whether it was opened

    def opened(self, tag: int) -> None:
        """A delivery has come."""
        self._open[tag] = None

    def add(self, tag: int) -> bool:
        """It has been dealt with; whether it is the first since `take`."""
        self._fresh[tag] = tag in self._open
        self._open.pop(tag, None)
        return len(self._fresh) == 1

    def ended(self, tag: int) -> None:
        """The broker is told of this one otherwise."""
        self._open.pop(tag, None)

    def take(self) -> list[tuple[int, bool]]:
        """What to tell now: (tag, whether all before it are meant too)."""
        fresh, self._fresh = self._fresh, {}
        oldest = next(iter(self._open), float("inf"))
        whole, singly = [], []
        for tag, opened in fresh.items():
            if opened and tag < oldest:
                whole.append(tag)
            else:
                singly.append((tag, False))
        return [(max(whole), len(whole) > 1), *singly] if whole else singly
