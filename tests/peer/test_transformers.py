"""Two processes with a model each: one answers with the prefix that the other has computed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench.integrations.transformers import PrefixCache
from kvbench.peer import connect
from kvbench.peer.service import PeerService
from tests.integrations.models import (
    BLOCK,
    LONG,
    SLOTS,
    greedy,
    model_of,
    namespace_of,
    new_cache,
    prompt,
    run,
    shape_of,
)
from tests.peer.eventful import eventually
from tests.peer.sidecar import LEASE_S, PATIENCE_S

pytest.importorskip("zenoh")
ROOT = Path(__file__).parents[2]
BLOCKS = LONG // BLOCK


def toml(folder: Path, model: str, peer: str, join: str = "") -> Path:
    """A peer of a model's blocks."""
    shape = shape_of(model)
    layout = shape.layout
    file = folder / f"{peer}.toml"
    file.write_text(
        f"name = '{peer}'\n"
        f"[store]\nblock = {layout.block_bytes}\nparts = {layout.parts}\n"
        f"dram = {SLOTS * layout.block_bytes}\n"
        f"[[namespace]]\ndigest = '{namespace_of(shape).digest.hex()}'\n"
        f"[cluster]\nlease_s = {LEASE_S}\njoin = {[join] if join else []}\n"
        f"[fetch]\ndeadline_s = {PATIENCE_S}\nkeep = 'never'\n",
        encoding="utf-8",
    )
    return file


@contextmanager
def other(model: str, config: Path) -> Iterator[dict[str, Any]]:
    """The process that has computed the prefix, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.peer.one_model", model, str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@contextmanager
def tokens_run(model: str) -> Iterator[list[int]]:
    """How many tokens each call of the model was given."""
    counts: list[int] = []

    def count(_: object, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        counts.append(kwargs["input_ids"].shape[1])

    hook = model_of(model).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


def knows(service: PeerService, keys: list[bytes]) -> bool:
    """Whether it has become known that these blocks can be had."""

    def known() -> bool:
        with service.store.lookup(keys) as lease:
            return len(lease) == len(keys)

    return eventually(known, PATIENCE_S)


@pytest.mark.parametrize("model", ["llama", "gemma4", "deepseek_v3"])
def test_a_model_answers_with_the_prefix_that_another_process_computed(
    model: str, tmp_path: Path
) -> None:
    ids, shape = prompt(LONG), shape_of(model)
    with other(model, toml(tmp_path, model, "a")) as a:
        assert a["saved"] == BLOCKS
        with connect(toml(tmp_path, model, "b", a["join"])) as service:
            prefix = PrefixCache(service.store, shape, namespace_of(shape))
            assert knows(service, prefix.keys(ids))
            restored = prefix.restore(ids)
            incoming, own = service.status().incoming, service.status().tiers["dram"]
        assert (restored.tokens, restored.ended) == (BLOCKS * BLOCK, None)
        assert restored.tiers == ("peer",) * BLOCKS
        (line,) = incoming.peers.values()
        assert (incoming.asked, incoming.arrived, own.blocks) == (BLOCKS, BLOCKS, 0)
        assert (line.name, sum(way.blocks for way in line.paths.values())) == ("a", BLOCKS)

        with tokens_run(model) as counts:
            logits = run(model, ids, restored.cache)
        assert counts == [LONG - BLOCKS * BLOCK], "nothing of the prefix was computed again"
        computed = new_cache(model)
        assert torch.equal(logits, run(model, ids, computed))
        assert logits.float().numpy().tobytes().hex() == a["logits"]
        assert greedy(model, ids, restored.cache) == greedy(model, ids, computed)
