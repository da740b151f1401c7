"""Traces: what is read from a file, what is refused, what made-up ones are like."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.sim.trace import Conversations, Request, Trace, read_trace, synthetic

ROWS: list[dict[str, Any]] = [
    {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [7, 8]},
    {"timestamp": 1500, "input_length": 1024, "output_length": 0, "hash_ids": [7, 9], "extra": {}},
    {"timestamp": 1500, "input_length": 1, "output_length": 1, "hash_ids": [3]},
]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def one(text: str) -> Path:
        path = tmp_path / "trace.jsonl"
        path.write_text(text, encoding="utf-8")
        return path

    return one


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as raised:
        read_trace(path)
    text = str(raised.value)
    assert "\n" not in text
    return text.replace(str(path), "FILE")


# ---------------------------------------------------------------- a file


def test_rows_become_requests_in_seconds_and_blocks(write: Write) -> None:
    trace = read_trace(write(lines(ROWS)))
    assert trace.requests == (
        Request(0.0, 1000, 5, (0, 1)),
        Request(1.5, 1024, 0, (0, 2)),
        Request(1.5, 1, 1, (3,)),
    )
    assert (trace.name, trace.block_tokens) == ("trace.jsonl", 512)
    assert (trace.unique_blocks, trace.duration_s) == (4, 1.5)
    assert trace.first(1).requests == trace.requests[:1]
    assert trace.first(1).digest == trace.digest


def test_the_digest_is_of_the_contents(write: Write, tmp_path: Path) -> None:
    first = read_trace(write(lines(ROWS)))
    same = tmp_path / "other.jsonl"
    same.write_text(lines(ROWS), encoding="utf-8")
    assert read_trace(same).digest == first.digest
    assert read_trace(write(lines(ROWS[:2]))).digest != first.digest


def test_empty_lines_and_windows_line_ends_are_no_rows(write: Write) -> None:
    text = lines(ROWS).replace("\n", "\r\n\r\n")
    assert read_trace(write(text)).requests == read_trace(write(lines(ROWS))).requests


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hash_ids": [7]}, "1 hash_ids for 1024 tokens: expected 2, one for each 512 tokens"),
        ({"input_length": 1025}, "2 hash_ids for 1025 tokens: expected 3"),
        ({"input_length": 0, "hash_ids": []}, "0 tokens of input and 0 of output: expected"),
        ({"input_length": -512}, "-512 tokens of input and 0 of output: expected at least 1"),
        ({"output_length": -1}, "1024 tokens of input and -1 of output: expected at least 1"),
        ({"output_length": 2**31}, "1024 tokens of input and 2147483648 of output: expected"),
        ({"timestamp": -1}, "timestamp -1.0: expected a number of at least 0"),
        ({"hash_ids": [7, 2**63]}, "hash id 9223372036854775808 is beyond 64 bits with a sign"),
        ({"hash_ids": [7, -(2**70)]}, "hash id -1180591620717411303424 is beyond 64 bits"),
        ({"hash_ids": [9, 7]}, "hash id 7 comes after 9 and elsewhere first: expected one prefix"),
        ({"hash_ids": [7, 7]}, "hash id 7 comes after 7 and elsewhere first"),
        ({"hash_ids": "7"}, "Expected `array`, got `str` - at `$.hash_ids`"),
        ({"timestamp": None}, "Expected `float`, got `null` - at `$.timestamp`"),
    ],
)
def test_a_wrong_row_is_named_with_what_was_seen(
    write: Write, change: dict[str, Any], said: str
) -> None:
    rows = [ROWS[0], ROWS[1] | change]
    assert refusal(write(lines(rows))).startswith(f"FILE line 2: {said}")


def test_a_row_before_its_time_is_named(write: Write) -> None:
    rows = [ROWS[1], ROWS[0]]
    assert refusal(write(lines(rows))) == (
        "FILE line 2: timestamp 0 after 1500: expected the order of arrival"
    )


@pytest.mark.parametrize("cut", range(1, len(json.dumps(ROWS[2])), 7))
def test_a_file_that_ends_inside_a_row_is_refused_and_not_read_short(
    write: Write, cut: int
) -> None:
    whole = lines(ROWS)[:-1]
    assert refusal(write(whole[:-cut])).startswith("FILE line 3: ")


@pytest.mark.parametrize("text", ["[1, 2]\n", "hello\n", "{}\n", "\x00\n"])
def test_a_file_of_another_kind_is_refused_at_its_first_line(write: Write, text: str) -> None:
    assert refusal(write(text)).startswith("FILE line 1: ")


def test_a_trace_without_hashes_is_refused_with_the_reason(write: Write) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"
    assert refusal(write(text)) == (
        "FILE has token counts and no block hashes: what is used again cannot be told; use a trace "
        "with hash or token ids, such as one in Mooncake's JSONL format"
    )


def test_no_file_and_no_rows_are_refused(write: Write, tmp_path: Path) -> None:
    assert "cannot read trace" in refusal(tmp_path / "none.jsonl")
    assert refusal(write("\n")) == "FILE has no requests: expected one a line"


# ---------------------------------------------------------------- made up


LIKE = st.builds(
    Conversations,
    live=st.integers(1, 5),
    skew=st.floats(0, 3),
    system_tokens=st.integers(0, 900),
    turn_tokens=st.floats(1, 900),
    answer_tokens=st.floats(1, 900),
    most_tokens=st.integers(901, 4000),
    block_tokens=st.sampled_from([16, 512]),
)


@given(LIKE, st.integers(0, 2**40), st.integers(1, 60))
def test_an_id_names_its_whole_prefix_and_blocks_cover_the_input(
    like: Conversations, seed: int, count: int
) -> None:
    trace = synthetic(count, seed=seed, conversations=like)
    before: dict[int, int | None] = {}
    for request in trace.requests:
        assert len(request.blocks) == -(-request.input_tokens // like.block_tokens)
        assert like.system_tokens < request.input_tokens <= like.most_tokens
        last = None
        for block in request.blocks:
            assert before.setdefault(block, last) == last
            last = block
    arrivals = [request.arrival_s for request in trace.requests]
    assert arrivals == sorted(arrivals)
    assert len(trace.requests) == count


@given(LIKE, st.integers(0, 2**40))
def test_a_seed_makes_the_same_requests_and_fewer_of_them_are_the_first(
    like: Conversations, seed: int
) -> None:
    def made(count: int, seed: int) -> Trace:
        return synthetic(count, seed=seed, conversations=like)

    assert made(30, seed) == made(30, seed)
    assert made(10, seed).requests == made(30, seed).first(10).requests
    assert made(30, seed).requests != made(30, seed + 1).requests


def test_a_turn_begins_with_the_full_blocks_of_the_turn_before() -> None:
    # One conversation without an end: each input goes on where the one before stopped.
    like = Conversations(live=1, most_tokens=10**9, system_tokens=100)
    requests = synthetic(20, seed=3, conversations=like).requests
    for earlier, later in itertools.pairwise(requests):
        assert later.input_tokens > earlier.input_tokens + earlier.output_tokens
        full = earlier.input_tokens // 512
        assert later.blocks[:full] == earlier.blocks[:full]
        assert earlier.input_tokens % 512 == 0 or earlier.blocks[-1] not in later.blocks


def test_conversations_share_the_system_prompt_and_popular_ones_come_more_often() -> None:
    requests = synthetic(2000, seed=5).requests
    assert {request.blocks[:2] for request in requests} == {(0, 1)}

    def talks(skew: float) -> int:
        made = synthetic(2000, seed=5, conversations=Conversations(skew=skew, live=400))
        return len({request.blocks[2] for request in made.requests if len(request.blocks) > 3})

    assert talks(3.0) < talks(0.0)


def test_arrivals_have_the_rate_that_was_asked_for() -> None:
    trace = synthetic(4000, seed=1, conversations=Conversations(rate_per_s=20.0))
    assert trace.duration_s == pytest.approx(200.0, rel=0.06)
    gaps = [
        later.arrival_s - earlier.arrival_s for earlier, later in itertools.pairwise(trace.requests)
    ]
    mean_s = sum(gaps) / len(gaps)
    spread_s = (sum((gap - mean_s) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread_s == pytest.approx(mean_s, rel=0.1)  # exponential


def test_the_made_up_trace_of_the_suite_is_what_it_always_was() -> None:
    # Results of `synthetic` are compared over versions: another trace has to have another name.
    trace = synthetic(3, seed=20_260_101)
    assert [(r.input_tokens, r.output_tokens, r.blocks) for r in trace.requests] == PINNED


PINNED: list[tuple[int, int, tuple[int, ...]]] = [
    (1343, 2, (0, 1, 2)),
    (1460, 676, (0, 1, 3)),
    (1058, 98, (0, 1, 4)),
]


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate_per_s": 0.0},
        {"live": 0},
        {"skew": -1.0},
        {"system_tokens": 20_000},
        {"turn_tokens": 0.0},
    ],
)
def test_conversations_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(Conversations(), **wrong)


def test_a_trace_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="0 requests"):
        synthetic(0, seed=1)
