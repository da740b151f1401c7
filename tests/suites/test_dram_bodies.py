"""Work in host memory: that it is done, by whom, and that a wrong byte is found."""

import ctypes
import itertools
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.geometry import KVGeometry
from kvbench.machine import Cpu, Machine, Memory, NumaNode
from kvbench.measure.body import Context, StepBody
from kvbench.measure.pattern import Pattern, digest
from kvbench.measure.suite import Plan, Value
from kvbench.store.posix import Bytes, mapped_buffer
from kvbench_suites import dram_bodies
from kvbench_suites.dram_bodies import CopyBlock, GatherPages, ScatterPages, allocate, fill
from kvbench_suites.numa import MPOL_BIND, MPOL_DEFAULT, SET_MEMPOLICY, bind_memory
from kvbench_suites.team import Team, share_of, team_cores

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


# ---------------------------------------------------------------- sharing the work


@given(total=st.integers(0, 10**9), count=st.integers(1, 300), align=st.sampled_from([1, 64, 4096]))
def test_shares_cover_the_whole_range_once_in_order_and_nothing_else(
    total: int, count: int, align: int
) -> None:
    shares = [share_of(total, number, count, align=align) for number in range(count)]
    assert shares[0][0] == 0
    assert shares[-1][1] == total
    for (first, last), (after, _) in itertools.pairwise(shares):
        assert first <= last == after
        assert last % align == 0
    assert all(last - first <= total / count + align for first, last in shares), "no one has it all"


def test_a_team_does_each_part_once_a_step_on_a_core_of_its_own() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    seen: list[tuple[int, set[int], int]] = []
    lock = threading.Lock()

    def part(number: int) -> None:
        with lock:
            seen.append((number, os.sched_getaffinity(0), threading.get_ident()))

    cores = CORES[:2][::-1]
    team = Team(cores, part)
    for _ in range(3):
        team.step()
    team.close()
    assert sorted(number for number, *_ in seen) == [0, 0, 0, 1, 1, 1]
    assert all(where == {cores[number]} for number, where, _ in seen)
    by_number = {number: {who for n, _, who in seen if n == number} for number in (0, 1)}
    assert by_number[0] == {threading.get_ident()}, "the caller is one of the team"
    assert len(by_number[1]) == 1
    assert by_number[1] != by_number[0]


def test_the_parts_of_a_step_run_at_the_same_time() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    meeting = threading.Barrier(2, timeout=10)
    team = Team(CORES[:2], lambda _number: meeting.wait())  # alone, nobody would come
    team.step()
    team.step()
    team.close()


def test_a_step_is_over_only_when_the_slowest_part_is() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    done: list[int] = []

    def part(number: int) -> None:
        time.sleep(0.1 * number)
        done.append(number)

    team = Team(CORES[:2], part)
    team.step()
    assert sorted(done) == [0, 1]
    team.close()


def test_a_team_of_one_is_the_caller_alone_on_its_core() -> None:
    threads = threading.active_count()
    seen: list[tuple[int, int, set[int]]] = []
    team = Team(
        CORES[-1:],
        lambda number: seen.append((number, threading.get_ident(), os.sched_getaffinity(0))),
    )
    team.step()
    assert threading.active_count() == threads
    team.close()
    assert seen == [(0, threading.get_ident(), {CORES[-1]})]


@pytest.mark.parametrize("failing", [0, 1])
def test_what_a_part_raises_is_raised_by_the_step_and_the_team_can_still_go_home(
    failing: int,
) -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    threads = threading.active_count()

    def part(number: int) -> None:
        if number == failing:
            raise ZeroDivisionError(f"part {number}")

    team = Team(CORES[:2], part)
    with pytest.raises(ZeroDivisionError, match=f"part {failing}"):
        team.step()
    began_s = time.monotonic()
    team.close()
    assert time.monotonic() - began_s < 5, "nobody waits for one that will not come"
    assert threading.active_count() == threads


def test_closing_a_team_ends_its_threads() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    threads = threading.active_count()
    team = Team(CORES[:2], lambda _number: None)
    assert threading.active_count() == threads + 1
    team.close()
    assert threading.active_count() == threads


def test_more_threads_than_cores_are_refused(context: Callable[..., Context]) -> None:
    many = len(CORES) + 1
    with pytest.raises(
        TierUnavailableError,
        match=f"{many} threads need as many cores and this process may use {len(CORES)}$",
    ):
        team_cores(context(threads=many))
    assert team_cores(context(threads=len(CORES))) == CORES


def test_cores_are_those_of_the_node_that_was_asked_for(context: Callable[..., Context]) -> None:
    nodes = [NumaNode(index=0, cpus=[999]), NumaNode(index=3, cpus=[CORES[-1], 998])]
    machine = Machine(numa_nodes=nodes)
    assert team_cores(context(machine=machine, cpu_node=3)) == [CORES[-1]]
    with pytest.raises(TierUnavailableError, match=r"may use 0 of NUMA node 0$"):
        team_cores(context(machine=machine, cpu_node=0))


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


# ---------------------------------------------------------------- NUMA


def policy() -> tuple[int, int]:
    """The calling thread's memory policy and the nodes in it, from the kernel."""
    get_mempolicy = {"x86_64": 239, "aarch64": 236}[platform.machine()]
    mode, mask = ctypes.c_int(-1), (ctypes.c_ulong * 16)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(get_mempolicy, ctypes.byref(mode), mask, 1024, None, 0) != 0:
        pytest.skip(f"get_mempolicy: {os.strerror(ctypes.get_errno())}")
    return mode.value, mask[0]


needs_numa = pytest.mark.skipif(
    platform.machine() not in SET_MEMPOLICY or not Path("/sys/devices/system/node/node0").is_dir(),
    reason="no NUMA node 0 in /sys",
)


@needs_numa
def test_memory_is_bound_to_the_node_inside_the_block_and_nowhere_after_it() -> None:
    assert policy() == (MPOL_DEFAULT, 0)
    with bind_memory(0):
        assert policy() == (MPOL_BIND, 1)
        assert np.ones(1 << 20, dtype=np.uint8).all(), "and can be touched"
    assert policy() == (MPOL_DEFAULT, 0)
    with pytest.raises(ZeroDivisionError), bind_memory(0):
        raise ZeroDivisionError
    assert policy() == (MPOL_DEFAULT, 0)


@needs_numa
def test_no_node_changes_nothing() -> None:
    with bind_memory(None):
        assert policy() == (MPOL_DEFAULT, 0)


@needs_numa
@pytest.mark.parametrize("node", [1000, 1023, 1024, 5000, -2])
def test_a_node_that_is_not_there_is_refused_and_the_block_not_entered(node: int) -> None:
    with pytest.raises(TierUnavailableError, match=r"NUMA node|refuses to bind"), bind_memory(node):
        pytest.fail("entered")
    assert policy() == (MPOL_DEFAULT, 0)


def test_an_architecture_that_is_not_known_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TierUnavailableError, match="not known on riscv64"), bind_memory(0):
        pytest.fail("entered")


@needs_numa
def test_a_body_takes_its_memory_bound_to_the_node_and_leaves_the_policy_as_it_was(
    context: Callable[..., Context],
) -> None:
    seen: list[tuple[int, int]] = []

    class Asking(CopyBlock):
        def _memory(self, size_bytes: int) -> Bytes:
            seen.append(policy())
            return super()._memory(size_bytes)

    body = Asking()
    body.set_up(context(memory_node=0))
    body.step()
    body.verify()
    body.tear_down()
    assert seen == [(MPOL_BIND, 1)] * 2
    assert policy() == (MPOL_DEFAULT, 0)


@needs_numa
@each_kind
def test_a_body_on_a_node_that_is_not_there_is_refused(
    made: Callable[..., Any], kind: type[Body]
) -> None:
    with pytest.raises(TierUnavailableError, match=r"NUMA node|refuses to bind"):
        made(kind, memory_node=1000)
