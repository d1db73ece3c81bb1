"""Which events have been handled already: a bounded memory of ids, oldest forgotten first."""

from collections import OrderedDict


class Seen:
    """Remembers the last `limit` ids (each some 150 bytes)."""

    def __init__(self, limit: int = 100_000):
        self.limit = limit
        # A dict looks for its oldest key behind all that were removed before it: some hundred microseconds.
        self._ids: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self):
        return len(self._ids)

    def __contains__(self, id: bytes) -> bool:
        return id in self._ids

    def add(self, id: bytes) -> bool:
        """True when `id` is new; False when it was here (its age does not change). An empty id is always
        new."""
        if not id:
            return True
        ids = self._ids
        if id in ids:
            return False
        ids[id] = None
        if len(ids) > self.limit:
            ids.popitem(last=False)
        return True

    def discard(self, id: bytes) -> None:
        """Forget an id: what it named was not done after all."""
        self._ids.pop(id, None)
