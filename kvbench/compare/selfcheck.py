"""Does the gate cry wolf on this machine? Sessions of the same code held against each other.

Never one session in halves: its processes share what two sessions do not. With K sessions there
are K (K - 1) ordered pairs, but they are only K draws, so the answer is unbiased and wide.
"""

import itertools
from collections.abc import Sequence

import msgspec

from kvbench.compare.compare import Options, compare
from kvbench.compare.noise import LEAST_SESSIONS, Noise, make_noise
from kvbench.compare.record import REGRESSION
from kvbench.errors import UsageError
from kvbench.measure.result import Report


class SelfCheck(msgspec.Struct, frozen=True, kw_only=True):
    """How many ordered pairs of sessions of the same code came out red."""

    pairs: int
    quiet_alarms: int  # if sessions were assumed to be as alike as processes of one
    floor_alarms: int | None  # with the floor of the other sessions; None with too few of them


def self_check(reports: Sequence[tuple[str, Report]]) -> SelfCheck:
    """Compare every ordered pair; each pair's floor is made of the sessions not in it."""
    enough = len(reports) - 2 >= LEAST_SESSIONS
    quiet = floor = pairs = 0
    for i, j in itertools.combinations(range(len(reports)), 2):
        others = [each for at, each in enumerate(reports) if at not in {i, j}]
        noise = _floor_of(others) if enough else None
        enough = noise is not None
        for base, new in ((reports[i][1], reports[j][1]), (reports[j][1], reports[i][1])):
            pairs += 1
            quiet += _red(base, new, Options(assume_quiet=True))
            if noise is not None:
                floor += _red(base, new, Options(noise=noise))
    return SelfCheck(pairs=pairs, quiet_alarms=quiet, floor_alarms=floor if enough else None)


def _floor_of(reports: Sequence[tuple[str, Report]]) -> Noise | None:
    """None where no metric has enough sessions once two of them are left out."""
    try:
        return make_noise(reports)
    except UsageError:
        return None


def _red(base: Report, new: Report, options: Options) -> bool:
    return compare(base, new, options=options).exit_code == REGRESSION
