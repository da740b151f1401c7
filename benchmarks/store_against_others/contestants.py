"""Who is compared, with which settings, and how much faster than each kvbench's store has to be.

Each store is here as it comes, and with the settings that were its best on the machine where this
was written. `workers: 0` leaves a store's own default.
"""

from dataclasses import dataclass

from kvbench.units import KIB, MIB

LARGE_BYTES = 1 * MIB  # judged in bytes/s
SMALL_BYTES = 64 * KIB  # judged in operations/s


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One store with one set of options; `bars` are the wanted ratios, by block size."""

    name: str
    environment: str  # kvbench, vllm or lmcache: it has a worker of that name
    options: dict[str, str | int]
    bars: dict[int, float]


def _vllm(name: str, *, threads: int, job_blocks: int) -> Contestant:
    options: dict[str, str | int] = {"threads": threads, "job_blocks": job_blocks}
    bars = {LARGE_BYTES: 1.3}
    return Contestant(name=f"vllm fs, {name}", environment="vllm", options=options, bars=bars)


def _lmcache(name: str, **options: str | int) -> Contestant:
    bars = {LARGE_BYTES: 2.0, SMALL_BYTES: 5.0}
    return Contestant(name=f"lmcache {name}", environment="lmcache", options=options, bars=bars)


KVBENCH = Contestant(name="kvbench nvme", environment="kvbench", options={"threads": 8}, bars={})
OTHERS = (
    _vllm("4+4 threads", threads=4, job_blocks=8),
    _vllm("16+16 threads", threads=16, job_blocks=8),  # its default
    _lmcache("fs, 1 task", adapter="fs", workers=0, tasks=1),
    _lmcache("fs, 16 tasks", adapter="fs", workers=0, tasks=16),
    _lmcache("fs_native, 16 workers", adapter="fs_native", workers=16, tasks=16),
    _lmcache("raw_block", adapter="raw_block", engine="posix", workers=0, tasks=16),
    _lmcache("raw_block, 16 workers", adapter="raw_block", engine="posix", workers=16, tasks=64),
    _lmcache("raw_block, io_uring", adapter="raw_block", engine="io_uring", workers=0, tasks=16),
)
