"""The judge of a schedule: reads what publishers and clients wrote down, and nothing else. Pure; it knows
nothing of Carillon, of brokers or of faults.

A record is one JSON object:

    {"publisher": "p0", "confirmed": [first, last]}
    {"client": "v2-0", "saw": ["p0", 17]}
    {"client": "v2-0", "told": "retention"}     here it heard that something is missing
    {"client": "v2-0", "connected": true}

Each publisher numbers its events 0, 1, 2, … and publishes them in that order; a client's records are in the
order in which it heard. Every client hears every publisher from its first event on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

EXAMPLES = 5


@dataclass
class Account:
    """What became of the events for one client, in numbers, and the first cases of what is wrong in words.

    `lost`: missing, with later events heard, and nothing was said. `unseen`: missing at the end, and nothing
    was said: it is deaf. `told`: missing, and it was said. `for_nothing`: announcements of nothing missing.
    """

    client: str
    seen: int = 0
    lost: int = 0
    unseen: int = 0
    told: int = 0
    doubled: int = 0
    disordered: int = 0
    unknown: int = 0
    announcements: int = 0
    for_nothing: int = 0
    connects: int = 0
    cases: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> int:
        return self.lost + self.unseen + self.doubled + self.disordered + self.unknown

    def case(self, words: str) -> None:
        """Note what is wrong, while there is room."""
        if len(self.cases) < EXAMPLES:
            self.cases.append(f"{self.client}: {words}")


@dataclass(frozen=True)
class Verdict:
    """What was confirmed, by publisher, and an account of each client."""

    confirmed: dict[str, int]
    accounts: list[Account]

    @property
    def total(self) -> int:
        return sum(self.confirmed.values())

    def sum(self, what: str) -> int:
        """Over all clients."""
        return sum(getattr(account, what) for account in self.accounts)

    @property
    def cases(self) -> list[str]:
        return [case for account in self.accounts for case in account.cases]


def check(records: Iterable[dict]) -> Verdict:
    """Hold every client's record against what was confirmed, and against the order in which others heard."""
    confirmed: dict[str, int] = {}
    heard: dict[str, list] = {}
    for record in records:
        if "publisher" in record:
            first, last = record["confirmed"]
            publisher = record["publisher"]
            if first != confirmed.get(publisher, 0):
                raise ValueError(f"{publisher} confirms {first} after {confirmed.get(publisher, 0)} events")
            confirmed[publisher] = last + 1
        else:
            heard.setdefault(record["client"], []).append(record)
    accounts = [_account(client, lines, confirmed) for client, lines in heard.items()]
    _compare(accounts, heard)
    return Verdict(confirmed, accounts)


def _account(client: str, lines: list[dict], confirmed: dict[str, int]) -> Account:
    account = Account(client)
    expected = dict.fromkeys(confirmed, 0)
    told_at: dict[str, int] = {}
    """By publisher: the announcement up to which its gaps have been explained."""
    late: dict[str, set[int]] = {publisher: set() for publisher in confirmed}
    """Passed over without a word: lost, unless they come after all."""
    excused: dict[str, set[int]] = {publisher: set() for publisher in confirmed}
    useful: set[int] = set()

    def gap(publisher: str, until: int) -> None:
        first = expected[publisher]
        if until <= first:
            return
        if account.announcements > told_at.get(publisher, 0):
            useful.add(account.announcements)
            excused[publisher].update(range(first, until))
        else:
            late[publisher].update(range(first, until))

    for line in lines:
        if "told" in line:
            account.announcements += 1
        elif "connected" in line:
            account.connects += 1
        else:
            publisher, number = line["saw"]
            if publisher not in expected or number < 0:
                account.unknown += 1
                account.case(f"{publisher} {number} was never published")
            elif number >= expected[publisher]:
                gap(publisher, number)
                told_at[publisher] = account.announcements
                expected[publisher] = number + 1
                account.seen += 1
            elif number in late[publisher] or number in excused[publisher]:
                late[publisher].discard(number)
                excused[publisher].discard(number)
                account.seen += 1
                account.disordered += 1
                account.case(f"{publisher} {number} comes after {expected[publisher] - 1}")
            else:
                account.doubled += 1
                account.case(f"{publisher} {number} comes twice")
    for publisher, count in confirmed.items():
        lost = late[publisher]
        account.lost += len(lost)
        if lost:
            account.case(f"{publisher} {min(lost)} to {max(lost)}: {len(lost)} lost, nothing was said")
        missing = max(0, count - expected[publisher])
        if not missing:
            continue
        if account.announcements > told_at.get(publisher, 0):
            useful.add(account.announcements)
            excused[publisher].update(range(expected[publisher], count))
        else:
            account.unseen += missing
            account.case(f"{publisher}: deaf to all from {expected[publisher]} on, {missing} events")
    account.told = sum(map(len, excused.values()))
    account.for_nothing = max(0, account.announcements - len(useful))
    return account


def _compare(accounts: list[Account], heard: dict[str, list]) -> None:
    """Any two events come to all clients in the same order: that of the client who heard most."""
    if not accounts:
        return
    most = max(accounts, key=lambda account: account.seen)
    order: dict[tuple, int] = {}
    for line in heard[most.client]:
        if "saw" in line:
            order.setdefault(tuple(line["saw"]), len(order))
    for account in accounts:
        before, seen = -1, set()
        for line in heard[account.client]:
            event = tuple(line["saw"]) if "saw" in line else None
            if event not in order or event in seen:
                continue
            seen.add(event)
            if order[event] < before:
                account.disordered += 1
                account.case(f"{event} comes after one that {most.client} heard later")
            before = max(before, order[event])
