"""The comparison of peers with other software: what is a ratio, and when a bar is missed."""

import pytest

from benchmarks.peer_against_others import compare
from benchmarks.peer_against_others.compare import Entry, ratios, show
from kvbench.units import MIB


def entries() -> list[Entry]:
    return [
        Entry("tcp, 1 stream", rates=[1e9, 4e9, 2e9]),
        Entry("iperf3", rates=[1e9, 2e9, 4e9]),
        Entry("redis", reason="skipped: redis-server is not installed"),
    ]


def test_ratios_are_of_rounds_and_not_of_medians() -> None:
    assert ratios(entries(), "tcp, 1 stream", "iperf3") == [1.0, 2.0, 0.5]
    assert ratios(entries(), "tcp, 1 stream", "redis") == []


def test_who_is_not_installed_misses_no_bar_and_who_failed_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = entries()
    assert show(MIB, found)
    assert "redis-server is not installed" in capsys.readouterr().out
    found[2].reason = "round 2: it ended"
    assert not show(MIB, found)


def test_a_bar_that_is_missed_is_said_and_makes_the_run_fail(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = entries()
    found[0].rates = [0.8e9, 1.7e9, 3e9]
    assert not show(MIB, found)
    assert "0.80 (0.75 to 0.85), bar 0.9: MISSED" in capsys.readouterr().out


def test_every_bar_names_contestants_that_there_are() -> None:
    names = {*compare.CONTESTANTS, compare.STREAM}
    assert {name for ours, theirs, _ in compare.BARS for name in (ours, theirs)} <= names
