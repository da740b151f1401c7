"""CSV: a line for each row, base units in the column names, an empty cell for what is missing.

The columns are the same in every report; parameters follow them as `param_*`, sorted. A row that
holds no figure that may be believed has none here either. Text is kept on one line and cannot
become a formula in a spreadsheet.
"""

import csv
import io

from kvbench.measure.result import HAS_FIGURE, Latency, Report, Row
from kvbench_reports.words import spreadsheet_text

COLUMNS = (
    "session_id",
    "suite",
    "model",
    "simulated_profile",
    "id",
    "tier",
    "operation",
    "state",
    "reason_code",
    "reason",
    "payload_bytes",
    "traffic_bytes",
    "device_bytes",
    "bytes_per_s",
    "bytes_per_s_low",
    "bytes_per_s_high",
    "interval_method",
    "latency_count",
    "latency_effective_count",
    "latency_mean_s",
    "latency_p50_s",
    "latency_p90_s",
    "latency_p99_s",
    "latency_p99_9_s",
    "latency_max_s",
    "limit_bytes_per_s",
    "limit_source",
    "limit_fraction",
    "path_requested",
    "path_observed",
    "warnings",
    "process_count",
    "elapsed_s",
    "definition_hash",
)

Cell = str | int | float | None


def render(report: Report) -> str:
    """The rows of a report as CSV, with a header line."""
    names = sorted({name for row in report.rows for name in row.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(_cell(f"param_{name}") for name in names)])
    for row in report.rows:
        cells = _cells(report, row)
        params = (row.params.get(name) for name in names)
        writer.writerow([_cell(cell) for cell in (*(cells[name] for name in COLUMNS), *params)])
    return text.getvalue()


def _cells(report: Report, row: Row) -> dict[str, Cell]:
    believed = row.state in HAS_FIGURE
    return {
        "session_id": report.session_id,
        "suite": report.suite,
        "model": report.model.name,
        "simulated_profile": report.simulated,
        "id": row.id,
        "tier": row.tier,
        "operation": row.operation,
        "state": row.state,
        "reason_code": row.reason_code,
        "reason": row.reason,
        "payload_bytes": row.payload_bytes,
        "traffic_bytes": row.traffic_bytes,
        "device_bytes": row.device_bytes,
        "bytes_per_s": row.bytes_per_s if believed else None,
        "bytes_per_s_low": row.bytes_per_s_low if believed else None,
        "bytes_per_s_high": row.bytes_per_s_high if believed else None,
        "interval_method": row.interval_method if believed else None,
        **_latency_cells(row.latency_s if believed else None),
        "limit_bytes_per_s": row.limit_bytes_per_s,
        "limit_source": row.limit_source,
        "limit_fraction": row.limit_fraction if believed else None,
        "path_requested": row.path_requested,
        "path_observed": row.path_observed,
        "warnings": "; ".join(f"{caution.code}: {caution.message}" for caution in row.warnings),
        "process_count": len(row.processes),
        "elapsed_s": row.elapsed_s,
        "definition_hash": row.definition_hash,
    }


def _latency_cells(latency: Latency | None) -> dict[str, Cell]:
    if latency is None:
        return dict.fromkeys(name for name in COLUMNS if name.startswith("latency_"))
    return {
        "latency_count": latency.count,
        "latency_effective_count": latency.effective_count,
        "latency_mean_s": latency.mean,
        "latency_p50_s": latency.p50,
        "latency_p90_s": latency.p90,
        "latency_p99_s": latency.p99,
        "latency_p99_9_s": latency.p99_9,
        "latency_max_s": latency.max,
    }


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return spreadsheet_text(value)
    return repr(value)
