"""Rates of rounds, their medians, ratios with their spread, and the table. Measures nothing."""

import statistics
from dataclasses import dataclass, field

from benchmarks.store_against_others.contestants import LARGE_BYTES
from benchmarks.store_against_others.protocol import Round
from kvbench.units import format_bytes

WRITE, READ = DIRECTIONS = ("write", "read")
FROM_DRIVE = 0.98  # of the bytes have to come from the drive: a page more or less is no cache


@dataclass(frozen=True, slots=True)
class Ratio:
    """kvbench's median over another's, and the least and greatest ratio within one round."""

    median: float
    least: float
    greatest: float


@dataclass(slots=True, kw_only=True)
class Entry:
    """All rounds of one contestant, or of fio, at one block size."""

    name: str
    blocks: int
    block_bytes: int
    bar: float | None = None
    seconds: dict[str, dict[int, float]] = field(
        default_factory=lambda: {direction: {} for direction in DIRECTIONS}
    )  # by direction and round
    rounds: list[Round] = field(default_factory=list[Round])
    reason: str | None = None  # why it has no figures

    def add(self, number: int, done: Round) -> None:
        """Take a round over: it counts if every byte was right and came from the drive."""
        self.rounds.append(done)
        self.add_seconds(number, done.write_s, done.read_s)
        share = done.drive_read_bytes / (self.blocks * self.block_bytes)
        if done.right_blocks < self.blocks:
            self.reason = (
                f"round {number}: {done.right_blocks} of {self.blocks} blocks came back as they "
                f"were stored, {done.reported_blocks} were reported as read"
            )
        elif share < FROM_DRIVE:
            self.reason = f"round {number}: {share:.0%} of the bytes were read from the drive"

    def add_seconds(self, number: int, write_s: float, read_s: float) -> None:
        """The times of a round."""
        self.seconds[WRITE][number] = write_s
        self.seconds[READ][number] = read_s

    def blocks_per_s(self, direction: str) -> float | None:
        """The median over rounds."""
        times = self.seconds[direction].values()
        if self.reason is not None or not times:
            return None
        return self.blocks / statistics.median(times)

    def over(self, other: "Entry", direction: str) -> Ratio | None:
        """How many times as fast this one is."""
        mine, theirs = self.blocks_per_s(direction), other.blocks_per_s(direction)
        if mine is None or theirs is None:
            return None
        ours, others = self.seconds[direction], other.seconds[direction]
        each = [others[number] / ours[number] for number in ours if number in others]
        return Ratio(mine / theirs, min(each), max(each))


def table(ours: Entry, entries: list[Entry]) -> list[str]:
    """One block size as lines of text; ratios are kvbench's over the other's."""
    size = format_bytes(ours.block_bytes)
    unit = "GB/s" if ours.block_bytes >= LARGE_BYTES else "blocks/s"
    lines = [
        f"{size} blocks, {ours.blocks} of them: {unit}; kvbench / other (least to greatest of a "
        "round); the bar",
        f"{'':30}{'write':>9}{'read':>9}   {'write':21}{'read':21}{'bar':>5}",
    ]
    for entry in entries:
        line = f"{entry.name:30}"
        if entry.reason is not None:
            lines.append(f"{line}   no figure: {entry.reason}")
            continue
        line += "".join(f"{_rate(entry, direction):>9}" for direction in DIRECTIONS) + "   "
        ratios = [ours.over(entry, direction) for direction in DIRECTIONS]
        if entry is not ours:
            line += "".join(f"{_ratio(ratio):21}" for ratio in ratios)
        if entry.bar is not None:
            met = all(ratio is not None and ratio.median >= entry.bar for ratio in ratios)
            line += f"{entry.bar:>5.1f} {'met' if met else 'MISSED'}"
        lines.append(line.rstrip())
    return lines


def resources(entries: list[Entry]) -> list[str]:
    """What each needed besides time, and what it is, as lines of text."""
    lines = [f"{'':30}{'CPU us a block':>17}{'memory':>11}  found in  what it is"]
    for entry in entries:
        if not entry.rounds:
            continue
        cpu = [
            statistics.median(cpu_s) / entry.blocks * 1e6
            for cpu_s in (
                [each.write_cpu_s for each in entry.rounds],
                [each.read_cpu_s for each in entry.rounds],
            )
        ]
        memory_bytes = max(each.memory_bytes for each in entry.rounds)
        found_s = statistics.median(each.look_up_s for each in entry.rounds)
        facts = ", ".join(f"{name} {value}" for name, value in entry.rounds[0].facts.items())
        lines.append(
            f"{entry.name:30}{cpu[0]:>8.0f} {cpu[1]:>8.0f}{format_bytes(memory_bytes):>11}"
            f"{found_s * 1e3:>7.1f} ms  {facts}"
        )
    return lines


def _rate(entry: Entry, direction: str) -> str:
    blocks_per_s = entry.blocks_per_s(direction)
    if blocks_per_s is None:
        return "-"
    if entry.block_bytes >= LARGE_BYTES:
        return f"{blocks_per_s * entry.block_bytes / 1e9:.2f}"
    return f"{blocks_per_s:.0f}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.median:.2f} ({ratio.least:.2f}-{ratio.greatest:.2f})"
