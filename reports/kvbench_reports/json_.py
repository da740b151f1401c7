"""JSON: the report file itself, indented. Unknown fields stay where `raw` still has them."""

from typing import Any

import msgspec

from kvbench.measure.result import Report, encode_report


def render(report: Report, raw: dict[str, Any] | None = None) -> str:
    """The report as indented JSON; `raw` is what it was read from, for fields unknown here."""
    return msgspec.json.format(encode_report(report, raw), indent=2).decode() + "\n"
