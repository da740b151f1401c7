"""What users of transformers rely on: a restored cache goes on as if it had been computed here."""

import copy
import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvbench.integrations.transformers import PrefixCache, Restored, Saved, keeping_past
from kvbench.store.api import PEER
from kvbench.store.block import Status
from kvbench.store.device import Link
from kvbench.store.dram import DramTier
from kvbench.store.faults import Fault, FaultyTier, Stuck
from kvbench.store.lease import Lease
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.integrations.models import (
    BLOCK,
    LONG,
    MODELS,
    SLOTS,
    WAIT_S,
    WINDOW,
    drive_of,
    greedy,
    namespace_of,
    new_cache,
    prefix_of,
    prompt,
    run,
    shape_of,
    store_of,
    transformers,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "integrations.md"
WINDOWED = ("mistral", "gemma3", "gemma4")


def save(prefix: PrefixCache, name: str, ids: torch.Tensor) -> None:
    """Prefill by the chunk and save all of it."""
    cache = new_cache(name)
    with keeping_past(cache):
        run(name, ids, cache)
        saved = prefix.save(cache, ids)
    assert saved.request.result(WAIT_S) == [Status.OK] * (ids.shape[1] // BLOCK)
    assert (saved.known, saved.lost) == (0, 0)


def check(name: str, ids: torch.Tensor, restored: Restored, chunk: int = BLOCK) -> None:
    """What was restored equals what is computed here by the same chunks, and so does what follows.

    Logits of the rest of the prompt bit for bit, and the tokens that the model says then.
    """
    computed = new_cache(name)
    run(name, ids[:, : restored.tokens], computed, chunk)
    assert restored.cache.get_seq_length() == restored.tokens
    for mine, own in zip(restored.cache.layers, computed.layers, strict=True):
        assert type(mine) is type(own)
        if own.keys is not None:
            assert (mine.keys.dtype, mine.values.dtype) == (own.keys.dtype, own.values.dtype)
            assert torch.equal(mine.keys, own.keys)
            assert torch.equal(mine.values, own.values)
    mine, own = copy.deepcopy(restored.cache), copy.deepcopy(computed)
    assert torch.equal(run(name, ids, mine), run(name, ids, own))
    assert greedy(name, ids, restored.cache) == greedy(name, ids, computed)


@pytest.mark.parametrize("tier", ["dram", "hbm", "nvme"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_on_from_every_tier_as_if_it_had_computed_the_prefix(
    name: str, tier: str, tmp_path: Path
) -> None:
    ids = prompt(LONG)
    store = store_of(tier, shape_of(name), tmp_path)
    save(prefix_of(name, store), name, ids)
    if tier == "nvme":
        store.close()
        store = store_of(tier, shape_of(name), tmp_path)
    with store:
        restored = prefix_of(name, store).restore(ids)
    assert (restored.tokens, restored.ended) == (4 * BLOCK, None)
    assert restored.tiers == (tier,) * 4
    check(name, ids, restored)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_that_only_begins_alike_gets_the_blocks_they_share(name: str) -> None:
    ids = prompt(LONG)
    other = torch.cat((ids[:, : 2 * BLOCK + 3], prompt(BLOCK, seed=2)), dim=1)
    with store_of("dram", shape_of(name), Path()) as store:
        prefix = prefix_of(name, store)
        save(prefix, name, ids)
        restored = prefix.restore(other)
    assert (restored.tokens, restored.ended) == (2 * BLOCK, Status.MISS)
    check(name, other, restored)


def test_one_token_at_least_is_left_to_compute() -> None:
    with store_of("dram", shape_of("llama"), Path()) as store:
        prefix = prefix_of("llama", store)
        save(prefix, "llama", prompt(4 * BLOCK))
        restored = prefix.restore(prompt(4 * BLOCK))
        assert (restored.tokens, restored.ended) == (3 * BLOCK, None)
        assert prefix.restore(prompt(4 * BLOCK)[:, : BLOCK + 1]).tokens == BLOCK
        for tokens in (0, 1, BLOCK):
            assert prefix.restore(prompt(4 * BLOCK)[:, :tokens]).tokens == 0
    check("llama", prompt(4 * BLOCK), restored)


def test_what_is_generated_is_found_by_the_next_turn_of_a_conversation() -> None:
    ids = prompt(BLOCK + 3)
    with store_of("dram", shape_of("gemma3"), Path()) as store:
        prefix = prefix_of("gemma3", store)
        cache = new_cache("gemma3")
        with keeping_past(cache):
            said = greedy("gemma3", ids, cache, tokens=2 * BLOCK)
            turn = torch.cat((ids, torch.tensor([said]), prompt(4, seed=3)), dim=1)
            prefix.save(cache, turn).request.result(WAIT_S)
        restored = prefix.restore(turn)
    assert restored.tokens == 3 * BLOCK
    for mine, own in zip(restored.cache.layers, cache.layers, strict=True):
        kept = own.keys[:, :, : 3 * BLOCK - cache.get_seq_length()]
        assert torch.equal(mine.keys[:, :, -kept.shape[2] :], kept)


@pytest.mark.parametrize("other", ["revision", "dtype", "salt", "extra"])
def test_another_namespace_finds_nothing(other: str) -> None:
    ids, shape = prompt(LONG), shape_of("llama")
    first, *others = shape.layers
    half = replace(first, keys=replace(first.keys, dtype=torch.float16))
    halves = replace(shape, layers=(half, *others))
    namespace = {
        "revision": namespace_of(shape, revision="2"),
        "dtype": namespace_of(halves),
        "salt": shape.namespace(model="small", revision="1", salt=b"tenant"),
        "extra": namespace_of(shape),
    }[other]
    with store_of("dram", shape, Path()) as store:
        save(prefix_of("llama", store), "llama", ids)
        extra = b"lora" if other == "extra" else b""
        restored = PrefixCache(store, shape, namespace).restore(ids, extra=extra)
        assert (restored.tokens, restored.ended) == (0, Status.MISS)
    check("llama", ids, restored)


@pytest.mark.parametrize("name", ["llama", "gemma4", "deepseek_v3"])
def test_a_block_that_is_damaged_on_disk_ends_the_prefix_before_it(
    name: str, tmp_path: Path
) -> None:
    ids = prompt(LONG)
    with store_of("nvme", shape_of(name), tmp_path) as store:
        prefix = prefix_of(name, store)
        save(prefix, name, ids)
        row = np.empty((1, store.layout.block_bytes), np.uint8)
        assert store.get_into(prefix.keys(ids)[2:3], row).result(WAIT_S) == [Status.OK]
    flip_in_file(tmp_path, row[0].tobytes())
    with store_of("nvme", shape_of(name), tmp_path) as store:
        restored = prefix_of(name, store).restore(ids)
    assert (restored.tokens, restored.ended) == (2 * BLOCK, Status.CORRUPT)
    check(name, ids, restored)


def flip_in_file(folder: Path, payload: bytes) -> None:
    """Flip a bit in the middle of the one place on disk that holds these bytes."""
    (path,) = [
        each for each in folder.rglob("*") if each.is_file() and payload in each.read_bytes()
    ]
    content = path.read_bytes()
    place = content.index(payload) + len(payload) // 2
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([content[place] ^ 1]))


def test_with_a_deadline_of_0_the_store_is_not_asked_and_everything_computed() -> None:
    with store_of("dram", shape_of("gemma3"), Path()) as store:
        prefix = prefix_of("gemma3", store)
        save(prefix, "gemma3", prompt(LONG))
        restored = prefix.restore(prompt(LONG), deadline_s=0)
        assert (restored.tokens, restored.ended) == (0, Status.TIMEOUT)
        stats = store.stats()
        assert stats.counters["deadline_misses"].blocks == 0
        assert stats.tiers["dram"].counters["hits"].blocks == 0
    check("gemma3", prompt(LONG), restored)


def test_a_drive_that_hangs_costs_the_deadline_and_the_model_goes_on_without_it(
    tmp_path: Path,
) -> None:
    ids, shape = prompt(LONG), shape_of("llama")
    with store_of("nvme", shape, tmp_path) as store:
        save(prefix_of("llama", store), "llama", ids)
    stuck = Stuck()
    drive = FaultyTier(drive_of(shape, tmp_path), stalls=True)
    drive.add(Fault(operation="read", kind=stuck, times=None))
    with TieredStore([DramTier(shape.layout, SLOTS), drive]) as store:
        prefix = prefix_of("llama", store)
        late = prefix.restore(ids, deadline_s=0.05)
        assert (late.tokens, late.ended) == (0, Status.TIMEOUT)
        check("llama", ids, late)
        stuck.release.set()
        assert prefix.restore(ids).tokens == 4 * BLOCK  # it was not a MISS


def test_a_store_with_no_lease_to_spare_is_busy_and_everything_is_computed() -> None:
    ids, shape = prompt(LONG), shape_of("llama")
    options = Options(most_leases=1)
    with TieredStore([DramTier(shape.layout, SLOTS)], options) as store:
        prefix = prefix_of("llama", store)
        save(prefix, "llama", ids)
        with store.lookup(prefix.keys(ids)):
            restored = prefix.restore(ids)
        assert (restored.tokens, restored.ended) == (0, Status.BUSY)
        assert prefix.restore(ids).tokens == 4 * BLOCK
    check("llama", ids, restored)


@pytest.mark.parametrize("name", WINDOWED)
def test_tokens_that_left_a_window_are_not_saved_and_it_is_said_once(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = prompt(4 * BLOCK)  # the last of the four blocks is in the window still
    with store_of("dram", shape_of(name), Path()) as store:
        prefix = prefix_of(name, store)
        cache = new_cache(name)
        run(name, ids, cache)
        for _ in range(2):
            saved = prefix.save(cache, ids)
            assert (saved.known, saved.request.result(WAIT_S), saved.lost) == (0, [], 4)
        assert prefix.restore(ids).tokens == 0
    (said,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "4 blocks were not saved" in said
    assert "keeping_past" in said


class Hinting(TieredStore):
    """A store with a peer that is believed to have every block."""

    def lookup(
        self, keys: Sequence[bytes], *, owner: str = "", ttl_s: float | None = None
    ) -> Lease:
        here = super().lookup(keys, owner=owner, ttl_s=ttl_s)
        tiers = (*here.tiers, *(PEER,) * (len(keys) - len(here)))
        return Lease(
            tuple(keys), tiers, [], owner=owner, ttl_s=here.ttl_s, release=lambda _: here.release()
        )


def test_what_a_peer_is_believed_to_have_is_not_taken_for_saved() -> None:
    (name, *_) = WINDOWED
    ids = prompt(4 * BLOCK)
    with Hinting([DramTier(shape_of(name).layout, SLOTS)]) as store:
        cache = new_cache(name)
        run(name, ids, cache)  # the first blocks left the window: they are nowhere here
        saved = prefix_of(name, store).save(cache, ids)
        assert (saved.known, saved.lost) == (0, 4)


@pytest.mark.parametrize("chunk", [BLOCK, WINDOW - BLOCK])
@pytest.mark.parametrize("name", WINDOWED)
def test_a_cache_with_windows_can_be_saved_as_it_grows(name: str, chunk: int) -> None:
    ids = prompt(LONG)
    # A worker that hangs: blocks of the first chunk are on their way when the others are saved.
    stuck = Stuck()
    tier = FaultyTier(DramTier(shape_of(name).layout, SLOTS))
    tier.add(Fault(operation="write", kind=stuck))
    with TieredStore([tier]) as store:
        prefix = prefix_of(name, store)
        cache = new_cache(name)
        saves: list[Saved] = []
        for end in range(chunk, LONG, chunk):
            run(name, ids[:, :end], cache, chunk)
            saved = prefix.save(cache, ids, tenant="acme")
            assert saved.lost == 0
            assert saved.known + len(saved.request.statuses) == end // BLOCK
            saves.append(saved)
        assert saves[-1].known >= 3  # a window does not hold two whole blocks
        stuck.release.set()
        assert {each for saved in saves for each in saved.request.result(WAIT_S)} == {Status.OK}
        restored = prefix.restore(ids)
        told = {event.key: event for event in store.events().events}
        keys = prefix.keys(ids)
    assert restored.tokens == 4 * BLOCK
    check(name, ids, restored, chunk)
    for at, (key, before) in enumerate(zip(keys, [None, *keys[:-1]], strict=True)):
        event = told[key]
        assert (event.parent, event.position, event.tenant) == (before, at, "acme")


@pytest.mark.parametrize("name", MODELS)
def test_keeping_the_past_changes_nothing_of_what_a_model_says(name: str) -> None:
    ids = prompt(LONG)
    kept, plain = new_cache(name), new_cache(name)
    with keeping_past(kept):
        logits = run(name, ids[:, : 4 * BLOCK], kept)
    assert torch.equal(logits, run(name, ids[:, : 4 * BLOCK], plain))
    for mine, own in zip(kept.layers, plain.layers, strict=True):
        assert (mine.keys is None) or torch.equal(mine.keys, own.keys)
    assert torch.equal(run(name, ids, kept), run(name, ids, plain))
    for mine, own in zip(kept.layers, plain.layers, strict=True):
        assert (mine.keys is None) or mine.keys.shape == own.keys.shape  # no longer kept


def test_keeping_the_past_of_a_cache_that_stays_empty_is_no_error() -> None:
    cache = new_cache("gemma3")
    with keeping_past(cache):
        pass
    assert cache.get_seq_length() == 0


def test_a_cache_without_windows_for_a_model_with_some_is_saved_whole() -> None:
    ids = prompt(LONG)
    with store_of("dram", shape_of("gemma3"), Path()) as store:
        prefix = prefix_of("gemma3", store)
        cache = transformers.DynamicCache()  # no config: it keeps every token of every layer
        run("gemma3", ids, cache)
        saved = prefix.save(cache, ids)
        assert saved.request.result(WAIT_S) == [Status.OK] * 4
        restored = prefix.restore(ids)
    kept = restored.cache.layers[0].keys
    assert torch.equal(kept, cache.layers[0].keys[:, :, : restored.tokens][:, :, -WINDOW + 1 :])


def test_what_is_in_the_store_is_not_saved_again() -> None:
    ids = prompt(LONG)
    with store_of("dram", shape_of("llama"), Path()) as store:
        prefix = prefix_of("llama", store)
        save(prefix, "llama", ids)
        save(prefix, "llama", ids)
        assert store.stats().tiers["dram"].counters["stored"].blocks == 4


def test_a_cache_may_be_used_on_while_it_is_being_saved() -> None:
    ids, shape = prompt(2 * BLOCK + 1), shape_of("gemma3")
    stuck = Stuck()
    tier = FaultyTier(DramTier(shape.layout, SLOTS))
    tier.add(Fault(operation="write", kind=stuck))
    with TieredStore([tier], Options(memory_threads=1)) as store:
        prefix = prefix_of("gemma3", store)
        other = new_cache("gemma3")
        run("gemma3", prompt(BLOCK, seed=5), other)
        first = prefix.save(other, prompt(BLOCK, seed=5))
        assert stuck.reached.wait(WAIT_S)  # the only worker hangs: nothing is read from now on
        cache = new_cache("gemma3")
        with keeping_past(cache):
            run("gemma3", ids, cache)
            saved = prefix.save(cache, ids)
        greedy("gemma3", ids[:, : 2 * BLOCK + 1], cache)
        cache.reset()
        assert not saved.request.done()
        stuck.release.set()
        assert first.request.result(WAIT_S) + saved.request.result(WAIT_S) == [Status.OK] * 3
        restored = prefix.restore(ids)
    assert restored.tokens == 2 * BLOCK
    check("gemma3", ids, restored)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_inference_mode_is_as_good_as_any(name: str) -> None:
    ids = prompt(LONG)
    with torch.inference_mode(), store_of("dram", shape_of(name), Path()) as store:
        prefix = prefix_of(name, store)
        save(prefix, name, ids)
        restored = prefix.restore(ids)
        assert restored.tokens == 4 * BLOCK
        check(name, ids, restored)


@pytest.mark.parametrize("name", ["llama", "gemma4"])
def test_the_steps_of_a_gpu_give_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, shape = prompt(LONG), shape_of(name)
    with store_of("dram", shape, Path()) as store:
        prefix = prefix_of(name, store)
        save(prefix, name, ids)
        on_host = np.empty((4, shape.layout.block_bytes), np.uint8)
        store.get_into(prefix.keys(ids), on_host).result(WAIT_S)
    with store_of("dram", shape, Path()) as store:
        prefix = prefix_of(name, store)
        # On a GPU blocks are put together in its memory and copied by a link; here in host memory.
        monkeypatch.setattr(prefix, "_link", Link("cpu", shape.layout.block_bytes))
        save(prefix, name, ids)
        linked = np.empty((4, shape.layout.block_bytes), np.uint8)
        store.get_into(prefix.keys(ids), linked).result(WAIT_S)
        restored = prefix.restore(ids)
    assert (linked == on_host).all()
    check(name, ids, restored)


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma4"])
def test_a_cache_can_be_read_layer_by_layer(
    name: str, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, shape = prompt(LONG), shape_of(name)
    with store_of("dram", shape, Path()) as store:
        prefix = prefix_of(name, store)
        save(prefix, name, ids)
        monkeypatch.setattr(store, "get_into", partial(store.get_into, by_layer=True))
        if linked:
            monkeypatch.setattr(prefix, "_link", Link("cpu", shape.layout.block_bytes))
        restored = prefix.restore(ids)
    assert restored.tokens == 4 * BLOCK
    check(name, ids, restored)


def test_a_block_holds_one_layer_after_the_other_and_each_is_a_part() -> None:
    ids = prompt(LONG)
    shape = shape_of("llama")
    assert shape.layout.parts == 3
    assert shape.layout.block_bytes == BLOCK * shape.token_bytes == BLOCK * 3 * 2 * 2 * 8 * 2
    with store_of("dram", shape, Path()) as store:
        prefix = prefix_of("llama", store)
        save(prefix, "llama", ids)
        rows = np.empty((1, shape.layout.block_bytes), np.uint8)
        request = store.get_into(prefix.keys(ids)[1:2], rows, by_layer=True)
        assert request.layer(1).wait(WAIT_S)
        layer = prefix.restore(ids).cache.layers[1]
        own = torch.cat(
            [each[0, :, BLOCK : 2 * BLOCK].flatten() for each in (layer.keys, layer.values)]
        )
        assert shape.layout.part(rows[0], 1).tobytes() == own.view(torch.uint8).numpy().tobytes()


def test_tokens_may_be_a_list_an_array_or_a_tensor() -> None:
    ids = prompt(LONG)
    with store_of("dram", shape_of("llama"), Path()) as store:
        prefix = prefix_of("llama", store)
        save(prefix, "llama", ids)
        for same in (ids[0], ids[0].tolist(), ids.numpy(), ids[0].numpy()):
            assert prefix.restore(same).tokens == 4 * BLOCK


def test_the_example_in_the_document_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, str(DOCUMENT), "exec"), names)
    assert names["restored"].tokens == 96
    assert names["answer"].shape == (1, 108)
