"""`--inject 'nvme.*=+8%'`: which cases are slowed on purpose, and by how much.

A gate that was never seen red may be one that cannot turn red. So the worker can be told to do its
work more slowly; what it then measures goes through everything that a real regression goes
through. This module only reads what was asked for; `kvbench.measure.clock` and
`kvbench.measure.stream` do the slowing, and the numbers are never touched.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from kvbench.errors import UsageError

MOST = 10.0  # 1000 %: beyond it a case would run into its deadline
ROUNDING = 0.5  # of the share: a short stream has too few whole operations to hit it
_SHARE = re.compile(r"\+\s*(\d{1,9}(?:\.\d{1,9})?)\s*%", re.ASCII)


def parse_injection(texts: Sequence[str]) -> dict[str, float]:
    """Globs over case ids and the share by which each slows its cases, the last given at the end.

    Raises:
        UsageError: not `GLOB=+8%`, or a share of 0 or of more than 1000 %.
    """
    found: dict[str, float] = {}
    for text in texts:
        glob, _, amount = text.strip().rpartition("=")
        match = _SHARE.fullmatch(amount.strip())
        if not glob or match is None:
            raise UsageError(f"--inject {text!r}: expected GLOB=+N%, such as 'nvme.*=+8%'")
        share = float(match[1]) / 100
        if not 0 < share <= MOST:
            raise UsageError(f"--inject {text!r}: expected above 0 % and at most {MOST:.0%}")
        found.pop(glob, None)  # a glob that is given again is the last one again
        found[glob] = share
    return found


def injection_for(case_id: str, injections: Mapping[str, float]) -> float:
    """The share by which a case is slowed: that of the last glob that matches it, 0.0 of none."""
    share = 0.0
    for glob, asked in injections.items():
        if fnmatchcase(case_id, glob):
            share = asked
    return share


def check_injection(injections: Mapping[str, float], case_ids: Iterable[str]) -> None:
    """A slowdown that slows nothing would prove nothing.

    Raises:
        UsageError: a glob matches no case.
    """
    ids = list(case_ids)
    for glob, share in injections.items():
        if not any(fnmatchcase(case_id, glob) for case_id in ids):
            raise UsageError(
                f"--inject '{glob}={format_share(share)}' matches no case; "
                f"there are {len(ids)}: {', '.join(ids[:3])}, …"
            )


def was_heeded(asked: float, done: float) -> bool:
    """Whether a worker slowed itself as it was asked to, but for whole operations."""
    return abs(done - asked) <= ROUNDING * asked


def format_share(share: float) -> str:
    """For example `+8 %`."""
    return f"+{share * 100:.6g} %"
