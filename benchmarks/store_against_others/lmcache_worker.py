"""LMCache's L2 adapters, without its server or an engine, as `protocol.Store`.

The adapter gets what its server would give it: keys and memory objects in tasks of several
blocks, some tasks in flight, and event descriptors to wait on, as in `lmcache bench l2`. Run by
compare.py in an environment that holds LMCache: see README.md.
"""

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lmcache.cli.commands.bench.l2_adapter_bench.data import wait_eventfd
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import parse_args_to_l2_adapters_config
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from benchmarks.store_against_others.protocol import Blocks, Options, key, serve

HEADER_BYTES = 4096  # raw_block keeps it in front of each block
INDEX_BYTES = 64 << 20  # raw_block's room for checkpoints of its index
WAIT_S = 0.05  # the longest sleep between two looks; the event descriptor ends it at once


def adapter_spec(folder: Path, rows: Blocks, options: Options) -> dict[str, Any]:
    """The adapter's configuration, as on LMCache's own command line; 0 workers: its default."""
    kind, workers = options["adapter"], int(options["workers"])
    if kind == "raw_block":
        return _raw_block_spec(folder, rows, str(options["engine"]), workers)
    spec = {"type": kind, "base_path": str(folder), "use_odirect": True}
    # The threads of `fs` are asyncio's default pool: there is nothing to set.
    return spec | {"num_workers": workers} if workers else spec


def memory_objects(rows: Blocks) -> list[TensorMemoryObj]:
    """The rows as LMCache's own allocator would describe them."""
    block_bytes = rows.shape[1]
    return [
        TensorMemoryObj(
            raw_data=torch.from_numpy(row),
            metadata=MemoryObjMetadata(
                shape=torch.Size([block_bytes]),
                dtype=torch.uint8,
                address=index * block_bytes,
                phy_size=block_bytes,
                fmt=MemoryFormat.KV_2LTD,
                ref_count=1,
            ),
            parent_allocator=None,
        )
        for index, row in enumerate(rows)
    ]


class L2Adapter:
    """`options`: adapter, workers, tasks that share the blocks, engine of raw_block."""

    def __init__(self, folder: Path, rows: Blocks, options: Options) -> None:
        specs = [json.dumps(adapter_spec(folder, rows, options))]
        config = parse_args_to_l2_adapters_config(argparse.Namespace(l2_adapter=specs))
        self._adapter = create_l2_adapter(config.adapters[0], l1_memory_desc=None)
        keys = [ObjectKey(chunk_hash=key(i), model_name="m", kv_rank=0) for i in range(len(rows))]
        objects = memory_objects(rows)
        size = -(-len(rows) // int(options["tasks"]))
        self._tasks = [
            (keys[first : first + size], objects[first : first + size])
            for first in range(0, len(rows), size)
        ]

    @property
    def facts(self) -> dict[str, str]:
        """O_DIRECT was asked for; how much came from the drive shows whether it was got."""
        version = importlib.metadata.version("lmcache")
        return {"version": version, "direct": "asked for", "fsync": "none"}

    def write(self) -> None:
        """All tasks at once, until all are finished."""
        waiting = {self._adapter.submit_store_task(*task) for task in self._tasks}
        while waiting:
            wait_eventfd(self._adapter.get_store_event_fd(), WAIT_S)
            waiting -= self._adapter.pop_completed_store_tasks().keys()

    def look_up(self) -> int:
        """Look up, which locks."""
        tasks = [self._adapter.submit_lookup_and_lock_task(keys, {}) for keys, _ in self._tasks]
        event = self._adapter.get_lookup_and_lock_event_fd()
        return _bits(tasks, self._adapter.query_lookup_and_lock_result, event)

    def read(self) -> int:
        """All tasks at once, until all are finished; then unlock."""
        tasks = [self._adapter.submit_load_task(*task) for task in self._tasks]
        event = self._adapter.get_load_event_fd()
        loaded = _bits(tasks, self._adapter.query_load_result, event)
        for keys, _ in self._tasks:
            self._adapter.submit_unlock(keys)
        return loaded

    def close(self) -> None:
        """Its threads end."""
        self._adapter.close()


def _raw_block_spec(folder: Path, rows: Blocks, engine: str, workers: int) -> dict[str, Any]:
    blocks, block_bytes = rows.shape
    slot_bytes = block_bytes + HEADER_BYTES
    image = folder / "raw.img"
    descriptor = os.open(image, os.O_CREAT | os.O_RDWR)
    os.posix_fallocate(descriptor, 0, INDEX_BYTES + blocks * slot_bytes)
    os.close(descriptor)
    spec: dict[str, Any] = {
        "type": "raw_block",
        "device_path": str(image),
        "slot_bytes": slot_bytes,
        "meta_total_bytes": INDEX_BYTES,
        "use_odirect": True,
        "io_engine": engine,
    }
    return spec | {"num_store_workers": workers, "num_load_workers": workers} if workers else spec


def _bits(tasks: list[int], query: Callable[[int], Any], event: int) -> int:
    """The blocks for which finished tasks have a bit set, once all are finished."""
    count = 0
    while tasks:
        wait_eventfd(event, WAIT_S)
        results = [(task, query(task)) for task in tasks]
        tasks = [task for task, bits in results if bits is None]
        count += sum(bits.popcount() for _, bits in results if bits is not None)
    return count


if __name__ == "__main__":
    serve(L2Adapter)
