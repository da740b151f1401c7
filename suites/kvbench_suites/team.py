"""Threads pinned to cores, each of which does one part of every step."""

import contextlib
import os
import threading
from collections.abc import Callable

from kvbench.errors import TierUnavailableError
from kvbench.measure.body import Context

STEP_TIMEOUT_S = 60.0


class Team:
    """`count` threads, each pinned to a core, that do one part of every step.

    With one thread the caller does the work itself: a hand-over would be part of the time.
    """

    def __init__(self, cores: list[int], part: Callable[[int], object]) -> None:
        self._cores = cores
        self._part = part
        self._failure: BaseException | None = None
        if len(cores) == 1:
            os.sched_setaffinity(0, {cores[0]})
            return
        self._begin = threading.Barrier(len(cores), timeout=STEP_TIMEOUT_S)
        self._end = threading.Barrier(len(cores), timeout=STEP_TIMEOUT_S)
        self._ending = False
        os.sched_setaffinity(0, {cores[0]})  # the caller is the first of the team
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"team-{number}", daemon=True)
            for number in range(1, len(cores))
        ]
        for thread in self._threads:
            thread.start()

    def step(self) -> None:
        """All parts once; returns when the last is done."""
        if len(self._cores) == 1:
            self._part(0)
            return
        self._begin.wait()
        try:
            self._part(0)
        finally:
            self._end.wait()  # also when it fails: the others stand there, and close() needs them
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Let the threads go."""
        if len(self._cores) > 1:
            self._ending = True
            with contextlib.suppress(threading.BrokenBarrierError):  # the failure is known already
                self._begin.wait()
            for thread in self._threads:
                thread.join(STEP_TIMEOUT_S)

    def _run(self, number: int) -> None:
        os.sched_setaffinity(0, {self._cores[number]})  # 0 is the calling thread on Linux
        while True:
            try:
                # No limit here: the caller sets up and checks data between steps.
                self._begin.wait(timeout=None)
            except threading.BrokenBarrierError:
                return
            if self._ending:
                return
            try:
                self._part(number)
            except BaseException as failure:  # noqa: BLE001  raised again by step
                self._failure = failure
            self._end.wait()


def share_of(total: int, number: int, count: int, *, align: int = 1) -> tuple[int, int]:
    """The range of `total` that thread `number` of `count` takes, its edges aligned."""
    edges = [total * n // count // align * align for n in range(count)] + [total]
    return edges[number], edges[number + 1]


def nodes_of(cores: list[int], context: Context) -> list[int]:
    """NUMA nodes that these cores span, if there are several; a single one needs no binding."""
    nodes = [n.index for n in context.machine.numa_nodes if not set(cores).isdisjoint(n.cpus)]
    return nodes if len(nodes) > 1 else []


def team_cores(context: Context) -> list[int]:
    """The cores that the team runs on: of the CPU node asked for, within what we may use.

    Asks the kernel what this thread may use, so it is called before anything is pinned.
    """
    allowed = sorted(os.sched_getaffinity(0))
    node = context.count("cpu_node")
    if node >= 0:
        of_node = {
            cpu
            for numa_node in context.machine.numa_nodes
            if numa_node.index == node
            for cpu in numa_node.cpus
        }
        allowed = [core for core in allowed if core in of_node]
    threads = context.count("threads")
    if len(allowed) < threads:
        raise TierUnavailableError(
            f"{threads} threads need as many cores and this process may use {len(allowed)}"
            + (f" of NUMA node {node}" if node >= 0 else "")
        )
    return allowed[:threads]
