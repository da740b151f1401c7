"""CSV of a comparison: a line for each finding, base units in the column names.

Worst first, in an order that does not change between runs. A figure that is missing is an empty
cell; what the sides have is in the columns of its unit: rates in bytes per second, latencies in
seconds, a tier's process values as the logs that were tested. Lists are separated by semicolons.
"""

import csv
import io

from kvbench.compare.record import Comparison, Finding, Kind
from kvbench_reports.compare.figures import ranked
from kvbench_reports.compare.head import inject_words
from kvbench_reports.words import spreadsheet_text

COLUMNS = (
    "base_path",
    "new_path",
    "design",
    "simulated_profile",
    "base_inject",
    "new_inject",
    "forced_differences",
    "id",
    "row",
    "kind",
    "group",
    "verdict",
    "fails",
    "reason",
    "margin_share",
    "base_bytes_per_s",
    "new_bytes_per_s",
    "base_s",
    "new_s",
    "change_share",
    "low_share",
    "high_share",
    "mde_share",
    "test",
    "df",
    "standard_error_log",
    "floor_sd_log",
    "p_slower",
    "p_slower_adjusted",
    "p_faster_adjusted",
    "rank",
    "tests",
    "base_values_bytes_per_s",
    "new_values_bytes_per_s",
    "base_values_s",
    "new_values_s",
    "base_values_log",
    "new_values_log",
    "members",
)
_UNITS = {Kind.RATE: "bytes_per_s", Kind.P99: "s", Kind.TIER: "log"}

Cell = str | int | float | list[float] | None


def render(comparison: Comparison) -> str:
    """The findings as CSV, with a header line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    shared = {name: _cell(cell) for name, cell in _comparison_cells(comparison).items()}
    own = COLUMNS[len(shared) :]
    for findings in ranked(comparison).values():
        for finding in findings:
            cells = _finding_cells(finding)
            writer.writerow([*shared.values(), *(_cell(cells.get(name)) for name in own)])
    return text.getvalue()


def _comparison_cells(comparison: Comparison) -> dict[str, Cell]:
    """The first columns, the same on every line: the source, and what makes it doubtful."""
    return {
        "base_path": comparison.base.path,
        "new_path": comparison.new.path,
        "design": comparison.design,
        "simulated_profile": comparison.simulated,
        "base_inject": inject_words(comparison.base.inject),
        "new_inject": inject_words(comparison.new.inject),
        "forced_differences": "; ".join(comparison.differences),
    }


def _finding_cells(finding: Finding) -> dict[str, Cell]:
    unit = _UNITS[finding.kind]
    sides: dict[str, Cell] = {
        f"base_values_{unit}": finding.base_values,
        f"new_values_{unit}": finding.new_values,
    }
    if finding.kind is not Kind.TIER:
        sides |= {f"base_{unit}": finding.base, f"new_{unit}": finding.new}
    return sides | {
        "id": finding.id,
        "row": finding.row,
        "kind": finding.kind,
        "group": finding.group,
        "verdict": finding.verdict,
        "fails": "true" if finding.fails else "false",
        "reason": finding.reason,
        "margin_share": finding.margin,
        "change_share": finding.change,
        "low_share": finding.low,
        "high_share": finding.high,
        "mde_share": finding.mde,
        "test": finding.test,
        "df": finding.df,
        "standard_error_log": finding.standard_error,
        "floor_sd_log": finding.floor_sd,
        "p_slower": finding.p_slower,
        "p_slower_adjusted": finding.p_slower_adjusted,
        "p_faster_adjusted": finding.p_faster_adjusted,
        "rank": finding.rank,
        "tests": finding.tests,
        "members": ";".join(finding.members),
    }


def _cell(value: Cell) -> Cell:
    """What the writer may have: it leaves None empty and writes figures to the last digit."""
    if isinstance(value, str):
        return spreadsheet_text(value)
    if isinstance(value, list):
        return ";".join(map(repr, value))  # may begin with a sign, but is no formula
    return value
