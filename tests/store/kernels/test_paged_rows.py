"""Blocks of a paged cache come and go whole, by layer, in any order, and touch nothing else."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Status
from kvbench.store.device import PagedCache, PagedRows
from kvbench.store.dram import DramTier
from kvbench.store.options import Options
from kvbench.store.rows import Rows
from kvbench.store.store import TieredStore
from kvbench_kernels import pointers

LAYERS, PAGES, PAGE_BYTES = 3, 12, 48
WAIT_S = 60.0
Layers = list[tuple[torch.Tensor, ...]]


def random_bytes(*shape: int, device: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)


def parts_of(arrangement: str, whole: list[torch.Tensor]) -> Layers:
    """The parts of each layer's tensor, as `address_table` wants them."""
    if arrangement == "K then V":
        return [(each[0], each[1]) for each in whole]
    if arrangement == "K and V in turn":
        return [(each[:, 0], each[:, 1]) for each in whole]
    return [(each,) for each in whole]


def made(arrangement: str, device: str) -> tuple[list[torch.Tensor], Layers]:
    """The tensor of each layer, and its parts."""
    shape = {"K then V": (2, PAGES, PAGE_BYTES), "K and V in turn": (PAGES, 2, PAGE_BYTES)}
    sizes = shape.get(arrangement, (PAGES, PAGE_BYTES))
    whole = [random_bytes(*sizes, device=device, seed=layer) for layer in range(LAYERS)]
    return whole, parts_of(arrangement, whole)


ARRANGEMENTS = ("K then V", "K and V in turn", "fused")


def block_of(layers: Layers, page: int) -> Bytes:
    """A block as it has to look in host memory: layer by layer, K before V."""
    block: Bytes = torch.cat([part[page] for parts in layers for part in parts]).cpu().numpy()
    return block


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_block_is_sent_layer_by_layer_k_before_v(arrangement: str, device: str) -> None:
    _, layers = made(arrangement, device)
    cache = PagedCache(layers)
    assert cache.layout.parts == LAYERS
    rows = cache.rows([7, 0, 11])
    assert isinstance(rows, Rows)
    assert len(rows) == 3
    for index, page in ((2, 11), (0, 7), (1, 0)):
        out = np.zeros(cache.layout.block_bytes, dtype=np.uint8)
        rows.send(index, out)
        assert np.array_equal(out, block_of(layers, page))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_block_is_received_into_its_pages_and_no_other(arrangement: str, device: str) -> None:
    whole, layers = made(arrangement, device)
    before = [each.clone() for each in whole]
    cache = PagedCache(layers)
    rows = cache.rows([3, 9])
    data = np.random.default_rng(1).integers(0, 256, (2, cache.layout.block_bytes), dtype=np.uint8)
    kept = data.copy()
    rows.receive(1, None, data[1])
    rows.receive(0, None, data[0])
    data[:] = 0  # may be used again on return
    rows.finish([0, 1], None)
    assert np.array_equal(block_of(layers, 3), kept[0])
    assert np.array_equal(block_of(layers, 9), kept[1])
    others = [page for page in range(PAGES) if page not in {3, 9}]
    old = parts_of(arrangement, before)
    for page in others:
        assert np.array_equal(block_of(layers, page), block_of(old, page))


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_layer_is_there_before_those_that_follow_arrive(arrangement: str, device: str) -> None:
    _, layers = made(arrangement, device)
    cache = PagedCache(layers)
    rows, layout = cache.rows([4, 2]), cache.layout
    old = [block_of(layers, 4), block_of(layers, 2)]
    new = np.random.default_rng(2).integers(0, 256, (2, layout.block_bytes), dtype=np.uint8)
    for part in range(LAYERS):
        for index in range(2):
            rows.receive(index, part, layout.part(new[index], part))
        rows.finish([0, 1], part)
        arrived = (part + 1) * layout.part_bytes
        for index, page in enumerate((4, 2)):
            block = block_of(layers, page)
            assert np.array_equal(block[:arrived], new[index][:arrived])
            assert np.array_equal(block[arrived:], old[index][arrived:])


@pytest.mark.parametrize("part", [None, 1])
def test_more_blocks_than_the_staging_holds_are_moved_in_turns(
    part: int | None, device: str
) -> None:
    _, layers = made("K then V", device)
    cache = PagedCache(layers, staging_blocks=2)
    pages = [10, 1, 8, 3, 6, 5, 0, 11, 2]
    rows = cache.rows(pages)
    outs = [np.zeros(cache.layout.block_bytes, dtype=np.uint8) for _ in pages]
    rows.send_many(range(len(pages)), outs)
    for page, out in zip(pages, outs, strict=True):
        assert np.array_equal(out, block_of(layers, page))
    size = cache.layout.block_bytes if part is None else cache.layout.part_bytes
    data = np.random.default_rng(3).integers(0, 256, (len(pages), size), dtype=np.uint8)
    rows.receive_many(range(len(pages)), part, list(data))
    rows.finish(range(len(pages)), part)
    for page, new in zip(pages, data, strict=True):
        block = block_of(layers, page)
        assert np.array_equal(block if part is None else cache.layout.part(block, part), new)


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_store_moves_the_blocks_of_a_cache_with_one_launch_a_transfer(
    by_layer: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, layers = made("K then V", device)
    cache = PagedCache(layers)
    launched: list[str] = []

    def counted(name: str) -> Callable[..., None]:
        real: Callable[..., None] = getattr(pointers, name)

        def launch(*arguments: Any) -> None:
            launched.append(name)
            real(*arguments)

        return launch

    for name in ("gather_layers", "scatter_layers"):
        monkeypatch.setattr(pointers, name, counted(name))
    keys = [bytes([at]) * 32 for at in range(6)]
    wanted = [block_of(layers, page) for page in range(6)]
    options = Options(memory_threads=1, transfer_bytes=3 * cache.layout.block_bytes)
    with TieredStore([DramTier(cache.layout, 8)], options) as store:
        assert store.put(keys, cache.rows(range(6))).result(WAIT_S) == [Status.OK] * 6
        assert launched == ["gather_layers"] * 2
        target = cache.rows(range(6, 12))
        request = store.get_into(keys, target, by_layer=by_layer)
        assert request.result(WAIT_S) == [Status.OK] * 6
    assert launched[2:] == ["scatter_layers"] * (LAYERS if by_layer else 2)
    for page, block in enumerate(wanted):
        assert np.array_equal(block_of(layers, 6 + page), block)


@pytest.fixture
def launches_in_turn(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter patches Triton's language while a kernel runs: one kernel at a time."""
    lock = threading.Lock()

    def locked(launch: Callable[..., None]) -> Callable[..., None]:
        def one(*arguments: Any) -> None:
            with lock:
                launch(*arguments)

        return one

    if device == "cpu":
        for name in ("gather_layers", "scatter_layers"):
            monkeypatch.setattr(pointers, name, locked(getattr(pointers, name)))


@pytest.mark.usefixtures("launches_in_turn")
def test_threads_may_send_and_receive_different_rows_at_once(device: str) -> None:
    _, layers = made("K then V", device)
    cache = PagedCache(layers, staging_blocks=1)
    rows, begin = cache.rows(range(PAGES)), threading.Barrier(4)

    def work(number: int) -> bool:
        begin.wait()
        generator, well = np.random.default_rng(number), True
        for _ in range(3):
            for index in range(number, PAGES, 4):
                data = generator.integers(0, 256, cache.layout.block_bytes, dtype=np.uint8)
                rows.receive(index, None, data)
                rows.finish([index], None)
                out = np.zeros_like(data)
                rows.send(index, out)
                well &= np.array_equal(out, data)
        return well

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


class Held:
    """A copy of a link that waits the first time it was done, or before it is done, to go on."""

    def __init__(self, copy: Callable[..., None], *, before: bool) -> None:
        self.copy, self.before = copy, before
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, one: object, other: object) -> None:
        first = not self.reached.is_set()
        if first and self.before:
            self.wait()
        self.copy(one, other)
        if first and not self.before:
            self.wait()

    def wait(self) -> None:
        self.reached.set()
        assert self.go_on.wait(WAIT_S)


@pytest.mark.usefixtures("launches_in_turn")
def test_nobody_gathers_into_a_staging_that_is_still_being_copied(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, layers = made("fused", device)
    cache = PagedCache(layers, staging_blocks=1)
    rows, held = cache.rows(range(PAGES)), Held(cache.link.to_host, before=True)
    monkeypatch.setattr(cache.link, "to_host", held)
    out, other = (np.zeros(cache.layout.block_bytes, dtype=np.uint8) for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(rows.send, 5, out)
        assert held.reached.wait(WAIT_S)
        for index in range(4):
            rows.send(index, other)
        held.go_on.set()
        sending.result(WAIT_S)
    assert np.array_equal(out, block_of(layers, 5))
    assert np.array_equal(other, block_of(layers, 3))


@pytest.mark.usefixtures("launches_in_turn")
def test_nobody_copies_into_a_staging_that_is_still_to_be_scattered(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, layers = made("fused", device)
    cache = PagedCache(layers, staging_blocks=1)
    rows, held = cache.rows(range(PAGES)), Held(cache.link.to_device, before=False)
    monkeypatch.setattr(cache.link, "to_device", held)
    size = (6, cache.layout.block_bytes)
    data = np.random.default_rng(4).integers(0, 256, size, dtype=np.uint8)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(rows.receive, 5, None, data[5])
        assert held.reached.wait(WAIT_S)
        for index in range(4):
            rows.receive(index, None, data[index])
        held.go_on.set()
        receiving.result(WAIT_S)
    rows.finish(range(6), None)
    for index in (0, 1, 2, 3, 5):
        assert np.array_equal(block_of(layers, index), data[index])


@pytest.mark.parametrize("ids", [[PAGES], [-1], [2, 2]])
def test_block_ids_that_a_kernel_must_not_see_are_refused(ids: list[int], device: str) -> None:
    cache = PagedCache(made("fused", device)[1])
    with pytest.raises(UsageError, match=f"from 0 to {PAGES - 1}"):
        PagedRows(cache, ids)
