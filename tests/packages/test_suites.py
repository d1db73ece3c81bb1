"""The suites of packages that people use with Channels, on this layer. README.md says how they are had."""

import pytest

from tests.packages import suites


@pytest.mark.parametrize("suite", suites.declared(), ids=lambda suite: suite.name)
def test_what_others_test_holds_on_this_layer(suite, broker, layer, tmp_path):
    try:
        folder = suites.source(suite, tmp_path)
    except suites.Unavailable as reason:
        pytest.skip(str(reason))
    outcomes, text = suites.run(suite, folder, broker.url, layer)
    assert len(outcomes) == suite.count, text
    failed = {test for test, outcome in outcomes.items() if outcome == "failed"}
    named = suite.exceptions.keys() | suite.faults.keys()
    print(f"{suite.name}: {suite.count - len(failed)} of {suite.count}")
    assert not failed - named, f"{sorted(failed - named)}\n{text}"
    assert not named - failed, f"these pass now: take them out of suites.toml: {sorted(named - failed)}"
