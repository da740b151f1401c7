"""The serving model against measured tables, by groups that were left out; and its readers."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.geometry import load_geometry
from kvbench.sim.model import compute, splitwise
from kvbench.sim.model.compute import fitted
from kvbench.sim.model.serving import cross_validate, errors, fit_both, groups_of
from kvbench.sim.model.tables import read_silicon, read_splitwise
from tests.sim.traces import real_trace

SILICON = "aiconfigurator_silicon_sample.csv"
SPLITWISE = "splitwise-sim_perf_model.csv"


def test_a_deployment_of_splitwise_is_near_its_medians() -> None:
    has = splitwise("llama2-70b-h100-80gb-tp8")

    for tokens, seconds in ((512, 0.054), (2048, 0.137), (8192, 0.845)):
        said = has.prefill_s(tokens)
        assert said.low < seconds < said.high
    assert has.step_s(1, 600).value == pytest.approx(0.030, rel=0.1)
    assert "MIT" in has.source
    with pytest.raises(UsageError, match="there are llama2-70b-a100-80gb-tp2"):
        splitwise("llama2-70b-h100")


def test_the_shipped_fit_names_its_source_licence_and_errors() -> None:
    silicon = fitted().silicon

    assert "Apache-2.0" in silicon.source
    assert silicon.unseen_model["tpot"].mape <= 0.35
    assert silicon.unseen_configuration["tpot"].mape <= 0.15
    assert set(silicon.unseen_model) == {"tpot", "ttft", "prefill"}
    said = compute(load_geometry("llama-3.1-70b"), "h100").step_s(8, 8 * 4096)
    assert "models it was not fitted to" in said.source
    known = compute(load_geometry("llama-3.1-70b"), "h100", weights="fp8", backend="vllm")
    assert "other configurations" in known.source
    assert known.decode_range.high < said.high / said.value


def test_errors_of_the_serving_fit_on_groups_that_were_left_out() -> None:
    rows = read_silicon(real_trace(SILICON)).rows
    tpot, ttft = cross_validate(rows, lambda row: row.configuration, folds=5)
    unseen, _ = cross_validate(rows, lambda row: row.model, folds=0)

    assert errors(tpot).mape <= 0.15
    assert errors(unseen).mape <= 0.35
    assert errors(ttft).mape <= 0.40  # reported, and no target
    dense = np.array([row.model.startswith("llama") for row in rows])
    assert errors(tpot[dense]).mape <= 0.15


def test_the_shipped_coefficients_are_those_of_the_table() -> None:
    tpot, _ = fit_both(read_silicon(real_trace(SILICON)).rows)
    shipped = fitted().silicon.tpot

    assert shipped.rows == tpot.rows
    assert shipped.coefficients[""] == pytest.approx(tpot.coefficients[""], rel=1e-3)


def test_a_group_that_is_left_out_decides_nothing_about_itself() -> None:
    # Times of one configuration are tripled. Predicted without its rows it is three times off,
    # which a fold by row would hide.
    rows = read_silicon(real_trace(SILICON)).rows
    rows = [row for row in rows if row.model == "llama-3.1-70b" and row.backend == "vllm"]
    wild = rows[0].configuration
    changed = [
        msgspec.structs.replace(row, tpot_s=3 * row.tpot_s) if row.configuration == wild else row
        for row in rows
    ]
    before, _ = cross_validate(rows, lambda row: row.configuration, folds=4)
    after, _ = cross_validate(changed, lambda row: row.configuration, folds=4)
    out = [i for i, row in enumerate(rows) if row.configuration == wild]

    assert after[out] == pytest.approx(before[out] / 3)


def test_what_was_never_seen_has_the_coefficients_of_its_parent() -> None:
    law = fitted().silicon.tpot

    new = law.of(groups_of("vllm", "never-seen", "h100", "fp8"))
    assert tuple(new) == law.coefficients["vllm"]
    known = groups_of("vllm", "llama-3.1-70b", "h100", "fp8")
    assert tuple(law.of(known)) == law.coefficients["vllm/llama-3.1-70b/h-fp8"]
    assert tuple(law.of(groups_of("no-such", "x", "h100", "fp8"))) == law.coefficients[""]


HEADER = (
    "id,silicon_data_source,backend,backend_version,model_path,system,precision,mode,isl,osl,"
    "batch_size,tp_size,attention_dp_size,moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms"
)
GOOD = (
    "a,silicon_concurrency=8; x,vllm,1,meta-llama/Llama-3.1-70B,h100_sxm,fp8,agg,1024,1024,"
    "8,4,1,4,1,100,10"
)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (GOOD.replace(",1024,1024", ",-5,1024"), "isl '-5'"),
        (GOOD.removesuffix("10") + "nan", "silicon_tpot_ms 'nan'"),
        (GOOD.removesuffix("10") + "-3", "silicon_tpot_ms '-3'"),
        (GOOD.removesuffix(",10"), "expected 17 fields"),
    ],
)
def test_a_broken_row_is_an_error_with_its_line(tmp_path: Path, bad: str, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"{HEADER}\n{GOOD}\n{bad}\n")

    with pytest.raises(UsageError) as caught:
        read_silicon(path)
    assert f"{path}:3: " in str(caught.value)
    assert said in str(caught.value)


def test_rows_that_say_too_little_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    other = GOOD.replace("meta-llama/Llama-3.1-70B", "who/knows").replace(",100,10", ",101,11")
    path.write_text("\n".join((HEADER, GOOD, GOOD, other, GOOD.replace(",agg,", ",disagg,"))))
    read = read_silicon(path)

    assert len(read.rows) == 1
    assert read.left_out == {
        "the same measurement again": 1,
        "model who/knows": 1,
        "mode disagg": 1,
    }


def test_tp8_ep8_is_eight_gpus_though_the_table_multiplies_them(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    moe = GOOD.replace("meta-llama/Llama-3.1-70B", "deepseek-ai/DeepSeek-R1")
    path.write_text(f"{HEADER}\n{moe.replace(',8,4,1,4,1,', ',8,64,1,8,8,')}\n")

    assert read_silicon(path).rows[0].gpus == 8


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id,mode\n1,agg\n")

    with pytest.raises(UsageError, match="no column silicon_data_source"):
        read_silicon(path)
    with pytest.raises(UsageError, match="no column model"):
        read_splitwise(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_splitwise(tmp_path / "none.csv")


def test_all_runs_of_splitwise_are_read() -> None:
    runs = read_splitwise(real_trace(SPLITWISE))

    assert len(runs) == 1260
    median = np.median(
        [
            run.prompt_s
            for run in runs
            if (run.model, run.hardware, run.gpus) == ("llama2-70b", "a100-80gb", 8)
            and (run.prompt_tokens, run.batch) == (2048, 1)
        ]
    )
    assert median == pytest.approx(0.274, rel=0.01)
