"""What a report of `scripts/gpu_check` was expected to show, line by line; 1 if one is missed.

`python benchmarks/gpu_expectations.py REPORT`. The expectations are ratios inside one report, of
what was measured on that card; where they come from is in docs/kernels.md. A row without a figure
is a missed expectation, with its reason.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvbench.measure.result import HAS_FIGURE, Report, Row, read_report
from kvbench.units import format_rate

COPY_OF_PEAK = 0.85
GATHER_OF_COPY = 0.95
FUSED_OF_COPY = 0.90
SWAP_OF_DMA = 5.0
# cudaMemcpyBatchAsync, host to device, 4 to 24 KiB, H100: 4 to 7 GB/s reported (vllm#42212)
BATCHED_DMA_BYTES_PER_S = 5e9


class Line(NamedTuple):
    """One expectation: a ratio and the least that it should be."""

    text: str
    ratio: float | None
    least: float
    why: str


def _row(report: Report, start: str) -> Row:
    found = [row for row in report.rows if row.id.startswith(start)]
    if not found:
        sys.exit(f"{start} is not in the report: make it with scripts/gpu_check")
    return found[0]


def _traffic(row: Row) -> float | None:
    """Bytes read and written a second."""
    if row.state not in HAS_FIGURE or row.bytes_per_s is None or not row.payload_bytes:
        return None
    return row.bytes_per_s * (row.traffic_bytes or 0) / row.payload_bytes


def _ratio(text: str, least: float, one: Row, other: Row) -> Line:
    """Traffic of one row against another's."""
    rates = _traffic(one), _traffic(other)
    lacking = next((row for row, rate in zip((one, other), rates, strict=True) if not rate), None)
    if lacking is not None or rates[0] is None or rates[1] is None:
        why = lacking.reason if lacking else None
        return Line(text, None, least, f"{lacking.id if lacking else ''}: {why or 'no figure'}")
    shown = [format_rate(rate) for rate in rates if rate is not None]
    return Line(text, rates[0] / rates[1], least, f"{shown[0]} against {shown[1]}")


def expectations(report: Report) -> Iterator[Line]:
    """All of them, in the order of the hierarchy."""
    copy = _row(report, "hbm.copy/triton/256MiB")
    source = copy.limit_source or "no limit known: " + copy.missing.get("limit_bytes_per_s", "")
    yield Line("copy of 256 MiB, of the HBM peak", copy.limit_fraction, COPY_OF_PEAK, source)
    gather = _row(report, "hbm.gather/")
    yield _ratio("gather of 32 KiB pages, of the copy", GATHER_OF_COPY, gather, copy)
    fused = _row(report, "hbm.gather_quantise/fp8")
    yield _ratio(
        "gather and fp8 in one, of its bytes at the copy's rate", FUSED_OF_COPY, fused, copy
    )
    for size in ("4KiB", "16KiB", "24KiB"):
        swap = _row(report, f"hbm.swap/h2d/{size}/")
        rate = swap.bytes_per_s if swap.state in HAS_FIGURE else None
        ratio = None if rate is None else rate / BATCHED_DMA_BYTES_PER_S
        why = swap.reason or "no figure" if rate is None else format_rate(rate)
        yield Line(f"{size} blocks to the device by kernel, of 5 GB/s", ratio, SWAP_OF_DMA, why)


def main() -> int:
    """Print the table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    report = read_report(Path(sys.argv[1]), samples=False)
    gpus = report.machine.visible_gpus
    card = gpus[0].name if gpus else "no GPU"
    print(f"{card}{f' · SIMULATED {report.simulated}' if report.simulated else ''}")
    missed = 0
    for line in expectations(report):
        met = line.ratio is not None and line.ratio >= line.least
        missed += not met
        got = "    -" if line.ratio is None else f"{line.ratio:5.2f}"
        print(f"{'met   ' if met else 'MISSED'} {got} of {line.least:<4} {line.text} ({line.why})")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
