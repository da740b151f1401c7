"""Made-up traces: the same for a seed, well formed, and like what they were fitted to."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace import default_trace, generated, read_columns, write_trace
from kvbench.sim.trace.fit import fit_shape
from kvbench.sim.trace.goodness import goodness_of_fit, ks_distance
from kvbench.sim.trace.shape import Group, Shape, default_shape, encoded, load_shape
from kvbench.sim.trace.stated import Stated, stated_shape
from kvbench.sim.trace.stats import seen_before
from tests.sim.traces import AZURE_CONVERSATION, CONVERSATION, real_trace

STATED = st.builds(
    Stated,
    rate_per_s=st.floats(0.1, 50),
    first_tokens=st.floats(1, 3000),
    turn_tokens=st.floats(1, 900),
    answer_tokens=st.floats(1, 900),
    turns=st.floats(1, 9),
    think_s=st.floats(0.001, 500),
    shared_tokens=st.integers(0, 2000),
    most_tokens=st.integers(2001, 9000),
    block_tokens=st.sampled_from([16, 512]),
)


def changed(shape: Shape, **fields: Any) -> Shape:
    return msgspec.structs.replace(shape, **fields)


def same(one: Columns, other: Columns) -> bool:
    names = ("arrival_s", "input_tokens", "output_tokens", "starts", "ids")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_the_default_trace_is_what_it_always_was() -> None:
    # Simulations of it are compared over versions: another trace has to have another name.
    trace = default_trace(1000, seed=0)
    assert (trace.name, trace.digest) == ("conversation-twin", PINNED)


PINNED = "3a3ad28c2eae7acd"


@given(STATED, st.integers(0, 2**40), st.integers(1, 80))
@settings(deadline=None)  # compiles at first
def test_a_twin_is_well_formed_whatever_was_stated(stated: Stated, seed: int, count: int) -> None:
    made = generated(count, seed, shape=stated_shape(stated))
    assert made.requests == count
    assert np.all(np.diff(made.arrival_s) >= 0)
    assert made.arrival_s[0] == 0
    assert np.all(made.input_tokens >= 1)
    assert np.all(made.input_tokens <= stated.most_tokens)
    assert np.all(made.output_tokens >= 0)
    assert np.array_equal(np.diff(made.starts), -(-made.input_tokens // stated.block_tokens))
    # In the order of first use, and each follows one id only
    highest = np.maximum.accumulate(made.ids)
    assert np.all(np.diff(highest, prepend=-1) <= 1)
    assert made.unique_blocks == highest[-1] + 1
    before = np.concatenate(([-1], made.ids[:-1]))
    before[made.starts[:-1]] = -1
    assert len(set(zip(made.ids.tolist(), before.tolist(), strict=True))) == made.unique_blocks


def test_a_seed_gives_the_same_and_fewer_requests_are_the_first_of_more() -> None:
    assert same(generated(500, 3), generated(500, 3))
    assert same(generated(30_000, 3).first(500), generated(500, 3))
    assert not same(generated(500, 3), generated(500, 4))


def test_a_turn_begins_with_the_full_blocks_of_the_turn_before() -> None:
    shape = stated_shape(Stated(turns=1000, rate_per_s=1000, think_s=1000, shared_tokens=0))
    made = generated(3000, 1, shape=shape)
    parts = np.split(made.ids, made.starts[1:-1])
    heads = {int(part[0]): part for part in parts[:50] if len(part) > 1}
    later = [part for part in parts[50:] if int(part[0]) in heads]
    assert len(later) > 20
    for part in later:
        first = heads[int(part[0])]
        assert np.array_equal(part[: len(first) - 1], first[:-1])


def test_a_conversation_at_its_longest_input_still_has_something_new() -> None:
    stated = Stated(turns=9, first_tokens=4000, most_tokens=4096, think_s=1)
    made = generated(500, 1, shape=stated_shape(stated))
    assert np.count_nonzero(made.input_tokens == 4096) > 100
    assert np.all(seen_before(made) < np.diff(made.starts))


def test_stated_means_come_out() -> None:
    stated = Stated(rate_per_s=20, first_tokens=900, answer_tokens=200, turns=2.5, think_s=5)
    made = generated(40_000, 1, shape=stated_shape(stated))
    assert made.requests / made.arrival_s[-1] == pytest.approx(20, rel=0.05)
    assert made.output_tokens.mean() == pytest.approx(200, rel=0.05)
    alone = generated(20_000, 1, shape=stated_shape(Stated(turns=1, first_tokens=900)))
    assert alone.input_tokens.mean() == pytest.approx(900 + 512, rel=0.05)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for size in (512, 16):
        made = generated(5000, 2, shape=stated_shape(Stated(block_tokens=size, first_tokens=300)))
        path = tmp_path / f"twin-{size}.jsonl"
        write_trace(made, path)
        back = read_columns(path, cache=False)
        assert same(back, made) or np.allclose(back.arrival_s, made.arrival_s, atol=1e-9)
        assert np.array_equal(back.ids, made.ids)
        assert back.block_tokens == size


def test_a_trace_that_cannot_be_written_leaves_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "twin.jsonl"
    path.write_bytes(b"old")
    odd = generated(10, 2, shape=stated_shape(Stated(block_tokens=64)))
    with pytest.raises(UsageError, match="blocks of 64 tokens"):
        write_trace(odd, path)
    with pytest.raises(UsageError, match="cannot write"):
        write_trace(default_trace(10), tmp_path / "none" / "twin.jsonl")
    assert [each.name for each in tmp_path.iterdir()] == ["twin.jsonl"]
    assert path.read_bytes() == b"old"


# ---------------------------------------------------------------- fitted


def test_a_shape_fitted_to_a_twin_makes_a_twin_like_it() -> None:
    first = default_trace(6000, seed=5)
    again = generated(6000, 6, shape=fit_shape(first, "a twin"))
    fit = goodness_of_fit(first, again)
    assert max(fit.input_tokens, fit.output_tokens, fit.inter_arrival) < 0.04
    assert fit.reuse_time is not None
    assert fit.reuse_time < 0.12
    assert fit.curve_difference is not None
    assert fit.curve_difference < 0.06


def test_a_twin_of_the_conversation_trace_is_like_it() -> None:
    real = read_columns(real_trace(CONVERSATION), cache=False)
    fit = goodness_of_fit(real, generated(real.requests, 1, shape=fit_shape(real, "it")))
    assert max(fit.input_tokens, fit.output_tokens, fit.inter_arrival) < 0.03
    assert fit.reuse_distance is not None
    assert fit.reuse_time is not None
    assert fit.first_reuse_time is not None
    assert max(fit.reuse_distance, fit.reuse_time, fit.first_reuse_time) < 0.1
    assert fit.curve_difference is not None
    assert fit.curve_difference < 0.04
    assert fit.ideal is not None
    assert fit.ideal_of_twin is not None
    assert fit.ideal_of_twin.block == pytest.approx(fit.ideal.block, abs=0.03)


def test_the_shipped_default_is_the_shape_of_the_conversation_trace() -> None:
    fitted = fit_shape(read_columns(real_trace(CONVERSATION), cache=False), "")
    assert changed(default_shape(), source="") == fitted


def test_a_shape_keeps_no_id_and_no_request_of_what_it_was_fitted_to(tmp_path: Path) -> None:
    first = default_trace(3000, seed=5)
    path = tmp_path / "shape.json"
    path.write_bytes(encoded(fit_shape(first, "a twin")))
    assert path.stat().st_size < 32_000  # 3,000 requests have 70,000 ids
    assert load_shape(path) == fit_shape(first, "a twin")
    assert same(generated(50, 1, shape=load_shape(path)), generated(50, 1, shape=load_shape(path)))


def test_a_trace_with_lengths_only_gives_a_twin_without_reuse() -> None:
    real = read_columns(real_trace(AZURE_CONVERSATION), cache=False)
    twin = generated(real.requests, 1, shape=fit_shape(real, "it"))
    assert twin.unique_blocks == len(twin.ids)
    fit = goodness_of_fit(real, twin)
    assert max(fit.input_tokens, fit.output_tokens) < 0.05
    assert fit.ideal is None


def test_a_trace_that_is_too_short_is_not_fitted() -> None:
    with pytest.raises(UsageError, match="at least 100"):
        fit_shape(default_trace(99), "it")


def test_ks_distance_by_hand() -> None:
    assert ks_distance(np.array([1.0, 2.0]), np.array([2.0, 1.0])) == 0.0
    assert ks_distance(np.array([1.0, 2.0]), np.array([3.0])) == 1.0
    assert ks_distance(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0])) == 0.25


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gap_ms": [1.0]}, "a list has a wrong length"),
        ({"begin": []}, "a list has a wrong length"),
        ({"begin": [1.0]}, "hardly any conversation begins"),
        ({"begin": [0.5, 0.6]}, "add up to 1"),
        ({"gap_ms": [0.0] * 51}, "time has to pass"),
        ({"first_tokens": [*range(50), 3.0]}, "quantiles have to rise"),
        ({"first_tokens": [*range(50), 1e300]}, "a number is beyond"),
        ({"branch_share": [*[0.0] * 50, 1.5]}, "a branch keeps from 0 to 1"),
        ({"groups": [Group(share=1.2, blocks=1)]}, "at most 1"),
        ({"groups": [Group(share=0.2, blocks=10**6)]}, "below most_tokens"),
        ({"next_turns": [[99.0] * 8] * 6}, "next_turns have to be from 0 to 8"),
        ({"schema": "kvbench.trace-shape/9"}, "expected kvbench.trace-shape/1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    fields = msgspec.structs.asdict(default_shape()) | change
    path = tmp_path / "shape.json"
    path.write_bytes(msgspec.json.encode(fields))
    with pytest.raises(UsageError, match=said):
        load_shape(path)


@pytest.mark.parametrize(
    "wrong", [{"rate_per_s": 0.0}, {"turns": 0.5}, {"think_s": float("nan")}, {"most_tokens": 500}]
)
def test_what_cannot_be_stated_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Stated(**wrong)


def test_no_requests_and_too_many_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="0 requests"):
        generated(0, 1)
    huge = Stated(block_tokens=1, most_tokens=2**31 - 1)
    with pytest.raises(UsageError, match="more than 16777216 blocks"):
        generated(10, 1, shape=stated_shape(huge))


def test_the_example_in_the_documents_works() -> None:
    text = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "traces.md", "exec"), names)  # it asserts what it says
    assert names["columns"].unique_blocks > 1000


def test_ten_million_requests_fit_in_4_gib_by_what_two_hundred_thousand_take() -> None:
    code = (
        "import resource, sys\n"
        "from kvbench.sim.trace import generated\n"
        "generated(10, 1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "generated(200_000, 1)\n"
        "print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    before, after = (1024 * int(part) for part in done.stdout.split())  # Linux counts KiB
    assert before + 50 * (after - before) < 4 * 2**30
