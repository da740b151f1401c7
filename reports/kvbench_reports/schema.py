"""Print a JSON Schema: `python -m kvbench_reports.schema > reports/schema.json`.

With `comparison` behind it, that of `kvbench compare --format json`, which
`reports/comparison.schema.json` holds.
"""

import sys

import msgspec

from kvbench.compare.record import comparison_schema
from kvbench.measure.result import report_schema


def schema_text(kind: str = "report") -> str:
    """The JSON Schema of a `report` or a `comparison`, indented."""
    schema = comparison_schema() if kind == "comparison" else report_schema()
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text(*sys.argv[1:2]))
