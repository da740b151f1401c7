"""What kernels reach of the measured copy, on chosen rates."""

import pytest

from kvbench.measure.result import Row, State
from kvbench_reports import markdown
from kvbench_reports.practical import of_copy
from tests.compare.samples import make_report, make_row
from tests.reports.test_table import printed


def row(case: str, rate: float, traffic: float, spread: float = 0.01) -> Row:
    made = make_row(case, [rate] * 3)
    made.bytes_per_s, made.bytes_per_s_low = rate, rate * (1 - spread)
    made.bytes_per_s_high = rate * (1 + spread)
    made.payload_bytes, made.traffic_bytes = 1000, round(1000 * traffic)
    return made


COPY = row("hbm.copy/triton/256MiB", 1000e9, 2.0)
SLOW_COPY = row("hbm.copy/memcpy/32KiB", 100e9, 2.0)


def test_a_kernel_is_held_against_the_bytes_it_moves_and_not_against_its_payload() -> None:
    quantise = row("hbm.quantise/fp8-head/x", 1200e9, 1.5)
    name, (found,) = of_copy(make_report([SLOW_COPY, COPY, quantise], "s"))
    assert name == COPY.id, "the fastest"
    assert found.share == pytest.approx(1200 * 1.5 / (1000 * 2))
    assert found.interval is not None
    low, high = found.interval
    assert low < found.share < high
    assert high / low == pytest.approx((1.01 / 0.99) ** (2**0.5), rel=1e-3)


def test_what_crosses_the_link_failed_or_had_a_load_is_not_held_against_the_copy() -> None:
    failed = row("hbm.gather/a", 900e9, 2.0)
    failed.state = State.FAILED
    link = row("hbm.transfer/h2d/a", 50e9, 1.0)
    _, found = of_copy(make_report([COPY, failed, link], "s"))
    assert found == []


def test_without_a_copy_nothing_is_said() -> None:
    report = make_report([row("hbm.gather/a", 900e9, 2.0)], "s")
    assert of_copy(report) == ("", [])
    assert "of the device copy" not in markdown.render(report)


def test_table_and_markdown_say_it_with_the_copys_name() -> None:
    report = make_report([COPY, row("hbm.gather/a", 970e9, 2.0)], "s")
    assert "### of the device copy `hbm.copy/triton/256MiB`" in markdown.render(report)
    text = printed(report, 100)
    assert "of the device copy hbm.copy/triton/256MiB" in text
    assert "97 % (96 to 98 %)  hbm.gather/a" in text
