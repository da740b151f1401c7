"""The exported JSON Schema."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from kvbench.compare.record import Comparison, encode_comparison
from kvbench.measure.result import Report, encode_report
from kvbench_reports.schema import schema_text

SCHEMA = Path(__file__).parents[2] / "reports" / "schema.json"


def validate(report: dict[str, Any]) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(report, schema, cls=jsonschema.Draft202012Validator)


def test_the_exported_schema_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "reports/schema.json is not what the code says: "
        "python -m kvbench_reports.schema > reports/schema.json"
    )


def test_the_exported_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


def test_reports_follow_the_schema(measured: Report, simulated: Report) -> None:
    for report in (measured, simulated):
        validate(json.loads(encode_report(report)))


@pytest.mark.parametrize(
    ("field", "value"), [("state", "good"), ("bytes_per_s", "1.02 GB/s"), ("params", None)]
)
def test_the_schema_refuses_what_a_report_never_holds(
    measured: Report, field: str, value: object
) -> None:
    raw = json.loads(encode_report(measured))
    raw["rows"][0][field] = value
    with pytest.raises(jsonschema.ValidationError):
        validate(raw)


def test_the_exported_schema_of_a_comparison_is_current_and_holds_one(
    comparison: Comparison,
) -> None:
    text = SCHEMA.with_name("comparison.schema.json").read_text(encoding="utf-8")
    assert text == schema_text("comparison"), (
        "python -m kvbench_reports.schema comparison > reports/comparison.schema.json"
    )
    jsonschema.validate(
        json.loads(encode_comparison(comparison)),
        json.loads(text),
        cls=jsonschema.Draft202012Validator,
    )
