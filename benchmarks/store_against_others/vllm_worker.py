"""vLLM's `fs` offloading tier, without an engine, as `protocol.Store`.

The tier gets what its engine would give it: a view of the primary tier's memory, keys made of a
block hash and a cache group, and jobs of several blocks. Run by compare.py in an environment that
holds vLLM's Python files: see README.md.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from vllm._version import __version__
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.tiering.base import TransferJob
from vllm.v1.kv_offload.tiering.fs import io
from vllm.v1.kv_offload.tiering.fs.manager import FileSystemTierManager

from benchmarks.store_against_others.protocol import Blocks, Options, key, serve

CONTEXT = ReqContext(req_id="benchmark")
POLL_S = 0.0005


def engine_spec() -> SimpleNamespace:
    """What the tier reads of its engine: one rank, one cache group."""
    parallel = SimpleNamespace(
        tp_size=1,
        pp_size=1,
        pcp_size=1,
        dcp_size=1,
        rank=0,
        data_parallel_index=0,
        is_parallelism_agnostic=True,
    )
    config = SimpleNamespace(
        groups=[],
        parallel=parallel,
        canonical_layout=False,
        replicated_layout=False,
        kv_cache_layout=None,
        model=SimpleNamespace(name="benchmark", dtype="float16"),
        cache=SimpleNamespace(tokens_per_hash=16),
    )
    return SimpleNamespace(
        config=config,
        blocks_per_chunk=1,
        kv_events_config=SimpleNamespace(enable_kv_cache_events=False),
    )


class FsTier:
    """`options`: threads for each direction, blocks in a job."""

    def __init__(self, folder: Path, rows: Blocks, options: Options) -> None:
        threads = int(options["threads"])
        self._tier = FileSystemTierManager(
            engine_spec(),
            rows.data,
            "fs",
            root_dir=str(folder),
            n_read_threads=threads,
            n_write_threads=threads,
        )
        self._keys = [make_offload_key(key(index), 0) for index in range(len(rows))]
        self._job_blocks = int(options["job_blocks"])
        self._numbers = itertools.count(1)

    @property
    def facts(self) -> dict[str, str]:
        """Which of its two I/O paths it took."""
        return {
            "version": __version__,
            "io": "compiled" if io._HAS_FSIO_C else "Python",
            "direct": "yes" if self._tier._use_o_direct else "no",
            "fsync": "none",
        }

    def write(self) -> None:
        """Store jobs, until all are finished."""
        self._run(self._tier.submit_store, loads=False)

    def look_up(self) -> int:
        """Ask until no answer is RETRY: the first only queues a look at the file system."""
        open_keys = self._keys
        found = 0
        while open_keys:
            answers = [self._tier.lookup(each, CONTEXT) for each in open_keys]
            found += answers.count(LookupResult.HIT)
            open_keys = [
                each
                for each, answer in zip(open_keys, answers, strict=True)
                if answer is LookupResult.RETRY
            ]
            if open_keys:
                self._tier.on_schedule_end(None)  # sends queued looks to the pool
                time.sleep(POLL_S)
        return found

    def read(self) -> int:
        """Load jobs, until all are finished."""
        return self._run(self._tier.submit_load, loads=True)

    def close(self) -> None:
        """Its threads end."""
        self._tier.shutdown()

    def _run(self, submit: Callable[[TransferJob], None], *, loads: bool) -> int:
        """How many blocks were in jobs that report success."""
        sizes = {}
        for first in range(0, len(self._keys), self._job_blocks):
            keys = self._keys[first : first + self._job_blocks]
            number = next(self._numbers)
            sizes[number] = len(keys)
            submit(
                TransferJob(
                    job_id=number,
                    keys=keys,
                    chunk_ids=np.arange(first, first + len(keys)),
                    is_promotion=loads,
                    req_context=CONTEXT,
                )
            )
        self._tier.drain_jobs()  # waits on a condition: no time is lost by polling
        return sum(sizes[done.job_id] for done in self._tier.get_finished_jobs() if done.success)


if __name__ == "__main__":
    serve(FsTier)
