"""What was refused because a budget was used up, by the budget's name: docs/why/threat-model.md has them."""

from prometheus_client import Counter

REFUSED = Counter("carillon_refused", "What was refused because a budget was used up", ["budget"])
