"""Errors a user can act on. The command line prints them as one line, without a traceback.

Exit status: 0 ran, 2 usage, 3 a regression (a verdict, not an error), 4 nothing could be measured
or compared, 5 inconclusive under --strict. 1 is left to Python for crashes, so
that a crash can never be read as a verdict.
"""


class KvbenchError(Exception):
    """Base of every error whose message is written for the user: seen, expected, what to do."""

    exit_code = 2
    code = "refused"  # a row's `reason_code` when this ends its case


class UsageError(KvbenchError):
    """An argument, a file or a suite is not what it should be."""


class NothingMeasuredError(KvbenchError):
    """A run ended without one row that holds a figure."""

    exit_code = 4


class NotComparableError(KvbenchError):
    """Two reports are not of one machine and model, or share no metric."""

    exit_code = 4


class TierUnavailableError(KvbenchError):
    """A tier, an engine or a kind of memory that this machine cannot offer was asked for."""


class CorruptDataError(KvbenchError):
    """Bytes that arrived are not the bytes that were sent."""

    code = "corrupt_data"


class TooFewSamplesError(KvbenchError):
    """A case was too slow to give a single sample in its time."""

    code = "too_few_samples"


class InterruptedRunError(KvbenchError):
    """A signal ended the command; the exit status is the shell's, 128 + signal."""

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(f"interrupted{note}")
        self.number = number
        self.exit_code = 128 + number
