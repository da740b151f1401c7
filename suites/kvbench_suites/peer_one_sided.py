"""Other one-sided reads of a holder's blocks: NIXL alone, and Mooncake's transfer engine.

Reads straight into rows, from places that were agreed on before the clock started. Nobody is asked
for a block and nothing is checked on arrival; rows are compared as those of `peer.get` are. Only
the worker process imports this.
"""

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from kvbench.errors import TierUnavailableError
from kvbench.measure.body import Context, Observed
from kvbench.peer.model import PeerError, Reason
from kvbench.store.nixl_file import load_nixl
from kvbench_suites import peer_mooncake
from kvbench_suites.peer import PATHS, PYTHON_MOONCAKE
from kvbench_suites.peer_bodies import BlockBody
from kvbench_suites.peer_holder import Order
from kvbench_suites.peer_processes import HolderProcess

if TYPE_CHECKING:
    from kvbench.measure.pattern import Bytes

ANSWER_S = 60.0
MEMORY = "DRAM"


class NixlRead(BlockBody):
    """READs of NIXL, a batch each, from the memory that a holder has registered for its peers."""

    _holder: HolderProcess | None = None
    _agent: Any = None

    def set_up(self, context: Context) -> None:
        """Start a holder, and prepare descriptors of its blocks and of the rows."""
        self.plan_blocks(context)
        self.make_rows()
        size = self._layout.block_bytes
        order = Order(block_bytes=size, blocks=self.blocks, seed=context.seed, how="nixl")
        self._holder = HolderProcess(order)
        _ = self._holder.peer
        places = self._holder.does("places")
        api, self._errors = load_nixl()
        config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self._agent = api.nixl_agent("raw", config)
        rows = self._rows.reshape(-1, size)
        address = rows.__array_interface__["data"][0]
        self._agent.register_memory([(address, rows.nbytes, 0, "")], MEMORY)
        name = self._agent.add_remote_agent(bytes.fromhex(places["metadata"]))
        here = [(address + at * size, size, 0) for at in range(len(rows))]
        first, slot_bytes = places["address"], places["slot_bytes"]
        there = [(first + slot * slot_bytes, size, 0) for slot in places["slots"]]
        self._local = self._agent.prep_xfer_dlist("", here, MEMORY)
        self._remote = self._agent.prep_xfer_dlist(name, there, MEMORY)

    def operate(self, lane: int, n: int) -> None:
        """Read a batch, and look whether it came."""
        numbers = self.numbers(lane, n)
        agent = self._agent
        here = np.arange(len(numbers), dtype=np.int32) + np.int32(lane * self._batch)
        there = np.asarray(numbers, dtype=np.int32)
        try:
            handle = agent.make_prepped_xfer("READ", self._local, here, self._remote, there)
            state = agent.transfer(handle)
            while state == "PROC":
                state = agent.check_xfer_state(handle)
            handle.release()
        except self._errors as error:
            raise PeerError(f"NIXL: {error}", Reason.UNREACHABLE) from None
        if state != "DONE":
            raise PeerError(f"a READ of NIXL ended as {state}", Reason.UNREACHABLE)
        self.check_stamps(numbers, self._rows[lane])

    def observed(self) -> Observed:
        """The library that was called; which way UCX took it does not say."""
        return Observed(path=PATHS["nixl_read"])

    def tear_down(self) -> None:
        """End the holder."""
        self._agent = None
        if self._holder is not None:
            self._holder.close()


class Segment:
    """Memory of this process and, in another one, Mooncake's engine that has it registered."""

    def __init__(self, size_bytes: int) -> None:
        fd = os.memfd_create("kvbench-mooncake", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            self.bytes: Bytes = np.memmap(_of(fd), np.uint8, "r+", shape=(size_bytes,))
            python = os.environ.get(PYTHON_MOONCAKE, sys.executable)
            self._process = subprocess.Popen(
                [python, peer_mooncake.__file__, str(fd), str(size_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[fd],
            )
        except OSError as error:
            raise TierUnavailableError(f"Mooncake's Python does not start: {error}") from None
        finally:
            os.close(fd)
        self.name = ""
        self.address = 0

    def begin(self) -> None:
        """Wait until it can be reached.

        Raises:
            TierUnavailableError: it cannot.
        """
        said = self._answer()
        if "error" in said:
            raise TierUnavailableError(f"Mooncake: {said['error']}")
        self.name, self.address = said["segment"], said["address"]

    def read(self, other: "Segment", here: list[int], there: list[int], size: int) -> None:
        """Have blocks read from the other's memory into this one's, at these offsets.

        Raises:
            PeerError: the engine says that it failed.
        """
        order = [
            other.name,
            [self.address + at for at in here],
            [other.address + at for at in there],
            size,
        ]
        stdin = cast("IO[bytes]", self._process.stdin)
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()
        status = self._answer()
        if status != 0:
            raise PeerError(f"Mooncake's read returned {status}", Reason.UNREACHABLE)

    def close(self) -> None:
        """End its process; once more is no error."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            cast("IO[bytes]", pipe).close()

    def _answer(self) -> Any:  # noqa: ANN401  JSON
        stdout = cast("IO[bytes]", self._process.stdout)
        if not select.select([stdout], [], [], ANSWER_S)[0]:
            raise TierUnavailableError(f"Mooncake has not answered within {ANSWER_S:.0f} s")
        line = stdout.readline()
        if not line:
            raise TierUnavailableError(f"Mooncake ended, status {self._process.wait()}")
        return json.loads(line)


class MooncakeRead(BlockBody):
    """Batched reads of the transfer engine; to have them done costs a line to its process each."""

    _segments: tuple[Segment, ...] = ()

    def set_up(self, context: Context) -> None:
        """Start both engines, and fill the memory of one."""
        self.plan_blocks(context)
        self.make_rows()
        size = self._layout.block_bytes
        self._holder = Segment(self.blocks * size)
        self._segments = (self._holder,)
        self._reader = Segment(self._rows.nbytes)
        self._segments = (self._holder, self._reader)
        self._pattern.fill(self._holder.bytes, 0)
        self._rows = self._reader.bytes.reshape(self._rows.shape)
        for each in self._segments:
            each.begin()

    def operate(self, lane: int, n: int) -> None:
        """Read a batch, and look whether it came."""
        numbers, size = self.numbers(lane, n), self._layout.block_bytes
        first = lane * self._batch
        here = [(first + at) * size for at in range(len(numbers))]
        self._reader.read(self._holder, here, [number * size for number in numbers], size)
        self.check_stamps(numbers, self._rows[lane])

    def observed(self) -> Observed:
        """What the engine was told to use."""
        return Observed(path=PATHS["mooncake_read"])

    def tear_down(self) -> None:
        """End both engines."""
        for each in self._segments:
            each.close()


def _of(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")
