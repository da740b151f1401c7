"""Copying with checksums: the same bytes and the same XXH3-64 as by two separate passes."""

import functools
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvbench.store import copying, xxh3
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import STREAM_BYTES, copy_with_sums, sums_of

GUARD = 0xA5
# Around every turn that the hash takes: where short inputs end, a stripe, a block of the hash, and
# where copies begin to stream.
PART_BYTES = [1, 64, 240, 241, 255, 256, 257, 319, 320, 321, 1023, 1024, 1025, 1087, 1088, 1089]
PART_BYTES += [2048, 2049, 4096, STREAM_BYTES - 64, STREAM_BYTES, STREAM_BYTES + 1, 100_003]


def blocks(count: int, size: int, seed: int = 1) -> list[Bytes]:
    """Random blocks."""
    return list(np.random.default_rng(seed).integers(0, 256, (count, size), dtype=np.uint8))


def room(count: int, size: int, misaligned: int) -> tuple[list[Bytes], list[Bytes]]:
    """Targets so many bytes past a cache line, and the guarded arrays that they lie in."""
    whole = [np.full(size + 192, GUARD, dtype=np.uint8) for _ in range(count)]
    starts = [64 + -(each.ctypes.data) % 64 + misaligned for each in whole]
    return [each[at : at + size] for each, at in zip(whole, starts, strict=True)], whole


def expected(payload: Bytes, layout: Layout) -> bytes:
    """XXH3-64 of each part, by the xxhash package."""
    sums = [
        xxhash.xxh3_64_intdigest(layout.part(payload, part).tobytes())
        for part in range(layout.parts)
    ]
    return b"".join(each.to_bytes(8, "little") for each in sums)


@pytest.mark.parametrize("misaligned", [0, 1, 32])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("part_bytes", PART_BYTES)
def test_a_copy_is_the_block_and_its_checksums_are_xxh3(
    part_bytes: int, parts: int, misaligned: int
) -> None:
    layout = Layout(part_bytes * parts, parts)
    sources = blocks(3, layout.block_bytes)
    targets, whole = room(3, layout.block_bytes, misaligned)
    wanted = [expected(each, layout) for each in sources]
    assert copy_with_sums(sources, targets, layout) == wanted
    assert all((target == source).all() for target, source in zip(targets, sources, strict=True))
    for each, target in zip(whole, targets, strict=True):
        target[:] = GUARD
        assert (each == GUARD).all(), "something beside the target was written"
    assert sums_of(sources, layout) == wanted


@given(st.integers(241, 5000), st.integers(1, 4), st.integers(0, 63))
def test_any_size_is_hashed_as_by_the_package(part_bytes: int, parts: int, misaligned: int) -> None:
    layout = Layout(part_bytes * parts, parts)
    sources = blocks(2, layout.block_bytes, seed=part_bytes)
    targets, _ = room(2, layout.block_bytes, misaligned)
    wanted = [expected(each, layout) for each in sources]
    assert copy_with_sums(sources, targets, layout) == wanted == sums_of(targets, layout)


def test_without_the_compiler_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(3 * 4096, 3)
    sources, (targets, _) = blocks(2, layout.block_bytes), room(2, layout.block_bytes, 0)
    with_it = sums_of(sources, layout)
    monkeypatch.setattr(copying, "kernel", lambda: None)
    assert copy_with_sums(sources, targets, layout) == with_it == sums_of(sources, layout)
    assert all((target == source).all() for target, source in zip(targets, sources, strict=True))


def test_a_missing_compiler_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    assert xxh3._compiled.__wrapped__() is None


def test_this_machine_compiles_the_kernel() -> None:
    assert xxh3.kernel() is not None


def test_nothing_is_copied_for_no_blocks() -> None:
    assert copy_with_sums([], [], Layout(4096)) == sums_of([], Layout(4096)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        lambda size: np.zeros(size - 1, np.uint8),
        lambda size: np.zeros(size + 1, np.uint8),
        lambda size: np.zeros(2 * size, np.uint8)[::2],
    ],
    ids=["short", "long", "scattered"],
)
def test_memory_of_another_shape_is_refused_before_anything_is_copied(
    wrong: Callable[[int], Bytes],
) -> None:
    layout = Layout(4096)
    good, (targets, _) = blocks(2, 4096), room(2, 4096, 0)
    for sources, into in (([good[0], wrong(4096)], targets), (good, [targets[0], wrong(4096)])):
        with pytest.raises(ValueError, match="expected 4096, contiguous"):
            copy_with_sums(sources, into, layout)
    with pytest.raises(ValueError, match="2 blocks for 1 targets"):
        copy_with_sums(good, targets[:1], layout)
    assert (targets[0] == GUARD).all()


def test_threads_do_not_disturb_each_other() -> None:
    layout = Layout(STREAM_BYTES)
    sources = blocks(16, layout.block_bytes)
    wanted = [expected(each, layout) for each in sources]
    wrong: list[int] = []

    def work(number: int) -> None:
        targets, _ = room(16, layout.block_bytes, 0)
        for _ in range(20):
            sums = copy_with_sums(sources, targets, layout)
            same = all((a == b).all() for a, b in zip(sources, targets, strict=True))
            if sums != wanted or not same:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_threads_that_come_first_together_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    @functools.cache
    def slow() -> None:
        compiled.append(threading.get_ident())
        together.wait(0.2)

    together = threading.Event()
    monkeypatch.setattr(xxh3, "_compiled", slow)
    threads = [threading.Thread(target=xxh3.kernel) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == 1
