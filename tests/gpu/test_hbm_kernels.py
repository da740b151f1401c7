"""The hbm bodies that launch kernels: the bytes they move are the ones they say, or they notice.

On a CUDA device where there is one, in Triton's interpreter otherwise (see conftest.py).
"""

import pytest

from kvbench.errors import CorruptDataError
from kvbench.geometry import load_geometry
from kvbench.machine import Machine
from kvbench.measure.body import Context
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.units import KIB
from kvbench_suites import hbm
from kvbench_suites.hbm_bodies import NO_GPU_PATH, CopyBlock, GatherPages, ScatterPages

Body = CopyBlock | GatherPages | ScatterPages
PAGES: dict[str, Value] = {"page_bytes": 4 * KIB, "block_bytes": 12 * KIB, "batch": 2}
CASES: list[tuple[Operation, type[Body], dict[str, Value]]] = [
    (hbm.COPY, CopyBlock, {"block_bytes": 24 * KIB, "engine": "triton"}),
    (hbm.GATHER, GatherPages, PAGES),
    (hbm.SCATTER, ScatterPages, PAGES),
]
each_body = pytest.mark.parametrize(
    ("operation", "kind", "params"), CASES, ids=[operation.name for operation, _, _ in CASES]
)


def set_up(kind: type[Body], params: dict[str, Value], device: str) -> Body:
    """Four units of 24 KiB, two of them a step."""
    body = kind(device)
    body.arena_bytes = 96 * KIB
    body.step_bytes = 48 * KIB
    body.set_up(
        Context(
            params=params,
            geometry=load_geometry("llama-3.1-8b"),
            machine=Machine(),
            plan=Plan(),
            seed=11,
            process=0,
            scratch=None,
        )
    )
    return body


@each_body
def test_a_step_moves_the_bytes_it_says_and_they_verify(
    operation: Operation, kind: type[Body], params: dict[str, Value], device: str
) -> None:
    body = set_up(kind, params, device)

    assert body.step() == 48 * KIB
    assert body.verify() >= 48 * KIB
    while body.done < 3 * body.units:
        body.step()
    assert body.verify() == body.target.nbytes
    expected = operation.path(params) if device == "cuda" else NO_GPU_PATH
    assert body.observed().path == expected


@each_body
def test_one_flipped_bit_is_found(
    operation: Operation, kind: type[Body], params: dict[str, Value], device: str
) -> None:
    body = set_up(kind, params, device)
    while body.done < body.units:
        body.step()
    body.target[1, 77] ^= 1

    with pytest.raises(CorruptDataError, match=r"target slot 1 of \d+ differs from byte 77:"):
        body.verify()
    assert operation.traffic(params) == 2.0


@each_body
def test_what_an_earlier_pass_left_behind_is_no_right_answer(
    operation: Operation, kind: type[Body], params: dict[str, Value], device: str
) -> None:
    body = set_up(kind, params, device)
    while body.done < body.units:
        body.step()
    first_pass = body.target.clone()
    while body.done < 2 * body.units:
        body.step()
    body.target.copy_(first_pass)

    with pytest.raises(CorruptDataError):
        body.verify()
    assert operation.tier == "hbm"


def test_gathered_pages_come_from_all_over_the_cache(device: str) -> None:
    body = set_up(GatherPages, PAGES, device)
    order = body.source_slots.ravel().tolist()

    assert body.batch == 6, "two blocks of three pages in one launch"
    assert sorted(order) == list(range(len(order)))
    assert order != sorted(order)
    assert body.target_slots.ravel().tolist() == sorted(order), "staging is filled in order"
