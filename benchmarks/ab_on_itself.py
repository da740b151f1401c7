"""Does `kvbench ab` call the same code slower on this machine, and does it see a known slowdown?

`python benchmarks/ab_on_itself.py --rounds 20 -- dram --dir /mnt/nvme` runs `kvbench ab env: env:`
that many times without and, in turns, with `--inject '*=+10%'` on side B (`--of` for one of the
two), and prints what each run said. Everything is measured on this machine, by fresh worker
processes. Exit status 1 if any run of the same code was SLOWER or any slowed one was not.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from kvbench.compare.compare import compare
from kvbench.compare.record import PASSED, REGRESSION, Kind, Verdict
from kvbench.measure.result import read_report


def run(suite: list[str], inject: str | None, folder: Path) -> tuple[int, str]:
    """One `kvbench ab`: its exit status, and in words what it found and could have seen."""
    command = [sys.executable, "-m", "kvbench", "ab", "env:", "env:", *suite]
    command += ["-o", str(folder / "ab")]
    if inject:
        command += ["--inject", f"*={inject}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in {PASSED, REGRESSION}:
        sys.exit(f"exit {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    found = compare(read_report(folder / "ab.base.json"), read_report(folder / "ab.new.json"))
    slower = len(found.having(Verdict.SLOWER))
    changes = [each.change for each in found.findings if each.change is not None]
    tiers = [
        f"{each.id} {each.change:+.1%}"
        for each in found.findings
        if each.kind is Kind.TIER and each.change is not None
    ]
    seen = [
        f"{each.group} {each.metric:.0%}/{each.tier:.0%}"
        for each in found.sight
        if each.metric is not None and each.tier is not None
    ]
    pairs = [len(each.base_values) for each in found.findings if each.kind is not Kind.TIER]
    text = (
        f"{min(pairs)} to {max(pairs)} pairs   {slower:>2} of {len(changes)} SLOWER   "
        f"{'; '.join(tiers)}   "
        f"metrics {min(changes):+.1%} to {max(changes):+.1%}   MDE metric/tier {', '.join(seen)}"
    )
    return done.returncode, text


def main() -> int:
    """Print every run, then the two counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--inject", default="+10%")
    parser.add_argument("--of", choices=("same", "slowed", "both"), default="both")
    parser.add_argument("suite", nargs="+", help="after --: a suite and options of `kvbench ab`")
    chosen = parser.parse_args()
    injections = {"same": (None,), "slowed": (chosen.inject,), "both": (None, chosen.inject)}
    alarms = found = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(chosen.rounds):
            for inject in injections[chosen.of]:
                status, text = run(chosen.suite, inject, Path(folder))
                red = status == REGRESSION
                alarms += red and inject is None
                found += red and inject is not None
                name = f"B slowed by {inject}" if inject else "same code"
                print(f"{number + 1:>3}  {name:<18} exit {status}  {text}", flush=True)
    if chosen.of != "slowed":
        print(f"same code: {alarms} of {chosen.rounds} SLOWER")
    if chosen.of != "same":
        print(f"B slowed by {chosen.inject}: {found} of {chosen.rounds} SLOWER")
    return int(alarms > 0 or (chosen.of != "same" and found < chosen.rounds))


if __name__ == "__main__":
    sys.exit(main())
