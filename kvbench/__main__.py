"""The way in: `kvbench`, and `python -m kvbench`.

Signals are taken over before anything else is imported, so that Ctrl-C in the first tenth of a
second ends like one later.
"""

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> None:
    """Run the command line."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _interrupt)
    try:
        from kvbench.cli import main as command_line  # noqa: PLC0415  after the signals

        command_line()
    except _Interrupted as interruption:
        sys.stderr.write("kvbench: interrupted\n")
        sys.exit(128 + interruption.number)


class _Interrupted(BaseException):
    """Stands in for `InterruptedRunError` until that has been imported."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Unwind like any error for the user; a second signal must not stop the tidying."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    errors = sys.modules.get("kvbench.errors")
    if errors is None or not hasattr(errors, "InterruptedRunError"):
        raise _Interrupted(number)
    raise errors.InterruptedRunError(number)


if __name__ == "__main__":
    main()
