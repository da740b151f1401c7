"""Where a store says when its requests and their phases began and ended, if somebody listens.

`kvbench profile` does: its recorder is a `Spans`, and it hands it to every case body that is a
`Spanned`. A store without a listener notes nothing. Keeps nothing and measures no time.

A span of a worker (`io`, `copy`, `python`, `wait`) lies on the line of the thread that notes it,
inside or apart from its others. Requests overlap each other and begin and end on different
threads, so spans of the category REQUEST are drawn on lines of their own: those with the same
`request` number together, the request around its phases.
"""

from typing import Final, Literal, Protocol, runtime_checkable

# Words of kvbench.profile, which decides by them what an instant is called.
Category = Literal["io", "copy", "python", "wait", "request"]
IO: Final = "io"  # waits for a drive or a device
COPY: Final = "copy"  # moves bytes in memory
PYTHON: Final = "python"  # works: checksums, encoding
WAIT: Final = "wait"  # does nothing
REQUEST: Final = "request"  # no thread's time: a request, or a phase of one


class Spans(Protocol):
    """Whoever listens. Thread-safe, and takes about a microsecond."""

    def note(
        self,
        name: str,
        category: Category,
        start_ns: int,
        end_ns: int,
        size_bytes: int = 0,
        request: int = 0,
    ) -> None:
        """A span that is over, of `time.perf_counter_ns`; it moved `size_bytes`.

        `request` is a number of the request, unique in the process and above 0, for spans of the
        category REQUEST; 0 for one that has no phases and for spans of threads.
        """
        ...


@runtime_checkable
class Spanned(Protocol):
    """A store, or a case body that owns stores."""

    def spans_into(self, spans: Spans) -> None:
        """Note spans there from now on. Called when it is set up and no request is under way."""
        ...
