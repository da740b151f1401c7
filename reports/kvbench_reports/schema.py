"""Print the JSON Schema of a report: `python -m kvbench_reports.schema > reports/schema.json`."""

import sys

import msgspec

from kvbench.measure.result import report_schema


def schema_text() -> str:
    """The JSON Schema of `kvbench.report/1`, indented, as `reports/schema.json` holds it."""
    return msgspec.json.format(msgspec.json.encode(report_schema()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
