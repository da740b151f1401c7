"""Print a JSON Schema: `python -m kvbench_reports.schema > reports/schema.json`.

With `comparison` or `simulation` behind it, that of `kvbench compare --format json` or of `kvbench
simulate --json`, which `reports/comparison.schema.json` and `reports/simulation.schema.json` hold.
"""

import sys

import msgspec

from kvbench.compare.record import comparison_schema
from kvbench.measure.result import report_schema
from kvbench.sim.record import simulation_schema


def schema_text(kind: str = "report") -> str:
    """The JSON Schema of a `report`, a `comparison` or a `simulation`, indented."""
    schemas = {
        "report": report_schema,
        "comparison": comparison_schema,
        "simulation": simulation_schema,
    }
    return msgspec.json.format(msgspec.json.encode(schemas[kind]()), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text(*sys.argv[1:2]))
