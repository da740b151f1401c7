"""Work in host memory: that it is done, by whom, and that a wrong byte is found."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.geometry import KVGeometry
from kvbench.machine import Cpu, Machine, Memory, NumaNode
from kvbench.measure.body import Context, StepBody
from kvbench.measure.pattern import Pattern, digest
from kvbench.measure.suite import Plan, Value
from kvbench.store.posix import Bytes, mapped_buffer
from kvbench_suites import dram_bodies
from kvbench_suites.dram_bodies import CopyBlock, GatherPages, ScatterPages, allocate, fill
from kvbench_suites.team import nodes_of

KIB = 1024
PAGE_BYTES, BLOCK_BYTES, TURN_BYTES = 3 * KIB, 24 * KIB, 48 * KIB
CORES = sorted(os.sched_getaffinity(0))
# A small machine: an area of four 64 KiB caches, and a paged cache of 512 KiB.
SMALL = Machine(
    cpu=Cpu(l3_bytes=64 * KIB, affinity_cores=len(CORES)),
    memory=Memory(available_bytes=2048 * KIB),
)

Body = CopyBlock | GatherPages | ScatterPages
KINDS: tuple[type[Body], ...] = (CopyBlock, GatherPages, ScatterPages)
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
threads_1_2 = pytest.mark.parametrize(
    "threads", [1, pytest.param(2, marks=pytest.mark.skipif(len(CORES) < 2, reason="one core"))]
)


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bodies pin the thread that sets them up; the next test wants all cores again."""
    monkeypatch.setattr(dram_bodies, "TURN_BYTES", TURN_BYTES)  # 64 MiB would take long
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def context(llama: KVGeometry) -> Callable[..., Context]:
    def one(*, machine: Machine = SMALL, process: int = 0, **params: Value) -> Context:
        usual: dict[str, Value] = {
            "block_bytes": BLOCK_BYTES,
            "page_bytes": PAGE_BYTES,
            "threads": 1,
            "memory": "pageable",
            "cpu_node": -1,
            "memory_node": -1,
        }
        return Context(
            params=usual | params,
            geometry=llama,
            machine=machine,
            plan=Plan(),
            seed=7,
            process=process,
            scratch=None,
        )

    return one


@pytest.fixture
def made(context: Callable[..., Context]) -> Iterator[Callable[..., Any]]:
    """Bodies that are set up, and torn down whatever a test finds."""
    bodies: list[Body] = []

    def one(kind: type[Body], **params: Any) -> Any:
        body = kind()
        bodies.append(body)
        body.set_up(context(**params))
        return body

    yield one
    for body in bodies:
        body.tear_down()


# ---------------------------------------------------------------- the work is done


@each_kind
@threads_1_2
def test_at_least_as_much_as_a_step_claims_is_checked_afterwards(
    made: Callable[..., Any], kind: type[Body], threads: int
) -> None:
    body = made(kind, threads=threads)
    assert isinstance(body, StepBody)
    assert body.clock == "host"
    moved = body.step()
    assert moved >= TURN_BYTES, "long enough to be timed"
    assert moved % BLOCK_BYTES == 0
    assert body.verify() >= moved
    assert [body.step() for _ in range(40)] == [moved] * 40
    assert body.verify() >= moved
    assert body.observed().path == "pageable memory"


@threads_1_2
@pytest.mark.parametrize("block_bytes", [100, 4096, 5000, 64 * KIB, 300 * KIB])
def test_a_copy_moves_range_after_range_to_the_same_place_in_the_other_area(
    made: Callable[..., Any], threads: int, block_bytes: int
) -> None:
    body = made(CopyBlock, threads=threads, block_bytes=block_bytes)
    source, target, turn_bytes = body._source, body._target, body._turn_bytes
    # Threads share a large block, and have a small one each.
    assert turn_bytes == block_bytes * (1 if block_bytes >= TURN_BYTES else threads)
    slots = len(source) // turn_bytes
    assert slots == max(1, 256 * KIB // turn_bytes), "four caches of 64 KiB, or one turn"
    before = target.copy()
    assert body._run_turns(1) == turn_bytes
    changed = np.flatnonzero(target != before)
    at = changed[0] // turn_bytes * turn_bytes
    assert (target[at : at + turn_bytes] == source[at : at + turn_bytes]).all()
    assert changed[-1] < at + turn_bytes, "nothing beyond the range"
    body._run_turns(slots - 1)
    assert (target == source).all()
    assert body.verify() >= slots * turn_bytes


@pytest.mark.parametrize("kind", [GatherPages, ScatterPages])
@threads_1_2
def test_pages_are_moved_between_a_staging_buffer_and_where_an_engine_has_them(
    made: Callable[..., Any], kind: type[Body], threads: int
) -> None:
    body = made(kind, threads=threads)
    blocks, pages, batch = 512 * KIB // BLOCK_BYTES, BLOCK_BYTES // PAGE_BYTES, 2
    # [piece][block][byte]: for each layer, K and V apart, an array of pages, one for each block.
    cache = body._cache.reshape(pages, blocks, PAGE_BYTES)
    staging = body._staging.reshape(-1, batch, pages, PAGE_BYTES)
    assert staging.nbytes > 3 * 64 * KIB, "also the buffers rotate over more than the cache holds"
    order = np.random.default_rng((7, 0)).permutation(blocks)
    passes = blocks // batch
    for turn in range(2 * passes):
        assert body._run_turns(1) == batch * BLOCK_BYTES
        at = turn % passes * batch
        for slot, block in enumerate(order[at : at + batch]):
            assert (staging[turn % len(staging), slot] == cache[:, block]).all(), f"block {block}"


def test_the_blocks_of_one_pass_are_all_different_and_each_process_has_its_own_order(
    made: Callable[..., Any],
) -> None:
    def order(process: int) -> list[int]:
        body = made(GatherPages, process=process)
        return [int(row) for rows in body._batches for row in rows]

    one, two = order(0), order(1)
    assert len(set(one)) == len(one)
    assert len(one) >= 0.9 * 512 * KIB // PAGE_BYTES
    assert sorted(one) != one, "scattered"
    assert one != two


@each_kind
def test_no_two_pages_that_are_moved_hold_the_same_bytes(
    made: Callable[..., Any], kind: type[Body]
) -> None:
    # Else a page in the place of another would pass for the right one.
    body = made(kind)
    sources = {CopyBlock: "_source", GatherPages: "_cache", ScatterPages: "_staging"}
    pages = getattr(body, sources[kind]).reshape(-1, PAGE_BYTES)
    assert len({digest(page) for page in pages}) == len(pages) > 50


@pytest.mark.parametrize("size_bytes", [1, 4095, 4096, 10_000])
@pytest.mark.parametrize(("position_bytes", "sector"), [(0, 0), (4096, 1), (5000, 2)])
def test_an_area_is_filled_to_its_last_byte_from_the_next_whole_sector_on(
    size_bytes: int, position_bytes: int, sector: int
) -> None:
    whole = np.empty(12_288, dtype=np.uint8)
    Pattern(7).fill(whole, sector * 4096)
    area = np.full(size_bytes, 0xAA, dtype=np.uint8)
    fill(Pattern(7), area, position_bytes)
    assert (area == whole[:size_bytes]).all()


# ---------------------------------------------------------------- and found when it is not


def arrived(body: Any, at: int) -> Bytes:
    """The first (0) or the last (-1) bytes that the last turn moved, where they arrived."""
    place: Bytes
    if isinstance(body, CopyBlock):
        place = body._target[: body._turn_bytes]
    else:
        rows, staging = body._at(body._next_turn - 1)
        place = staging[at] if isinstance(body, GatherPages) else body._cache[rows[at]]
    return place


@each_kind
@pytest.mark.parametrize("at", [0, -1])
def test_one_wrong_bit_where_bytes_arrived_is_found(
    made: Callable[..., Any], kind: type[Body], at: int
) -> None:
    body = made(kind)
    for _ in range(3):
        body.step()
    place = arrived(body, at)
    place[at] ^= 1
    with pytest.raises(CorruptDataError, match="differs"):
        body.verify()
    place[at] ^= 1
    body.verify()


def test_a_wrong_bit_in_a_range_that_was_copied_long_ago_is_found_too(
    made: Callable[..., Any],
) -> None:
    body = made(CopyBlock)
    body._run_turns(body._slots)
    body._target[body._turn_bytes * 2 + 5] ^= 1
    with pytest.raises(CorruptDataError, match=f"a copied range of {BLOCK_BYTES} bytes differs"):
        body.verify()


@each_kind
@pytest.mark.parametrize("steps", [0, 30])
def test_steps_that_do_nothing_are_found_also_after_steps_that_did_it_all(
    made: Callable[..., Any], kind: type[Body], monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    body = made(kind)
    for _ in range(steps):
        body.step()
    monkeypatch.setattr(body._team, "_part", lambda _number: None)
    body.step()
    with pytest.raises(CorruptDataError):
        body.verify()


@pytest.mark.parametrize("kind", [GatherPages, ScatterPages])
def test_it_is_found_also_where_every_turn_leaves_what_the_one_before_left_there(
    made: Callable[..., Any], kind: type[Body], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As many buffers as turns in a pass: a buffer holds the same bytes for ever.
    machine = Machine(cpu=Cpu(l3_bytes=7 * KIB), memory=Memory(available_bytes=192 * KIB))
    body = made(kind, machine=machine)
    assert len(body._batches) == len(body._staging) == 2
    body._run_turns(4)
    monkeypatch.setattr(body._team, "_part", lambda _number: None)
    body._run_turns(2)
    with pytest.raises(CorruptDataError):
        body.verify()


@each_kind
@pytest.mark.parametrize("steps", [0, 30])
@pytest.mark.parametrize("lazy", [0, 1])
def test_a_thread_that_leaves_its_share_undone_is_found(
    made: Callable[..., Any],
    kind: type[Body],
    monkeypatch: pytest.MonkeyPatch,
    lazy: int,
    steps: int,
) -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    body = made(kind, threads=2)
    for _ in range(steps):
        body.step()
    part = body._part
    monkeypatch.setattr(
        body._team, "_part", lambda number: None if number == lazy else part(number)
    )
    body.step()
    with pytest.raises(CorruptDataError):
        body.verify()


def test_a_copy_that_stops_short_inside_the_last_sector_is_found(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = made(CopyBlock, block_bytes=300 * KIB + 100)  # one range, its end inside a sector
    real = dram_bodies._libc.memcpy

    class Short:
        @staticmethod
        def memcpy(target: int, source: int, count: int) -> None:
            real(target, source, count - 50)

    monkeypatch.setattr(dram_bodies, "_libc", Short)
    body.step()
    with pytest.raises(CorruptDataError):
        body.verify()


# ---------------------------------------------------------------- memory


def test_locked_memory_is_locked_and_says_so(made: Callable[..., Any]) -> None:
    try:
        body = made(CopyBlock, memory="locked")
    except TierUnavailableError as error:
        pytest.skip(str(error))
    body.step()
    body.verify()
    observed = body.observed()
    assert observed.path.startswith("mlock, ")
    assert observed.evidence["locked_share"] == 1.0
    locked_kib = Path("/proc/self/status").read_text().split("VmLck:")[1].split()[0]
    assert int(locked_kib) * KIB >= body._source.nbytes + body._target.nbytes


def test_memory_that_turns_out_not_to_be_locked_is_not_called_so(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dram_bodies, "allocate", lambda _memory, size: mapped_buffer(size))
    body = made(CopyBlock, memory="locked")
    body.step()
    assert body.observed().path == "not locked"


def test_pinned_memory_without_cuda_is_refused_by_name() -> None:
    import torch  # noqa: PLC0415  seconds that the other tests need not wait for

    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(TierUnavailableError, match="pinned by CUDA, and torch sees no CUDA device"):
        allocate("pinned", 4096)


@each_kind
def test_a_machine_with_too_little_memory_is_told_so_before_it_is_taken(
    made: Callable[..., Any], kind: type[Body]
) -> None:
    tiny = Machine(memory=Memory(available_bytes=64 * KIB))
    message = r"2 areas of \d+ bytes are needed and only 65536 bytes of memory are available"
    with pytest.raises(TierUnavailableError, match=message):
        made(kind, machine=tiny)


@each_kind
def test_no_more_than_half_of_what_is_available_is_taken(
    made: Callable[..., Any], kind: type[Body]
) -> None:
    body = made(kind)
    areas = (body._source, body._target) if kind is CopyBlock else (body._cache, body._staging)
    assert sum(area.nbytes for area in areas) <= 1024 * KIB


@each_kind
def test_a_body_can_be_torn_down_before_it_was_set_up(kind: type[Body]) -> None:
    kind().tear_down()


def test_memory_is_taken_while_it_is_bound_to_the_node_that_was_asked_for(
    context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound: list[tuple[int, ...]] = []
    seen: list[tuple[int, ...]] = []

    @contextlib.contextmanager
    def binding(*nodes: int) -> Iterator[None]:
        bound.append(nodes)
        yield
        bound.pop()

    class Asking(CopyBlock):
        def _memory(self, size_bytes: int) -> Bytes:
            seen.append(bound[-1])
            return super()._memory(size_bytes)

    monkeypatch.setattr(dram_bodies, "bind_memory", binding)
    for node in (-1, 3):
        body = Asking()
        body.set_up(context(memory_node=node))
        body.tear_down()
    assert seen == [(), (), (3,), (3,)]


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_memory_of_a_team_on_two_nodes_is_spread_over_both(context: Callable[..., Context]) -> None:
    two = [NumaNode(index=0, cpus=CORES[:1]), NumaNode(index=1, cpus=CORES[1:])]
    machine = msgspec.structs.replace(SMALL, numa_nodes=two)
    assert nodes_of(CORES, context(machine=machine)) == [0, 1]
    assert nodes_of(CORES[:1], context(machine=machine)) == [], "one node needs no binding"


@each_kind
def test_memory_on_a_node_that_is_not_there_is_refused(
    made: Callable[..., Any], kind: type[Body]
) -> None:
    with pytest.raises(TierUnavailableError, match=r"NUMA node|refuses to bind"):
        made(kind, memory_node=1000)
