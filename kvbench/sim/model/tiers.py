"""Curves of all tiers of a machine: measured ones of a kvbench report, or a data sheet's.

A curve is named by its tier and direction: `dram.read` leads from host memory to the GPU. Where a
report has no GPU the host's own copies stand for it, and the curve says so. Curves of the store's
API, with checksums, are `store.dram.get` and the like.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from kvbench.errors import UsageError
from kvbench.measure.result import HAS_FIGURE, Report, Row, State
from kvbench.sim.model.curve import Curve, Point, fit
from kvbench.sim.model.hardware import Efficiency, Hardware, catalogue
from kvbench.sim.model.hardware import drive as find_drive
from kvbench.sim.model.prediction import Prediction
from kvbench.sim.scenario import Path

DMA_LATENCY_S = 10e-6  # of one pinned copy; cudaMemcpyAsync and its wait, typical (recalled)
NETWORK_LATENCY_S = 5e-6  # RDMA with its software, typical (recalled)
_HOST = "no GPU in it: copies in host memory"
# Curve → the rows that it is fitted to: id's operation, and the parameters that they must have.
# The first line with rows wins, so that the host's own copies come after the GPU's link.
_ROWS: tuple[tuple[str, str, Mapping[str, object], str], ...] = (
    ("hbm.read", "hbm.copy", {}, ""),
    ("dram.read", "hbm.transfer", {"direction": "h2d", "memory": "pinned"}, ""),
    ("dram.write", "hbm.transfer", {"direction": "d2h", "memory": "pinned"}, ""),
    ("dram.read", "dram.copy", {"memory": "locked"}, _HOST),
    ("dram.read", "dram.copy", {}, _HOST),
    ("dram.write", "dram.copy", {"memory": "locked"}, _HOST),
    ("dram.write", "dram.copy", {}, _HOST),
    ("nvme.read", "nvme.read", {"engine": "posix", "memory": "host"}, ""),
    ("nvme.read", "nvme.read", {}, ""),
    ("nvme.write", "nvme.write", {"engine": "posix", "memory": "host", "fsync": False}, ""),
    ("nvme.write", "nvme.write", {}, ""),
    ("peer.read", "peer.get", {"holders": 1}, ""),
    ("peer.read", "peer.get", {}, ""),
    *(
        (f"store.{tier}.{verb}", f"{tier}.{verb}", {}, "")
        for tier in ("hbm", "dram", "nvme")
        for verb in ("get", "put")
    ),
)


class Tiers(msgspec.Struct, frozen=True, kw_only=True):
    """What moves how fast on one machine. `missing` says of each absent curve why."""

    name: str
    kind: str  # "measured" | "simulated" | "datasheet" | "mixed"
    curves: dict[str, Curve]
    missing: dict[str, str] = {}

    def curve(self, name: str) -> Curve:
        """One curve.

        Raises:
            UsageError: it is absent; the message says why and what there is.
        """
        found = self.curves.get(name)
        if found is not None:
            return found
        why = self.missing.get(name, "no such curve")
        have = ", ".join(self.curves) or "nothing"
        raise UsageError(f"{self.name} has no {name}: {why}; it has {have}")

    def path(self, name: str, *, block_bytes: int, queue_depth: int = 16) -> Path:
        """A curve as the simulator takes it."""
        return self.curve(name).path(block_bytes=block_bytes, depth=queue_depth)

    def seconds(
        self,
        name: str,
        size_bytes: float,
        *,
        block_bytes: int,
        queue_depth: int = 16,
        sharing: int = 1,
    ) -> Prediction:
        """To move `size_bytes` while `sharing` such transfers run at once, evenly served."""
        curve = self.curve(name)
        alone = curve.seconds(size_bytes, block_bytes=block_bytes, depth=queue_depth)
        if sharing == 1:
            return alone
        together = sharing * size_bytes * curve.s_of_byte(block_bytes, 1, queue_depth * sharing)
        factor = max(1.0, together / alone.value)
        return msgspec.structs.replace(
            alone, value=alone.value * factor, low=alone.low * factor, high=alone.high * factor
        )

    def with_defaults(self, other: "Tiers") -> "Tiers":
        """This, and of `other` what is absent here; the name says so."""
        more = {name: curve for name, curve in other.curves.items() if name not in self.curves}
        if not more:
            return self
        return Tiers(
            name=f"{self.name}; {', '.join(more)}: {other.name}",
            kind=self.kind if self.kind == other.kind else "mixed",
            curves={**self.curves, **more},
            missing={name: why for name, why in self.missing.items() if name not in more},
        )


def from_report(report: Report) -> Tiers:
    """The curves that a report's rows allow.

    Raises:
        UsageError: no row that a curve could be fitted to holds a figure.
    """
    rows = [row for row in report.rows if row.state in HAS_FIGURE and row.bytes_per_s]
    rows = [row for row in rows if row.beside is None]  # alone: no other load beside it
    name = f"report {report.session_id[:8]} ({report.started_at[:10]})"
    simulated = report.simulated is not None or any(r.state is State.SIMULATED for r in rows)
    kind = "simulated" if simulated else "measured"
    curves: dict[str, Curve] = {}
    for curve, operation, params, note in _ROWS:
        some = [row for row in rows if _fits(row, operation, params)]
        if some and curve not in curves:
            parts = [operation, f"{len(some)} rows", kind, note, *_degraded(some)]
            curves[curve] = fit(
                [_point(row) for row in some],
                f"{name}: {', '.join(part for part in parts if part)}",
            )
    if not curves:
        raise UsageError(
            f"report {report.session_id[:8]} has no row that says how fast a tier is: "
            "measure with `kvbench run quick -o FILE`"
        )
    wanted = {curve: operation for curve, operation, _, _ in _ROWS if curve not in curves}
    return Tiers(
        name=name,
        kind=kind,
        curves=curves,
        missing={curve: _why(report.rows, operation) for curve, operation in wanted.items()},
    )


def _fits(row: Row, operation: str, params: Mapping[str, object]) -> bool:
    wanted = f"{row.tier}.{row.operation}" == operation
    return wanted and all(row.params.get(name) == value for name, value in params.items())


def _degraded(rows: Iterable[Row]) -> list[str]:
    count = sum(row.state is State.DEGRADED for row in rows)
    return [f"{count} of them degraded"] if count else []


def _point(row: Row) -> Point:
    rate = row.bytes_per_s or 0.0
    params: Mapping[str, Any] = row.params
    depth = params.get("queue_depth", params.get("threads", 1))
    return Point(
        block_bytes=int(params["block_bytes"]),
        batch=int(params.get("batch", 1)),
        depth=int(depth),
        bytes_per_s=rate,
        low=row.bytes_per_s_low or rate,
        high=row.bytes_per_s_high or rate,
    )


def _why(rows: Sequence[Row], operation: str) -> str:
    same = [row for row in rows if f"{row.tier}.{row.operation}" == operation]
    return next(
        (f"{row.state}: {row.reason}" for row in same if row.reason),
        f"no row of {operation}",
    )


def from_hardware(gpu: Hardware, *, gpus: int = 8, drive: str = "pm9a3", drives: int = 4) -> Tiers:
    """What data sheets say of a node, times the stated shares that are reached of them.

    Each GPU has a link of its own to host memory; drives and network are the node's.

    Raises:
        UsageError: the drive is not known, or a count is below 1.
    """
    if gpus < 1 or drives < 1:
        raise UsageError(f"gpus {gpus}, drives {drives}: expected at least 1 of each")
    reached = catalogue().efficiency
    disk = find_drive(drive)
    link, hbm = gpus * gpu.host_bytes_per_s, gpus * gpu.hbm_bytes_per_s
    host, share, net = reached["host"], reached["drive"], reached["network"]
    of_gpu = f"data sheet: {gpus} x {gpu.name} ({gpu.source})"
    of_disk = f"data sheet: {drives} x {disk.name} ({disk.source})"
    reads, writes = drives * disk.read_bytes_per_s, drives * disk.write_bytes_per_s
    return Tiers(
        name=f"data sheets of {gpus} x {gpu.name} and {drives} x {disk.name}",
        kind="datasheet",
        curves={
            "hbm.read": _sheet(hbm, 0.0, reached["memory"], of_gpu),
            "dram.read": _sheet(link, DMA_LATENCY_S, host, of_gpu),
            "dram.write": _sheet(link, DMA_LATENCY_S, host, of_gpu),
            "nvme.read": _sheet(min(reads, link), disk.read_latency_s, share, of_disk),
            "nvme.write": _sheet(min(writes, link), disk.write_latency_s, share, of_disk),
            "peer.read": _sheet(gpus * gpu.nic_bytes_per_s, NETWORK_LATENCY_S, net, of_gpu),
        },
    )


def _sheet(bytes_per_s: float, latency_s: float, reached: Efficiency, source: str) -> Curve:
    return Curve(
        source=f"{source} x {reached.value:g} ({reached.low:g} to {reached.high:g}: "
        f"{reached.source})",
        s_per_byte=1 / (bytes_per_s * reached.value),
        s_per_block=0.0,
        s_per_request=0.0,
        latency_s=latency_s,
        block_latency_s=0.0,
        flow_s_per_byte=0.0,
        low=reached.value / reached.high,
        high=reached.value / reached.low,
        points=(),
    )
