"""A few kills and damages, of the many that scripts/crash_test does; and that it can see faults."""

from pathlib import Path

import pytest

from kvbench.testing import crash
from kvbench.testing.crash import Findings, damages, judge, kills

KEYS = crash.PREFIXES * crash.LENGTH


def test_after_kills_under_load_nothing_is_wrong_and_nothing_flushed_is_lost(
    tmp_path: Path,
) -> None:
    findings = kills(tmp_path, 6, seed=5)
    assert (findings.rounds, findings.refused) == (6, 0)
    assert findings.faults == 0, findings.examples
    assert findings.read > 0


def test_after_damage_to_any_file_nothing_wrong_is_served(tmp_path: Path) -> None:
    found = damages(tmp_path, 3, seed=5)
    assert {"blocks.dat", "index.sqlite"} <= found.keys() or len(found) >= 3
    for name, findings in found.items():
        assert findings.rounds == 3
        assert findings.faults == 0, (name, findings.examples)
    assert sum(findings.read for findings in found.values()) > 0


@pytest.mark.parametrize(
    ("letter", "put", "flushed", "fault"),
    [
        (b"w", {7}, set[int](), "wrong"),
        (b"o", set[int](), set[int](), "phantom"),
        (b"m", {7}, {7}, "lost"),
        (b"c", {7}, {7}, "lost"),
    ],
)
def test_each_kind_of_fault_is_counted(
    letter: bytes, put: set[int], flushed: set[int], fault: str
) -> None:
    said = bytearray(b"m" * KEYS)
    said[7:8] = letter
    findings = Findings()
    judge(findings, bytes(said), put, flushed)
    assert findings.faults == 1
    assert getattr(findings, fault) == 1


def test_a_process_that_did_not_finish_is_a_fault_and_a_refusal_is_none() -> None:
    findings = Findings()
    judge(findings, b"", set(), set())
    assert findings.faults == 1
    judge(findings, b"!it is another store", set(), set())
    assert (findings.faults, findings.refused) == (1, 1)
