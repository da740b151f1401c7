"""JSON is the file again."""

import json

import msgspec

from kvbench.measure.result import Report, decode_report, encode_report
from kvbench_reports import json_


def test_json_is_the_whole_report(measured: Report) -> None:
    assert decode_report(json_.render(measured).encode(), "it") == measured


def test_json_is_indented_and_ends_its_last_line(measured: Report) -> None:
    text = json_.render(measured)
    assert text.startswith('{\n  "schema": "kvbench.report/1",\n')
    assert text.endswith("\n}\n")


def test_fields_of_a_newer_minor_version_are_kept(measured: Report) -> None:
    raw = json.loads(encode_report(measured))
    raw["commit"] = "abc"
    raw["rows"][3]["energy_j"] = 12.5
    raw["rows"][3]["latency_s"]["p99_99"] = 0.5
    raw["machine"]["cpu"]["microcode"] = "0x1"
    again = json.loads(json_.render(msgspec.convert(raw, Report), raw))
    assert again == raw
