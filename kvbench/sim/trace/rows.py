"""Requests of a file collected into arrays, each checked as it comes.

Knows no format and reads nothing. `kvbench.sim.trace.blocks` gives hash ids their final numbers.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace.lines import wrong_line

MOST_TOKENS = 2**31 - 1  # of a request: columns are int32

# From hashes as they stand in a file and where each request's begin to ids from 0, how many
# different ones there are, and where (an index into the hashes) and how one breaks the rules.
Interning = Callable[
    [NDArray[np.int64], NDArray[np.int64]], tuple[NDArray[np.int32], int, tuple[int, str] | None]
]


@dataclass(slots=True)
class Rows:
    """What has been read so far of `path`. Times are in the file's own unit until the end."""

    path: Path
    time_unit_s: float
    times: "array[float]" = field(default_factory=lambda: array("d"))
    inputs: "array[int]" = field(default_factory=lambda: array("i"))
    outputs: "array[int]" = field(default_factory=lambda: array("i"))
    ends: "array[int]" = field(default_factory=lambda: array("q"))
    hashes: "array[int]" = field(default_factory=lambda: array("q"))
    lines: "array[int]" = field(default_factory=lambda: array("q"))

    def add(self, number: int, time: float, lengths: tuple[int, int]) -> None:
        """One request of line `number`.

        Raises:
            UsageError: time or lengths cannot be; it names the line.
        """
        tokens, answer = lengths
        if not 1 <= tokens <= MOST_TOKENS or not 0 <= answer <= MOST_TOKENS:
            raise wrong_line(
                self.path,
                number,
                f"{tokens} tokens of input and {answer} of output: expected at least 1 and 0, "
                f"and at most {MOST_TOKENS}",
            )
        if not (math.isfinite(time) and time >= 0):
            raise wrong_line(
                self.path, number, f"timestamp {time}: expected a number of at least 0"
            )
        if self.times and time < self.times[-1]:
            raise wrong_line(
                self.path,
                number,
                f"timestamp {time:.15g} after {self.times[-1]:.15g}: expected the order of arrival",
            )
        self.times.append(time)
        self.inputs.append(tokens)
        self.outputs.append(answer)
        self.lines.append(number)
        self.ends.append(len(self.hashes))

    def add_hashes(self, number: int, hashes: Sequence[int], block_tokens: int) -> None:
        """The hash ids of the request that was added last.

        Raises:
            UsageError: they are not one for each block of its input, or beyond 64 bits.
        """
        blocks = -(-self.inputs[-1] // block_tokens)
        if len(hashes) != blocks:
            raise wrong_line(
                self.path,
                number,
                f"{len(hashes)} hash_ids for {self.inputs[-1]} tokens: expected {blocks}, one for "
                f"each {block_tokens} tokens",
            )
        try:
            self.hashes.extend(hashes)
        except OverflowError:
            largest = max(hashes, key=abs)
            raise wrong_line(
                self.path, number, f"hash id {largest} is beyond 64 bits with a sign"
            ) from None
        self.ends[-1] = len(self.hashes)

    def columns(
        self, *, block_tokens: int, interning: Interning | None = None, notes: tuple[str, ...] = ()
    ) -> Columns:
        """All of it; digest is empty.

        Raises:
            UsageError: there is no request, or an id breaks the rules of `interning`.
        """
        if not self.times:
            raise UsageError(f"{self.path} has no requests: expected one a line")
        times = np.frombuffer(self.times, np.float64)
        starts = np.zeros(len(times) + 1, np.int64)
        ids, unique = np.zeros(0, np.int32), 0
        if interning is not None:
            starts[1:] = np.frombuffer(self.ends, np.int64)
            hashes = np.frombuffer(self.hashes, np.int64)
            ids, unique, broken = interning(hashes, starts)
            if broken is not None:
                request = int(np.searchsorted(starts, broken[0], side="right")) - 1
                raise wrong_line(self.path, self.lines[request], broken[1])
        return Columns(
            name=self.path.name,
            digest="",
            block_tokens=block_tokens,
            arrival_s=(times - times[0]) * self.time_unit_s,
            input_tokens=np.frombuffer(self.inputs, np.int32).copy(),
            output_tokens=np.frombuffer(self.outputs, np.int32).copy(),
            starts=starts,
            ids=ids,
            unique_blocks=unique,
            notes=notes,
        )
