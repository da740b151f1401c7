"""Moving bytes in time: transfers that share a path, and what hides behind computing.

Equations alone; rates come from `curve` and `tiers`. Layer-wise overlap and the load's chunks
follow the forms that Mooncake (FAST'25) and DynoSim use.
"""

import math
from collections.abc import Sequence

from kvbench.errors import UsageError
from kvbench.sim.scenario import Path


def alone_s(path: Path, size_bytes: float) -> float:
    """Seconds of a transfer that has the path for itself; nothing takes no time."""
    if size_bytes <= 0:
        return 0.0
    return path.latency_s + size_bytes / min(path.bytes_per_s, path.flow_bytes_per_s)


def shared_s(path: Path, starts_s: Sequence[float], sizes_bytes: Sequence[float]) -> list[float]:
    """When each of some transfers is done: while k run at once, each has 1/k of the path.

    A flow never has more than its own limit, and what it leaves the others may not use: rates are
    even, as in DynoSim. The latency is spent before the first byte and shares nothing.

    Raises:
        UsageError: as many starts as sizes are needed, and no size below 0.
    """
    if len(starts_s) != len(sizes_bytes) or any(size < 0 for size in sizes_bytes):
        raise UsageError(
            f"{len(starts_s)} starts and {len(sizes_bytes)} sizes: expected as many, none below 0"
        )
    done = [start if size == 0 else math.nan for start, size in zip(starts_s, sizes_bytes)]  # noqa: B905  checked above
    waiting = sorted(
        (start + path.latency_s, number)
        for number, start in enumerate(starts_s)
        if sizes_bytes[number] > 0
    )
    left: dict[int, float] = {}
    now_s = 0.0
    while waiting or left:
        if not left:
            now_s = max(now_s, waiting[0][0])
        while waiting and waiting[0][0] <= now_s:
            _, number = waiting.pop(0)
            left[number] = sizes_bytes[number]
        rate = min(path.bytes_per_s / len(left), path.flow_bytes_per_s)
        next_s = now_s + min(left.values()) / rate
        until_s = min(next_s, waiting[0][0]) if waiting else next_s
        moved = (until_s - now_s) * rate
        for number in list(left):
            left[number] -= moved
            if until_s == next_s and left[number] <= sizes_bytes[number] * 1e-12:
                del left[number]
                done[number] = until_s
        now_s = until_s
    return done


def exposed_s(transfer_s: float, prefill_s: float, layers: int) -> float:
    """What of a transfer is waited for if it goes layer by layer beside the prefill.

    All but one layer's part can hide: max(0, transfer - prefill (L - 1) / L).
    """
    return max(0.0, transfer_s - prefill_s * (layers - 1) / layers)


def quantised(path: Path, *, stored_share: float, kernel_bytes_per_s: float) -> Path:
    """The path for a cache that is stored as `stored_share` of its bytes: for those stored bytes.

    A transfer moves them and its blocks go through the kernel, one after the other; kernels of
    transfers at the same time do not wait for each other. `kernel_bytes_per_s` is the rate of
    quantising or its reverse, in bytes before quantising; infinite: it takes no time.
    """
    if math.isinf(kernel_bytes_per_s):
        return path
    alone = min(path.bytes_per_s, path.flow_bytes_per_s)
    rate = 1 / (1 / alone + 1 / (stored_share * kernel_bytes_per_s))
    return Path(latency_s=path.latency_s, bytes_per_s=path.bytes_per_s, flow_bytes_per_s=rate)


def chain(*paths: Path | None) -> Path:
    """One way made of several, gone at the same time: the slowest counts, latencies add up.

    Raises:
        UsageError: no path was given.
    """
    known = [path for path in paths if path is not None]
    if not known:
        raise UsageError("a chain of no paths: give at least one")
    return Path(
        latency_s=sum(path.latency_s for path in known),
        bytes_per_s=min(path.bytes_per_s for path in known),
        flow_bytes_per_s=min(path.flow_bytes_per_s for path in known),
    )


def pair_s(alone_s: tuple[float, float], slowed: tuple[float, float]) -> tuple[float, float]:
    """When two loads that begin together are done, if beside the other each takes `slowed` as long.

    Sharing one path evenly is (2, 2), nothing in common (1, 1). What is left of the longer one when
    the shorter is done goes on alone.
    """
    ends = alone_s[0] * slowed[0], alone_s[1] * slowed[1]
    first = min(ends)
    left = tuple(
        alone * (1 - first / end) if end > 0 else 0.0
        for alone, end in zip(alone_s, ends, strict=True)
    )
    return first + left[0], first + left[1]
