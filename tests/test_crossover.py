"""From a report to the way for small blocks and to where quantising pays, on chosen rates."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from kvbench.crossover import Crossover, config_fragment, find_crossover
from kvbench.errors import UsageError
from kvbench.measure.result import Report, Row, State, write_report
from kvbench.measure.suite import Operation, Value
from kvbench.units import KIB, MIB
from kvbench_suites.formats import stored_share
from kvbench_suites.hbm import GATHER, TRANSFER
from kvbench_suites.kernels import (
    DEQUANTISE_SCATTER,
    GATHER_QUANTISE,
    OFFLOAD,
    RESTORE,
    SWAP,
)
from kvbench_suites.nvme import READ, WRITE
from tests.compare.samples import make_report, make_row

GB_S = 1e9
SPREAD = 0.02
PAGES: dict[str, Value] = {
    "page_bytes": 32 * KIB,
    "block_bytes": 2 * MIB,
    "head_dim": 128,
    "batch": 64,
}


def row(operation: Operation, rate: float, **params: Value) -> Row:
    """Known to ± 2 %."""
    case = operation.case(params)
    made = make_row(case.id, [rate] * 3, params=dict(case.params))
    made.bytes_per_s, made.bytes_per_s_low = rate, rate * (1 - SPREAD)
    made.bytes_per_s_high = rate * (1 + SPREAD)
    made.payload_bytes = 2**30
    made.traffic_bytes = round(2**30 * operation.traffic(case.params))
    return made


def small(batch: int, dma: float, kernel: float, block_bytes: int = 4 * KIB) -> list[Row]:
    common: dict[str, Value] = {"direction": "h2d", "block_bytes": block_bytes, "batch": batch}
    return [row(TRANSFER, dma, **common), row(SWAP, kernel, **common, programs=16)]


def report(*rows: Row, **fields: object) -> Report:
    return make_report(rows, "s1", **fields)


def test_the_kernel_is_taken_from_the_batch_on_where_it_wins_at_all_larger_ones() -> None:
    rows = [*small(16, 5 * GB_S, 4 * GB_S), *small(128, 5 * GB_S, 9 * GB_S)]
    rows += small(1024, 5 * GB_S, 20 * GB_S)
    found = find_crossover(report(*rows))
    assert [each.faster for each in found.small_blocks] == ["dma", "kernel", "kernel"]
    assert [each.kernel_from_batch for each in found.switches] == [128]


def test_a_win_at_a_small_batch_that_is_lost_at_a_larger_one_is_no_switch() -> None:
    rows = [*small(16, 5 * GB_S, 9 * GB_S), *small(128, 9 * GB_S, 5 * GB_S)]
    assert find_crossover(report(*rows)).switches[0].kernel_from_batch is None


def test_rates_whose_intervals_touch_decide_nothing() -> None:
    found = find_crossover(report(*small(16, 5 * GB_S, 5.1 * GB_S)))
    assert found.small_blocks[0].faster == "unclear"
    assert found.switches[0].kernel_from_batch is None


def test_a_lone_process_without_an_interval_decides_nothing() -> None:
    rows = small(16, 5 * GB_S, 50 * GB_S)
    rows[1].bytes_per_s_low = rows[1].bytes_per_s_high = None
    assert find_crossover(report(*rows)).small_blocks[0].faster == "unclear"


def test_each_size_and_way_has_its_own_switch() -> None:
    rows = [*small(16, 5 * GB_S, 9 * GB_S), *small(16, 9 * GB_S, 5 * GB_S, 64 * KIB)]
    found = find_crossover(report(*rows))
    assert [(each.block_bytes, each.kernel_from_batch) for each in found.switches] == [
        (4 * KIB, 16),
        (64 * KIB, None),
    ]


def test_a_failed_row_is_no_evidence() -> None:
    rows = small(16, 5 * GB_S, 9 * GB_S)
    rows[0].state = State.FAILED
    with pytest.raises(UsageError, match="no rows to decide by"):
        find_crossover(report(*rows))


def test_why_there_is_nothing_to_decide_by_is_said() -> None:
    skipped = row(SWAP, 1.0, direction="h2d", block_bytes=4096, batch=16, programs=16)
    skipped.state, skipped.reason = State.SKIPPED, "no CUDA device: Driver Not Loaded"
    with pytest.raises(UsageError, match="not measured: no CUDA device: Driver Not Loaded"):
        find_crossover(report(skipped))


def test_measured_loops_stand_beside_the_raw_one_of_the_same_blocks() -> None:
    rows = [
        row(OFFLOAD, 20 * GB_S, **PAGES, format="raw"),
        row(OFFLOAD, 35 * GB_S, **PAGES, format="fp8-head"),
        row(RESTORE, 20 * GB_S, **PAGES, format="raw"),
        row(RESTORE, 15 * GB_S, **PAGES, format="int4-64"),
    ]
    found = find_crossover(report(*rows)).loops
    assert [(each.way, each.format, each.faster) for each in found] == [
        ("offload", "fp8-head", "quantised"),
        ("restore", "int4-64", "raw"),
    ]


def test_quantising_pays_below_the_rate_at_which_what_it_saves_is_what_it_costs() -> None:
    share = stored_share({**PAGES, "format": "fp8-head"})
    assert share == pytest.approx((128 + 4) / 256)
    kernel = 1000 * GB_S
    limit = (1 - share) * kernel
    rows = [
        row(GATHER_QUANTISE, kernel, **PAGES, format="fp8-head"),
        row(DEQUANTISE_SCATTER, kernel, **PAGES, format="fp8-head"),
        row(TRANSFER, limit * 1.01, direction="d2h", block_bytes=MIB),
        row(WRITE, limit * 0.99, block_bytes=MIB, queue_depth=1),
        row(READ, 7 * GB_S, block_bytes=MIB, queue_depth=1),
    ]
    offload, restore = find_crossover(report(*rows)).break_even
    assert offload.pays_below_bytes_per_s == pytest.approx(limit)
    # At the limit itself: one second raw, and as long with quantising.
    assert 1 / limit == pytest.approx(share / limit + 1 / kernel)
    assert {name.split("/")[0]: pays for name, pays in offload.tiers.items()} == {
        "hbm.transfer": False,
        "nvme.write": True,
    }
    assert {name.split("/")[0]: pays for name, pays in restore.tiers.items()} == {"nvme.read": True}


def test_what_gathering_alone_costs_is_no_cost_of_quantising_in_the_same_launch() -> None:
    share = stored_share({**PAGES, "format": "fp8-head"})
    fused, alone = 1000 * GB_S, 1500 * GB_S
    pages: dict[str, Value] = {name: PAGES[name] for name in ("page_bytes", "block_bytes", "batch")}
    rows = [
        row(GATHER_QUANTISE, fused, **PAGES, format="fp8-head"),
        row(GATHER, alone, **pages),
    ]
    (found,) = find_crossover(report(*rows)).break_even
    limit = found.pays_below_bytes_per_s
    assert limit is not None
    assert 1 / alone + 1 / limit == pytest.approx(1 / fused + share / limit)
    rows[1] = row(GATHER, fused / 2, **pages)
    (free,) = find_crossover(report(*rows)).break_even
    assert free.pays_below_bytes_per_s is None, "cheaper than gathering alone"
    assert "# computed: it pays at any rate" in config_fragment(find_crossover(report(*rows)))


def test_a_narrow_terminal_cuts_no_name(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_report(report(row(GATHER_QUANTISE, 900 * GB_S, **PAGES, format="fp8-head")), path)
    command = [sys.executable, "-m", "kvbench", "crossover", str(path)]
    environment = {**os.environ, "COLUMNS": "50"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert "…" not in done.stdout


def test_the_fragment_is_toml_and_names_the_card_or_says_that_it_was_simulated() -> None:
    rows = [*small(16, 5 * GB_S, 9 * GB_S), *small(16, 9 * GB_S, 5 * GB_S, 64 * KIB)]
    rows.append(row(GATHER_QUANTISE, 900 * GB_S, **PAGES, format="fp8-head"))
    text = config_fragment(find_crossover(report(*rows)))
    read = tomllib.loads(text)
    assert [each.get("kernel_from_batch") for each in read["small_blocks"]] == [16, None]
    assert read["quantise"][0]["format"] == "fp8-head"
    simulated = config_fragment(find_crossover(report(*rows, simulated="steady")))
    assert simulated.splitlines()[0].endswith("SIMULATED devices, true of no card,")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvbench", "crossover", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_command_prints_tables_and_writes_the_fragment(tmp_path: Path) -> None:
    path, out = tmp_path / "r.json", tmp_path / "card.toml"
    rows = [*small(16, 5 * GB_S, 9 * GB_S)]
    rows.append(row(GATHER_QUANTISE, 900 * GB_S, **PAGES, format="fp8-head"))
    write_report(report(*rows), path)
    done = run(str(path), "-o", str(out))
    assert done.returncode == 0, done.stderr
    assert "Small blocks, measured" in done.stdout
    assert "COMPUTED from rows" in done.stdout
    assert tomllib.loads(out.read_text())["small_blocks"]
    as_json = run(str(path), "--format", "json")
    assert msgspec.json.decode(as_json.stdout, type=Crossover).switches[0].kernel_from_batch == 16
    refused = run(str(path), "-o", str(path))
    assert refused.returncode == 2
    assert "will not overwrite" in refused.stderr


def test_a_report_without_such_rows_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_report(report(row(READ, GB_S, block_bytes=MIB, queue_depth=1)), path)
    done = run(str(path))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "kvbench run kernels" in done.stderr
