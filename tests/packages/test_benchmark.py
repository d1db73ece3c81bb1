"""A row of `make bench-layer` that lost something is no result, however fast it was."""

import pytest

from benchmarks import layer as bench


def results(**lost):
    """One round of every row with the same numbers; `lost` of ours by the row's name."""
    numbers = {"rate": 1e6, "cpu": 1.0, "memory": 30.0, "p50": 1.0, "p99": 2.0, "others": 0.0}
    return {
        name: {
            layer: [dict(numbers, lost=lost.get(name.replace(" ", "_"), 0) if layer == bench.OURS else 0)]
            for layer in (bench.OURS, bench.CORE)
        }
        for name in bench.WORKLOADS
    }


def page(found):
    layers = (bench.OURS, bench.CORE)
    medians = bench.table(found, layers)
    return medians, bench.markdown(medians, found, layers, 1, "0"), bench.judge(medians, found)


def test_a_whole_row_is_a_number():
    medians, text, verdicts = page(results())
    assert medians["fan-out to 1000"][bench.OURS] == 1e6
    assert "lost" not in text.replace("one that lost something", "")
    assert {name: reached for name, *_, reached in verdicts}[bench.SINGLE]


@pytest.mark.parametrize(("lost", "words"), [(7, "lost 7"), (-3, "doubled 3")])
def test_a_row_that_lost_or_doubled_says_so_and_reaches_nothing(lost, words):
    medians, text, verdicts = page(results(**{"fan-out_to_1000": lost}))
    assert bench.OURS not in medians["fan-out to 1000"]
    assert f"| fan-out to 1000 | deliveries/s | {words} | 1,000,000 |" in text
    assert ("fan-out to 1000", None, 8, False) in verdicts
    assert bench.plot(medians, (bench.OURS, bench.CORE)).startswith("<svg")


def test_what_one_of_several_rounds_lost_counts():
    found = results()
    found["send"][bench.OURS] = [dict(found["send"][bench.OURS][0], lost=lost) for lost in (0, 2, 3)]
    assert bench.losses(found, "send", bench.OURS) == 5
    assert bench.losses(found, "send", bench.CORE) == 0
