"""The runs of a sweep on a Ray cluster: one task a run, the trace in Ray's object store once.

Needs the extra `ray` here, and kvbench of the same version on every node. Starts no cluster.
"""

import dataclasses
import importlib
import socket
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.sweep import ARRAYS, Done, Job, Simulate, run_job

_CONNECT_S = 5.0
_TRACES: dict[str, Columns] = {}  # in a worker: the last trace, by the id of its object


def run_on_ray(
    columns: Columns, jobs: Sequence[Job], simulate: Simulate, *, address: str
) -> list[Done]:
    """All jobs in order, on the cluster at `address` (`HOST:PORT`, `ray://…` or `auto`).

    Raises:
        UsageError: Ray is missing, or there is no cluster at that address.
    """
    try:
        ray: Any = importlib.import_module("ray")  # an extra without types, and takes a second
    except ImportError:
        raise UsageError("--ray needs Ray, which is missing: pip install 'kvbench[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _join(ray, address)
    try:
        return _run(ray, columns, jobs, simulate)
    finally:
        if ours:
            ray.shutdown()


def _join(ray: Any, address: str) -> None:  # noqa: ANN401  Ray is not typed
    try:
        _answers(address)
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = str(error).partition("\n")[0]
        raise UsageError(f"--ray {address}: cannot join that cluster: {said}") from None


def _answers(address: str) -> None:
    """Raise OSError at once where nobody listens: Ray itself would try for two minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()


def _run(ray: Any, columns: Columns, jobs: Sequence[Job], simulate: Simulate) -> list[Done]:  # noqa: ANN401  Ray is not typed
    trace = ray.put(dataclasses.asdict(columns))
    task = ray.remote(_task).options(max_retries=1)
    asked = [task.remote(trace, msgspec.msgpack.encode(job), simulate) for job in jobs]
    found: list[Done] = []
    for each in asked:
        try:
            found.append(msgspec.msgpack.decode(ray.get(each), type=Done))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            found.append(Done(reason=f"its Ray worker ended: {str(error).partition(chr(10))[0]}"))
    return found


def _task(trace: dict[str, Any], job: bytes, simulate: Simulate) -> bytes:
    """In a worker of the cluster."""
    done = run_job(_columns(trace), msgspec.msgpack.decode(job, type=Job), simulate)
    return msgspec.msgpack.encode(done)


def _columns(trace: dict[str, Any]) -> Columns:
    """The trace with arrays that may be written to: compiled code takes no others."""
    key = f"{trace['digest']} {len(trace['arrival_s'])}"
    if key not in _TRACES:
        _TRACES.clear()
        fields = dict(trace)
        for name in ARRAYS:
            fields[name] = np.array(trace[name])
        _TRACES[key] = Columns(**fields)
    return _TRACES[key]
