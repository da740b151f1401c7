"""Whether a drive moved what it had to: all the payload, or what a store says it asked for."""

import pytest

from kvbench.measure.result import ProcessResult, Row, State
from kvbench.measure.rows import make_row
from kvbench_suites.replay import DRIVE
from tests.compare.samples import make_process

CASE = DRIVE.case({"block_bytes": 4096, "dram_blocks": 1, "nvme_blocks": 1})
PATH = CASE.operation.path(CASE.params)


def row(*processes: tuple[int, int | None]) -> Row:
    """Of a payload of 1000 bytes a process: what the device moved, and what it was asked for."""
    done: list[ProcessResult] = [
        make_process(
            at,
            1e6,
            payload_bytes=1000,
            device_bytes=moved,
            device_payload_bytes=asked,
            path_observed=PATH,
        )
        for at, (moved, asked) in enumerate(processes)
    ]
    return make_row(CASE, done, (None, "none"), simulated=False)


@pytest.mark.parametrize(
    ("moved", "asked", "state"),
    [
        (400, 400, State.OK),
        (400, None, State.INVALID),  # all of it is the drive's, and most did not come from it
        (300, 400, State.INVALID),
        (0, 400, State.INVALID),
        (0, 0, State.OK),  # memory served everything
        (1000, None, State.OK),
    ],
)
def test_a_drive_is_held_to_what_it_was_asked_for(
    moved: int, asked: int | None, state: State
) -> None:
    found = row((moved, asked), (moved, asked), (moved, asked))
    assert found.state is state, found.reason
    assert found.reason_code == (None if state is State.OK else "device_bytes")


def test_one_process_that_a_cache_served_is_enough_to_doubt_the_row() -> None:
    assert row((400, 400), (10, 400), (900, 400)).state is State.INVALID


@pytest.mark.parametrize(("moved", "warned"), [(400, False), (600, True)])
def test_a_drive_that_moved_much_more_than_asked_for_had_other_work(
    moved: int, *, warned: bool
) -> None:
    codes = [caution.code for caution in row((moved, 400)).warnings]
    assert ("other_traffic" in codes) is warned
