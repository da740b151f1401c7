"""A trace as Python objects, one for each request: what the replay in the store goes through.

A block's id names its whole prefix: equal ids mean equal tokens up to the end of the block. Reads
nothing; simulations run over `kvbench.sim.columns` instead.
"""

from dataclasses import dataclass, replace

from kvbench.sim.columns import Columns

MOONCAKE_BLOCK_TOKENS = 512  # one hash id for so many tokens (Mooncake, FAST'25 artefact)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: `blocks` are the ids of its input's blocks in order, the last may be partial."""

    arrival_s: float  # since the trace began
    input_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order of their arrival."""

    name: str
    digest: str  # 16 hex digits: XXH3-64 of the file, or of what was made up
    block_tokens: int
    requests: tuple[Request, ...]

    def first(self, count: int) -> "Trace":
        """The first `count` requests; name and digest stay those of the whole."""
        return replace(self, requests=self.requests[:count])

    @property
    def unique_blocks(self) -> int:
        """How many different blocks it refers to."""
        return len({block for request in self.requests for block in request.blocks})

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last; 0 without requests."""
        if not self.requests:
            return 0.0
        return self.requests[-1].arrival_s - self.requests[0].arrival_s


def requests_of(columns: Columns) -> Trace:
    """The same trace as objects. Slow and large: for thousands of requests, not for millions."""
    starts, ids = columns.starts.tolist(), columns.ids.tolist()
    rows = zip(
        columns.arrival_s.tolist(),
        columns.input_tokens.tolist(),
        columns.output_tokens.tolist(),
        strict=True,
    )
    return Trace(
        name=columns.name,
        digest=columns.digest,
        block_tokens=columns.block_tokens,
        requests=tuple(
            Request(*row, tuple(ids[starts[i] : starts[i + 1]])) for i, row in enumerate(rows)
        ),
    )
