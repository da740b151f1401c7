"""Proton, the profiler in Triton's wheel, beside our own recorder: how long each kernel took.

It counts kernels alone, on a GPU, and puts nothing on the timeline. One program at a time may
listen to a GPU, so it never runs beside torch.profiler. Warm-up is part of its totals.
"""

import importlib
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import msgspec

from kvbench.errors import TierUnavailableError

S_PER_NS = 1e-9


class ProtonTracer:
    """A context in which Proton counts; afterwards `said` tells what."""

    def __init__(self) -> None:
        self._proton: Any = importlib.import_module("triton.profiler")  # seconds
        self._version = metadata.version("triton")
        self._session: int | None = None
        self._kernels: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="kvbench-")
        self._path = Path(self._directory.name) / "proton"
        try:
            self._session = self._proton.start(str(self._path), data="tree")
        except RuntimeError as error:
            self._directory.cleanup()
            raise TierUnavailableError(
                f"Proton cannot start: {error}; it needs a GPU that Triton has a driver for"
            ) from error
        if self._session is None:
            self._directory.cleanup()
            raise TierUnavailableError("Proton is switched off: unset TRITON_PROTON_DISABLE")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._proton.finalize(self._session, output_format="hatchet")
            tree = msgspec.json.decode(self._path.with_suffix(".hatchet").read_bytes())
            self._kernels = totals(tree)
        finally:
            self._directory.cleanup()

    def said(self) -> dict[str, Any]:
        """Its version, and the kernels that took longest first."""
        return {"triton": self._version, "kernels": self._kernels}


def totals(tree: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Launches and seconds of each kernel in Proton's "hatchet" tree, the longest first.

    A node is {"frame": {"name"}, "metrics": {"count", "time (ns)"}, "children": [...]}; nodes
    without a time are scopes, and a second list element describes the devices.
    """
    found: dict[str, list[float]] = {}
    nodes = [node for node in tree if "frame" in node]
    while nodes:
        node = nodes.pop()
        nodes += node.get("children", [])
        measured = node.get("metrics", {})
        if "time (ns)" in measured:
            total = found.setdefault(node["frame"]["name"], [0, 0.0])
            total[0] += int(measured.get("count", 0))
            total[1] += measured["time (ns)"] * S_PER_NS
    return [
        {"name": name, "launches": launches, "time_s": time_s}
        for name, (launches, time_s) in sorted(found.items(), key=lambda one: -one[1][1])
    ]
