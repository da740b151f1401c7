"""Readers of traces: what each takes, and that what is wrong is named by file and line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace import FORMATS, read_columns
from kvbench.sim.trace.lines import MOST_LINE_BYTES
from tests.sim.traces import AZURE_CONVERSATION, CONVERSATION, real_trace

MOONCAKE = [
    {"timestamp": 27, "input_length": 600, "output_length": 5, "hash_ids": [90, 70]},
    {"timestamp": 27, "input_length": 1024, "output_length": 0, "hash_ids": [90, 10]},
    {"timestamp": 3027, "input_length": 1, "output_length": 7, "hash_ids": [5]},
]
CHAT = {"chat_id": 1, "parent_chat_id": -1, "type": "text", "turn": 1}
BAILIAN = [
    {**CHAT, "timestamp": 0.5, "input_length": 40, "output_length": 3, "hash_ids": [8, 9, 7]},
    {**CHAT, "timestamp": 61.114, "input_length": 33, "output_length": 1, "hash_ids": [8, 9, 6]},
]
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109\r\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,0,1087,Conversation log\n"
    "118.5,GPT-4,417,276,693,API log\n"
)
VLLM = (
    "INFO 12-06 14:09:07 metrics.py:449] Avg prompt throughput: 0.0 tokens/s\n"
    "INFO 12-06 14:09:27 logger.py:37] Received request cmpl-a-0: prompt: "
    "'prompt_token_ids: [9]', params: SamplingParams(n=1), prompt_token_ids: [1, 2, 3, 4, 5], "
    "lora_request: None.\n"
    "DEBUG 12-06 14:09:29 [logger.py:50] Request cmpl-b-0 details: prompt: 'x', "
    "prompt_token_ids: [1, 2, 3, 4, 6], prompt_embeds shape: None.\n"
    "INFO 12-06 14:09:29 [logger.py:60] Received request cmpl-b-0: params: None, lora_request: .\n"
    "INFO 12-06 14:09:30 [logger.py:70] Generated response cmpl-a (streaming delta): output: 'h', "
    "output_token_ids: [7], finish_reason: None\n"
    "INFO 12-06 14:09:31 [logger.py:70] Generated response cmpl-a (streaming complete): output: "
    "'hi', output_token_ids: [7, 8], finish_reason: stop\n"
)


def write(folder: Path, text: str | bytes, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def sglang(event: str, rid: str, when: str, **more: object) -> dict[str, Any]:
    return {"timestamp": when, "event": f"request.{event}", "rid": rid, **more}


def requests(columns: Columns) -> list[tuple[float, int, int, list[int]]]:
    return [
        (
            float(columns.arrival_s[i]),
            int(columns.input_tokens[i]),
            int(columns.output_tokens[i]),
            columns.ids[columns.starts[i] : columns.starts[i + 1]].tolist(),
        )
        for i in range(columns.requests)
    ]


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as raised:
        read_columns(path, **options)
    text = str(raised.value)
    assert "\n" not in text
    assert raised.value.exit_code == 2
    return text.replace(str(path), "FILE")


# ---------------------------------------------------------------- what each takes


def test_a_mooncake_trace_is_told_by_its_fields_and_counts_from_its_first_request(
    tmp_path: Path,
) -> None:
    columns = read_columns(write(tmp_path, jsonl(MOONCAKE)))
    assert requests(columns) == [(0.0, 600, 5, [0, 1]), (0.0, 1024, 0, [0, 2]), (3.0, 1, 7, [3])]
    assert (columns.block_tokens, columns.unique_blocks, columns.name) == (512, 4, "trace")
    assert columns.ids.dtype == np.int32
    assert columns.starts.dtype == np.int64


def test_a_bailian_trace_has_blocks_of_16_tokens_and_seconds(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path, jsonl(BAILIAN)))
    first, second = requests(columns)
    assert first == (0.0, 40, 3, [0, 1, 2])
    assert second[0] == pytest.approx(60.614)
    assert second[1:] == (33, 1, [0, 1, 3])
    assert columns.block_tokens == 16


def test_bailian_hashes_of_blocks_alone_are_made_to_name_their_prefix(tmp_path: Path) -> None:
    # The same 16 tokens behind another prefix are another block of a KV cache.
    rows = [
        {**BAILIAN[0], "hash_ids": [8, 9, 7]},
        {**BAILIAN[1], "hash_ids": [3, 9, 7]},
        {**BAILIAN[1], "hash_ids": [8, 9, 7]},
    ]
    found = requests(read_columns(write(tmp_path, jsonl(rows))))
    assert [ids for *_, ids in found] == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


def test_an_azure_trace_keeps_ticks_of_100_ns_and_has_lengths_only(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path, AZURE))
    first, second = requests(columns)
    assert first == (0.0, 374, 44, [])
    assert second[0] == pytest.approx(4.314579, abs=1e-9)
    assert second[1:] == (396, 109, [])
    assert not columns.has_blocks
    assert columns.starts.tolist() == [0, 0, 0]


@pytest.mark.parametrize("stamp", ["2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:00+00:00"])
def test_an_azure_trace_of_2024_has_a_time_zone(tmp_path: Path, stamp: str) -> None:
    text = f"TIMESTAMP,ContextTokens,GeneratedTokens\n{stamp},9,1\n2024-05-10 00:00:02+00:00,0,1\n"
    columns = read_columns(write(tmp_path, text))
    assert requests(columns) == [(0.0, 9, 1, [])]
    assert columns.notes == ("1 rows without a token of input left out",)


def test_failures_of_burstgpt_are_left_out_and_counted(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path, BURST))
    assert requests(columns) == [(0.0, 472, 18, []), (113.5, 417, 276, [])]
    assert columns.notes == ("1 failed requests (0 response tokens) left out",)


def test_burstgpt_columns_are_found_by_name_where_more_stand_between(tmp_path: Path) -> None:
    text = (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log\n"
        "7.0,,12.5,GPT-4,40,3,43,API log\n"
    )
    assert requests(read_columns(write(tmp_path, text))) == [(0.0, 40, 3, [])]


def test_a_json_log_is_hashed_by_its_tokens_in_blocks_of_the_chosen_size(tmp_path: Path) -> None:
    rows = [
        {"arrival_time": 10.0, "prompt_token_ids": [1, 2, 3, 4, 5], "output_token_ids": [9]},
        {"arrival_time": 10.5, "prompt_token_ids": [1, 2, 3, 4, 5, 6], "completion_tokens": 4},
        {"arrival_time": 11.0, "input_ids": [2, 1, 3, 4], "output_tokens": 0},
        {"arrival_time": 11.0, "input_ids": [1, 2, 3, 4, 5]},
        {"arrival_time": 11.0, "input_ids": [3, 4, 5]},
    ]
    columns = read_columns(write(tmp_path, jsonl(rows)), block_tokens=2)
    assert requests(columns) == [
        (0.0, 5, 1, [0, 1, 2]),
        (0.5, 6, 4, [0, 1, 3]),  # [5, 6] is no [5]
        (1.0, 4, 0, [4, 5]),  # [3, 4] after another block
        (1.0, 5, 0, [0, 1, 2]),
        (1.0, 3, 0, [6, 7]),  # the same tokens behind others
    ]
    assert columns.notes == ("2 requests say no length of their answer: 0 taken",)


def test_events_of_sglang_give_requests_and_the_length_of_their_answers(tmp_path: Path) -> None:
    rows = [
        sglang("received", "a", "2026-01-31T23:59:59.500000", obj={"input_ids": [1] * 20}),
        sglang("received", "b", "2026-02-01T00:00:00.500000", obj={"input_ids": [1] * 16}),
        sglang("finished", "b", "2026-02-01T00:00:01", out={"meta_info": {"completion_tokens": 3}}),
        sglang("finished", "a", "2026-02-01T00:00:02", out={"output_ids": [1, 2]}),
    ]
    columns = read_columns(write(tmp_path, jsonl(rows)))
    assert requests(columns) == [(0.0, 20, 2, [0, 1]), (1.0, 16, 3, [0])]
    assert columns.notes == ()


def test_a_log_of_vllm_gives_ids_times_and_answers_and_skips_other_lines(tmp_path: Path) -> None:
    columns = read_columns(write(tmp_path, VLLM), block_tokens=4)
    assert requests(columns) == [(0.0, 5, 2, [0, 1]), (2.0, 5, 0, [0, 2])]
    assert columns.notes == ("1 requests say no length of their answer: 0 taken",)


def test_a_format_can_be_named_against_what_the_content_says(tmp_path: Path) -> None:
    path = write(tmp_path, jsonl([{**MOONCAKE[2], "chat_id": 4}]))
    assert read_columns(path).block_tokens == 16
    assert read_columns(path, format_="mooncake").block_tokens == 512
    assert refusal(path, format_="csv") == (
        f"trace format 'csv': expected one of {', '.join(FORMATS)}"
    )
    assert "fixed" in refusal(path, format_="mooncake", block_tokens=16)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + jsonl(MOONCAKE).encode())
    assert read_columns(path).requests == 3


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{**BAILIAN[0], "hash_ids": [8]}], "FILE line 1: 1 hash_ids for 40 tokens: expected 3"),
        ([{"timestamp": 1, "prompt_token_ids": []}], "FILE line 1: no token ids: log them"),
        ([{"timestamp": 1, "prompt_token_ids": [-1]}], "FILE line 1: token 0 is -1: expected 0"),
        ([{"prompt_token_ids": [1]}], "FILE line 1: no arrival_time or timestamp: expected"),
        ([{"timestamp": "noon", "input_ids": [1]}], "FILE line 1: time 'noon': expected an ISO"),
        (
            [sglang("received", "a", "2026-01-01T00:00:00", obj={"input_ids": [1, "...", 2]})],
            "FILE line 1: token ids were cut (SGLang needs --log-requests-level 3)",
        ),
        (
            [sglang("received", "a", "2026-01-01T00:00:00", obj={"text": "hello"})],
            "FILE line 1: no token ids: log them (SGLang: --log-requests-level 3;",
        ),
        (
            [{"timestamp": 1, "input_ids": [1], "output_tokens": -4}],
            "FILE line 1: -4 tokens of output: expected at least 0",
        ),
        (
            [{"timestamp": 2, "input_ids": [1]}, {"timestamp": 1, "input_ids": [1]}],
            "FILE line 2: timestamp 1 after 2: expected the order of arrival",
        ),
    ],
)
def test_a_wrong_json_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    assert refusal(write(tmp_path, jsonl(rows))).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (AZURE + "2023-11-16 18:15:51,91", "line 4: 2 cells: expected 3; seen: '2023-11-16 18:15"),
        (AZURE + "2023-11-16 18:15:51,-91,4", "line 4: -91 tokens of input and 4 of output"),
        (AZURE + "2023-11-16 18:15:51,91,nan", "line 4: 'nan': expected a whole number of tokens"),
        (AZURE + "2023-13-16 18:15:51,91,4", "line 4: TIMESTAMP '2023-13-16 18:15:51': expected"),
        (AZURE + "NaN,91,4", "line 4: TIMESTAMP 'NaN': expected like 2023-11-16"),
        (AZURE + "2023-11-16 18:15:50,91,4", "line 4: timestamp 3.31941 after 4.314579: expected"),
        (AZURE + "2023-11-16 18:15:40,91,4", "line 4: TIMESTAMP '2023-11-16 18:15:40' is before"),
        (BURST + "inf,GPT-4,4,2,6,API log", "line 5: Timestamp 'inf': expected seconds"),
        (BURST + "nan,GPT-4,4,2,6,API log", "line 5: Timestamp 'nan': expected seconds"),
        (BURST + "119,GPT-4,4,99999999999,6,API", "line 5: 4 tokens of input and 99999999999 of"),
        (BURST + "119,GPT-4,4\xff,2,6,API", "line 5: '4ÿ': expected a whole number of tokens"),
        (BURST.replace("Request tokens", "Input"), "line 1: no column 'Request tokens': expected"),
        (VLLM.replace("[1, 2, 3, 4, 6]", "None"), "line 3: no token ids: log them"),
        (VLLM.replace("12-06 14:09:29", "13-06 14:09:29"), "line 3: time '13-06 14:09:29': month"),
    ],
)
def test_a_wrong_line_of_text_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert refusal(write(tmp_path, text)).startswith(f"FILE {said}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", '"3"'])
def test_no_time_is_no_number(tmp_path: Path, number: str) -> None:
    text = jsonl(MOONCAKE) + f'{{"timestamp": {number}, "input_length": 1, "output_length": 1, '
    assert refusal(write(tmp_path, text + '"hash_ids": [5]}\n')).startswith("FILE line 4: ")


def test_a_log_without_details_says_how_to_get_them(tmp_path: Path) -> None:
    text = "INFO 12-06 14:09:29 [logger.py:60] Received request a: params: None\n"
    assert "FILE has no request with token ids: log them" in refusal(write(tmp_path, text))


@pytest.mark.parametrize("text", [b"\xff\xfe{\x00", b"PK\x03\x04", b"\x1f\x8b\x08", b"[1]\n"])
def test_what_is_no_text_is_refused_at_its_first_line(tmp_path: Path, text: bytes) -> None:
    assert refusal(write(tmp_path, text)).startswith("FILE line 1: the beginning of no format")


def test_a_string_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    text = jsonl(MOONCAKE).encode() + b'{"timestamp": "\xff"}\n'
    assert refusal(write(tmp_path, text)).startswith("FILE line 4: ")


def test_a_line_of_a_gigabyte_is_refused_without_reading_it_whole(tmp_path: Path) -> None:
    import tracemalloc  # noqa: PLC0415 - slows down what it watches

    path = write(tmp_path, jsonl(MOONCAKE))
    with path.open("r+b") as file:
        file.seek(0, 2)
        file.truncate(2**30)  # a hole: takes no space, and reads as zeros
    tracemalloc.start()
    said = refusal(path)
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said.startswith(f"FILE line 4: longer than {MOST_LINE_BYTES} bytes")
    assert most_bytes < 4 * MOST_LINE_BYTES


def test_a_directory_and_a_pipe_are_no_traces(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("cannot read trace FILE: ")
    assert "no regular file" in refusal(Path("/dev/null"))


# ---------------------------------------------------------------- properties


@st.composite
def prefix_trees(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Mooncake rows with any ids, each of which always follows the same one."""
    names = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12, unique=True))
    parents = [draw(st.integers(-1, i - 1)) for i in range(len(names))]
    rows: list[dict[str, Any]] = []
    time_ms = 0
    for at in draw(st.lists(st.integers(0, len(names) - 1), min_size=1, max_size=12)):
        chain: list[int] = []
        node = at
        while node >= 0:
            chain.insert(0, names[node])
            node = parents[node]
        time_ms += draw(st.integers(0, 10_000))
        tokens = 512 * len(chain) - draw(st.integers(0, 511))
        answer = draw(st.integers(0, 2**31 - 1))
        rows.append(
            {
                "timestamp": time_ms,
                "input_length": tokens,
                "output_length": answer,
                "hash_ids": chain,
            }
        )
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("traces")


@given(prefix_trees())
@settings(deadline=None)
def test_rows_come_back_with_ids_in_the_order_of_their_first_use(
    folder: Path, rows: list[dict[str, Any]]
) -> None:
    columns = read_columns(write(folder, jsonl(rows)))
    index: dict[int, int] = {}
    for row, (arrival_s, tokens, answer, ids) in zip(rows, requests(columns), strict=True):
        assert ids == [index.setdefault(name, len(index)) for name in row["hash_ids"]]
        assert (tokens, answer) == (row["input_length"], row["output_length"])
        assert math.isclose(
            arrival_s, (row["timestamp"] - rows[0]["timestamp"]) / 1000, abs_tol=1e-9
        )
    assert columns.unique_blocks == len(index)


@given(prefix_trees(), st.data())
@settings(deadline=None)
def test_a_file_cut_anywhere_is_refused_or_is_its_first_rows(
    folder: Path, rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    whole = jsonl(rows).encode()
    cut = data.draw(st.integers(1, len(whole)))
    full = whole[:cut].count(b"\n") + (cut < len(whole) and whole[cut : cut + 1] == b"\n")
    path = write(folder, whole[:cut])
    if cut == len(whole) or whole[cut - 1 : cut] == b"\n" or whole[cut : cut + 1] == b"\n":
        assert read_columns(path).requests == full
    else:
        assert refusal(path).startswith(f"FILE line {full + 1}: ")


@given(st.sampled_from(FORMATS), st.binary(max_size=80), st.integers(0, 2**32), st.integers(0, 9))
@settings(deadline=None)
def test_damaged_files_are_read_or_refused_and_never_crash(
    folder: Path, format_: str, noise: bytes, at: int, cut: int
) -> None:
    texts = {
        "mooncake": jsonl(MOONCAKE),
        "bailian": jsonl(BAILIAN),
        "azure": AZURE,
        "burstgpt": BURST,
        "json-log": jsonl([{"timestamp": 1, "input_ids": [1, 2]}]),
        "vllm-log": VLLM,
    }
    whole = texts[format_].encode()
    at %= len(whole)
    path = write(folder, whole[:at] + noise + whole[at + cut :])
    try:
        columns = read_columns(path, format_=format_)
    except UsageError:
        assert refusal(path, format_=format_).startswith("FILE")
    else:
        assert columns.requests > 0


# ---------------------------------------------------------------- real files


def test_the_conversation_trace_has_the_published_counts() -> None:
    # Mooncake, FAST'25, Table 2: 12,031 requests, mean input 12,035, mean output 343
    columns = read_columns(real_trace(CONVERSATION), cache=False)
    assert (columns.requests, len(columns.ids), columns.unique_blocks) == (12031, 288500, 182790)
    assert columns.input_tokens.mean() == pytest.approx(12035.06, abs=0.01)
    assert columns.output_tokens.mean() == pytest.approx(342.62, abs=0.01)


def test_the_azure_conversation_trace_has_the_known_counts() -> None:
    columns = read_columns(real_trace(AZURE_CONVERSATION), cache=False)
    assert (columns.requests, int(np.median(columns.input_tokens))) == (19366, 1020)
    assert columns.arrival_s[-1] == pytest.approx(3501.7, abs=0.1)
