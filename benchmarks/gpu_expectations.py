"""What a report of `scripts/gpu_check` was expected to show, line by line; 3 if one is missed.

`python benchmarks/gpu_expectations.py REPORT`. The expectations are ratios inside one report, of
what was measured on that card; where they come from is in docs/kernels.md. A row that is not there
or was not measured as asked is a missed expectation, with its reason; so is a simulated one.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kvbench.errors import UsageError
from kvbench.measure.result import Report, Row, State, read_report
from kvbench.units import format_rate

COPY = "hbm.copy/triton/256MiB"
GATHER = "hbm.gather/"
FUSED = "hbm.gather_quantise/fp8-head/"
SWAPS = {size: f"hbm.swap/h2d/{size}/" for size in ("4KiB", "16KiB", "24KiB")}
JUDGED = (COPY, GATHER, FUSED, *SWAPS.values())  # starts of rows' ids

COPY_OF_PEAK = 0.85
GATHER_OF_COPY = 0.95
FUSED_OF_COPY = 0.90
SWAP_OF_DMA = 5.0
# cudaMemcpyBatchAsync, host to device, 4 to 24 KiB, H100: 4 to 7 GB/s reported (vllm#42212)
BATCHED_DMA_BYTES_PER_S = 5e9


class Line(NamedTuple):
    """One expectation: a ratio and the least that it should be."""

    text: str
    ratio: float | None  # None: not measured
    least: float
    why: str

    @property
    def met(self) -> bool:
        """Whether it was measured and is enough."""
        return self.ratio is not None and self.ratio >= self.least


def _measured(report: Report, start: str) -> Row | str:
    """The row whose id starts so, or why there is no figure of it."""
    row = next((row for row in report.rows if row.id.startswith(start)), None)
    if report.simulated:
        return "SIMULATED: nothing was measured"
    if row is None:
        cut = "" if report.finished_at else ", which was cut short"
        return f"{start.removesuffix('/')} is not in the report{cut}"
    if row.state is State.OK and row.bytes_per_s is not None:
        return row
    return f"{row.id} is {row.state}: {row.reason or 'no reason given'}"


def _traffic(row: Row) -> float:
    """Bytes read and written a second; 0 if the report does not tell."""
    return (row.bytes_per_s or 0) * (row.traffic_bytes or 0) / (row.payload_bytes or 1)


def _of_peak(text: str, least: float, row: Row | str) -> Line:
    """A row against the most that its memory carries."""
    if isinstance(row, str):
        return Line(text, None, least, row)
    unknown = f"no limit known: {row.missing.get('limit_bytes_per_s', 'no reason given')}"
    return Line(text, row.limit_fraction, least, row.limit_source or unknown)


def _of_other(text: str, least: float, row: Row | str, other: Row | str) -> Line:
    """Traffic of one row against another's."""
    if isinstance(row, str) or isinstance(other, str):
        return Line(text, None, least, row if isinstance(row, str) else str(other))
    untold = [each.id for each in (row, other) if not _traffic(each)]
    if untold:
        return Line(text, None, least, f"{untold[0]} does not tell its traffic")
    why = f"{format_rate(_traffic(row))} against {format_rate(_traffic(other))}"
    return Line(text, _traffic(row) / _traffic(other), least, why)


def _of_dma(text: str, least: float, row: Row | str) -> Line:
    """A row against what is reported for batched DMA."""
    if isinstance(row, str):
        return Line(text, None, least, row)
    rate = row.bytes_per_s or 0.0
    return Line(text, rate / BATCHED_DMA_BYTES_PER_S, least, format_rate(rate))


def expectations(report: Report) -> Iterator[Line]:
    """All of them, in the order of the hierarchy."""
    copy = _measured(report, COPY)
    yield _of_peak("copy of 256 MiB, of the HBM peak", COPY_OF_PEAK, copy)
    gather = _measured(report, GATHER)
    yield _of_other("gather of 32 KiB pages, of the copy", GATHER_OF_COPY, gather, copy)
    text = "gather and fp8 in one, of its bytes at the copy's rate"
    yield _of_other(text, FUSED_OF_COPY, _measured(report, FUSED), copy)
    for size, start in SWAPS.items():
        text = f"{size} blocks to the device by kernel, of 5 GB/s"
        yield _of_dma(text, SWAP_OF_DMA, _measured(report, start))


def main(arguments: Sequence[str]) -> int:
    """Print the table; 0 if all is met, 3 if not, 2 if there is no report."""
    if len(arguments) != 1:
        print("gpu_expectations: usage: gpu_expectations.py REPORT", file=sys.stderr)
        return 2
    try:
        report = read_report(Path(arguments[0]), samples=False)
    except UsageError as error:
        print(f"gpu_expectations: {error}", file=sys.stderr)
        return 2
    gpus = report.machine.visible_gpus
    card = gpus[0].name if gpus else "no GPU"
    print(f"{card}{f' · SIMULATED {report.simulated}' if report.simulated else ''}")
    lines = list(expectations(report))
    for line in lines:
        got = "    -" if line.ratio is None else f"{line.ratio:5.2f}"
        verdict = "met   " if line.met else "MISSED"
        print(f"{verdict} {got} of {line.least:<4} {line.text} ({line.why})")
    return 0 if all(line.met for line in lines) else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
