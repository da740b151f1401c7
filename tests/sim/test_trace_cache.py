"""Columns kept beside a trace: used when they are of this very file, and never otherwise."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace import cache, read_columns
from tests.sim.traces import CONVERSATION, real_trace


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory, away from the user's."""
    folder = tmp_path / "user-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(cache, "LEAST_BYTES", 1)
    return folder


def rows(answers: tuple[int, ...]) -> str:
    return "".join(
        json.dumps(
            {"timestamp": i, "input_length": 600, "output_length": answer, "hash_ids": [0, 1 + i]}
        )
        + "\n"
        for i, answer in enumerate(answers)
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    path = folder / "trace.jsonl"
    path.write_text(rows((1, 2, 3)), encoding="utf-8")
    return path


def kept_of(path: Path) -> Path:
    return path.with_name(path.name + cache.SUFFIX)


def same(one: Columns, other: Columns) -> bool:
    arrays = ("arrival_s", "input_tokens", "output_tokens", "starts", "ids")
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in arrays
    ) and (one.name, one.digest, one.block_tokens, one.unique_blocks, one.notes) == (
        other.name,
        other.digest,
        other.block_tokens,
        other.unique_blocks,
        other.notes,
    )


def test_what_is_kept_gives_the_same_columns_and_is_read_instead_of_the_rows(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = read_columns(file)
    assert kept_of(file).is_file()

    def no_parsing(*_: object, **__: object) -> None:
        raise AssertionError("the rows were parsed again")

    monkeypatch.setattr("kvbench.sim.trace.read.replace", no_parsing)
    assert same(read_columns(file), cold)


def test_a_file_that_changed_without_its_size_or_time_is_parsed_again(file: Path) -> None:
    read_columns(file)
    before = file.stat()
    file.write_text(rows((1, 2, 4)), encoding="utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert read_columns(file).output_tokens.tolist() == [1, 2, 4]
    assert read_columns(file).output_tokens.tolist() == [1, 2, 4]


def test_what_is_kept_of_one_format_is_not_used_for_another(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"timestamp": 1, "input_ids": [1, 2, 3, 4]}\n', encoding="utf-8")
    assert read_columns(path, block_tokens=2).unique_blocks == 2
    assert read_columns(path, block_tokens=4).unique_blocks == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_a_torn_cache_is_replaced_in_silence(file: Path, share: float) -> None:
    cold = read_columns(file)
    whole = kept_of(file).read_bytes()
    kept_of(file).write_bytes(whole[: int(share * len(whole))])
    assert same(read_columns(file), cold)
    assert kept_of(file).read_bytes() == whole


def test_no_flipped_byte_of_a_cache_changes_what_is_read(file: Path) -> None:
    cold = read_columns(file)
    whole = kept_of(file).read_bytes()
    for at in range(0, len(whole), 37):
        spoilt = bytearray(whole)
        spoilt[at] ^= 0xFF
        kept_of(file).write_bytes(spoilt)
        assert same(read_columns(file), cold), at


def test_a_cache_of_another_version_is_replaced(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_columns(file)
    old = kept_of(file).read_bytes()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    read_columns(file)
    assert kept_of(file).read_bytes() != old


def test_where_the_folder_cannot_be_written_the_users_cache_is_used(
    file: Path, elsewhere: Path
) -> None:
    kept_of(file).mkdir()  # as good as a folder without permission, for root too
    cold = read_columns(file)
    (kept,) = (elsewhere / "kvbench" / "traces").iterdir()
    assert kept.name.startswith("trace.jsonl.")
    assert same(read_columns(file), cold)


def test_a_trace_is_read_where_nothing_can_be_written(file: Path, elsewhere: Path) -> None:
    kept_of(file).mkdir()
    elsewhere.write_bytes(b"")
    assert read_columns(file).requests == 3


def test_a_refused_file_a_small_one_and_one_without_cache_leave_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_columns(file, cache=False)
    monkeypatch.setattr(cache, "LEAST_BYTES", file.stat().st_size + 1)
    read_columns(file)
    monkeypatch.setattr(cache, "LEAST_BYTES", 1)
    file.write_text(rows((1, -2)), encoding="utf-8")
    with pytest.raises(UsageError):
        read_columns(file)
    assert [each.name for each in file.parent.iterdir()] == ["trace.jsonl"]


def test_the_conversation_trace_is_there_at_once_the_second_time() -> None:
    path = real_trace(CONVERSATION)
    read_columns(path)
    took_s: list[float] = []
    for _ in range(5):  # the least: other tests may take the processor
        begin_s = time.process_time()
        read_columns(path)
        took_s.append(time.process_time() - begin_s)
    assert min(took_s) < 0.1
