"""Replaying traces: hits are the policy's, latency the request's, and only good bytes count."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import CorruptDataError, TierUnavailableError, UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, Memory
from kvbench.measure.body import Context
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.policy.tenants import Tenants
from kvbench.sim.trace import Request, Trace
from kvbench.store.block import Status
from kvbench.store.dram import DramTier
from kvbench.store.options import Options
from kvbench.store.posix import Bytes
from kvbench_suites import replay, replay_bodies
from kvbench_suites.replay import DRIVE, MEMORY, POLICIES, SYNTHETIC, trace_of
from kvbench_suites.replay_bodies import Replay
from kvbench_suites.toml_file import load_suite
from kvbench_suites.turns import Book, Tally, Turns

BLOCK_BYTES = 4096
SMALL = Machine(memory=Memory(available_bytes=256 * 2**20))
IN_MEMORY = {"block_bytes": BLOCK_BYTES, "dram_blocks": 40, "requests": 60}
ON_DRIVE = IN_MEMORY | {"dram_blocks": 30, "nvme_blocks": 400, "admission": "always"}
Make = Callable[..., Any]


@pytest.fixture
def made(llama: KVGeometry, tmp_path: Path) -> Iterator[Make]:
    bodies: list[Replay] = []
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def one(operation: Operation, *, machine: Machine = SMALL, **params: Value) -> Replay:
        body = Replay()
        bodies.append(body)
        body.set_up(
            Context(
                params=dict(operation.case(params).params),
                geometry=llama,
                machine=machine,
                plan=Plan(),
                seed=7,
                process=0,
                scratch=scratch,
            )
        )
        return body

    yield one
    for body in bodies:
        body.tear_down()
    assert list(scratch.iterdir()) == []  # a store leaves nothing behind


def run(body: Any, passes: int = 1) -> tuple[int, int]:
    """Replay whole passes at least; requests and bytes that it told of."""
    body.start()
    requests = size_bytes = 0

    def poll(wait_s: float) -> None:
        nonlocal requests, size_bytes
        done = body.poll(wait_s)
        requests += len(done.end_ns)
        size_bytes += int(done.sizes(body.operation_bytes).sum())

    while body._book.evidence({})["passes"] < passes:
        poll(0.01)
    body.stop()
    poll(0)
    return requests, size_bytes


def write_trace(path: Path, rows: Sequence[tuple[float, int, Sequence[int]]]) -> Path:
    keys = ("timestamp", "input_length", "hash_ids")
    lines = [dict(zip(keys, row, strict=True)) | {"output_length": 1} for row in rows]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


# ---------------------------------------------------------------- what is hit


def hits_of_the_policy_alone(policy: str, trace: Trace, blocks: int, passes: int) -> list[int]:
    """Block hits of each pass, by asking the policy and nothing else."""
    tenants = Tenants(replay_bodies.POLICIES[policy])
    for number in range(blocks):  # of whom nobody asks: a full store
        tenants.insert(b"before %d" % number, None, 0, "before")
    found: list[int] = []
    for number in range(passes):
        hits = 0
        for request in trace.requests:
            keys = [b"%d/%d" % (number, block) for block in request.blocks]
            held = list(itertools.takewhile(tenants.__contains__, keys))
            tenants.touch(held)
            hits += len(held)
            new = keys[len(held) :]
            missing = len(new) - (blocks - len(tenants))
            for key in tenants.victims(missing, set(held).__contains__):
                tenants.remove(key)
            for at, key in enumerate(new, start=len(held)):
                if len(tenants) < blocks:
                    parent = keys[at - 1] if at else None
                    tenants.insert(key, parent, at, f"pass {number}")
        found.append(hits)
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("blocks", [40, 120])
def test_one_lane_hits_exactly_what_the_policy_alone_would(
    made: Make, monkeypatch: pytest.MonkeyPatch, policy: str, blocks: int
) -> None:
    # With two threads the halves of a put may be stored in either order.
    monkeypatch.setattr(replay_bodies, "Options", partial(Options, memory_threads=1))
    body = made(MEMORY, **IN_MEMORY | {"dram_blocks": blocks, "policy": policy})
    run(body, passes=2)
    whole = [tally for tally in body._book._passes.values() if tally.requests == 60]
    got = [sum(tally.hit_blocks.values()) for tally in whole]
    assert got == hits_of_the_policy_alone(policy, trace_of(SYNTHETIC, 60), blocks, len(got))
    assert len(got) >= 2


def test_every_pass_of_lru_hits_what_an_empty_store_would(made: Make) -> None:
    body = made(MEMORY, **IN_MEMORY)
    run(body, passes=3)
    hits = [sum(tally.hit_blocks.values()) for tally in body._book._passes.values()]
    assert hits[0] == hits[1] == hits[2] > 0


def test_a_cache_for_everything_hits_all_that_was_seen_before(made: Make) -> None:
    trace = trace_of(SYNTHETIC, 60)
    body = made(MEMORY, **IN_MEMORY | {"dram_blocks": trace.unique_blocks})
    run(body)
    replayed = body.observed().evidence["replay"]
    seen: set[int] = set()
    hits = tokens = 0
    for request in trace.requests:
        k = len(list(itertools.takewhile(seen.__contains__, request.blocks)))
        hits += k
        tokens += min(512 * k, request.input_tokens)
        seen.update(request.blocks)
    assert replayed["hit_blocks"] == {"dram": hits * replayed["passes"]}
    assert replayed["hit_tokens"] == tokens * replayed["passes"]
    assert replayed["blocks"] == replayed["passes"] * sum(len(r.blocks) for r in trace.requests)


def test_the_payload_is_the_bytes_of_the_blocks_that_were_hit(made: Make) -> None:
    body = made(MEMORY, **IN_MEMORY)
    requests, size_bytes = run(body, passes=2)
    tallies = list(body._book._passes.values())
    hits = sum(sum(tally.hit_blocks.values()) for tally in tallies)
    assert size_bytes == hits * BLOCK_BYTES
    assert requests == sum(tally.hit_requests for tally in tallies)
    assert requests < sum(tally.requests for tally in tallies)  # the first has nothing to hit
    assert body.verify() > 0


def test_blocks_that_left_memory_are_hit_on_the_drive(made: Make) -> None:
    body = made(DRIVE, **ON_DRIVE)
    run(body, passes=2)
    observed = body.observed()
    replayed = observed.evidence["replay"]
    assert replayed["hit_blocks"]["nvme"] > 0
    assert replayed["hit_blocks"]["dram"] > 0
    assert replayed["moved"]["dram"]["evictions"] > 0
    assert replayed["moved"]["nvme"]["written"] > 0
    assert observed.path == "the store's host memory and drive, O_DIRECT"
    # What the drive had to read: less than the payload, of which memory served some.
    payload = sum(sum(t.hit_blocks.values()) for t in body._book._passes.values()) * BLOCK_BYTES
    assert observed.device_payload_bytes is not None
    assert 0 < observed.device_payload_bytes < payload
    assert body.watch().direction == "read"
    assert body.verify() > 0


def test_admission_at_the_second_touch_writes_less_to_the_drive(made: Make) -> None:
    def written(admission: str) -> int:
        body = made(DRIVE, **ON_DRIVE | {"admission": admission})
        run(body)
        replayed = body.observed().evidence["replay"]
        assert (replayed["moved"]["nvme"]["refused_admission"] > 0) is (admission != "always")
        written: int = replayed["moved"]["nvme"]["written"] // replayed["passes"]
        body.tear_down()
        return written

    assert written("second_touch") < written("always")


def test_several_lanes_serve_every_request_of_a_pass_once(made: Make) -> None:
    body = made(MEMORY, **IN_MEMORY | {"queue_depth": 4})
    run(body, passes=3)
    replayed = body.observed().evidence["replay"]
    asked = sum(len(request.blocks) for request in trace_of(SYNTHETIC, 60).requests)
    assert replayed["blocks"] == asked * replayed["passes"]
    assert body.verify() > 0


# ---------------------------------------------------------------- when it comes


class Clock:
    """A body's clock that goes on only when somebody waits, or a store takes its time."""

    def __init__(self, body: Any, monkeypatch: pytest.MonkeyPatch, restore_s: float) -> None:
        self.now_ns = body._began_ns = 5_000_000_000
        honest = body._store.get_into
        self.deadlines: list[float | None] = []

        def get_into(source: Any, rows: Any, *, deadline_s: float | None = None) -> Any:
            self.deadlines.append(deadline_s)
            self.now_ns += round(restore_s * 1e9)
            return honest(source, rows)

        def wait(duration_ns: int) -> bool:
            self.now_ns += duration_ns
            return False

        monkeypatch.setattr(body._store, "get_into", get_into)
        monkeypatch.setattr(body, "_now_ns", lambda: self.now_ns)
        monkeypatch.setattr(body, "_wait", wait)


@pytest.fixture
def every_second(tmp_path: Path) -> dict[str, Value]:
    """A trace of one request a second, all alike."""
    path = write_trace(tmp_path / "even.jsonl", [(1000 * n, 512, [7]) for n in range(6)])
    return {**IN_MEMORY, "trace": str(path), "requests": 6}


def latencies_s(body: Replay, count: int) -> list[float]:
    return [body._operate(0, n).latency_ns / 1e9 for n in range(count)]


def test_latency_counts_from_the_arrival_and_not_from_when_a_lane_was_free(
    made: Make, monkeypatch: pytest.MonkeyPatch, every_second: dict[str, Value]
) -> None:
    body = made(MEMORY, **every_second, speed=1)
    Clock(body, monkeypatch, restore_s=2.0)
    # One a second comes and takes two: each waits a second longer than the one before.
    assert latencies_s(body, 5) == [2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_store_that_keeps_up_has_its_own_latency(
    made: Make, monkeypatch: pytest.MonkeyPatch, every_second: dict[str, Value]
) -> None:
    body = made(MEMORY, **every_second, speed=1)
    clock = Clock(body, monkeypatch, restore_s=0.25)
    assert latencies_s(body, 5) == [0.25] * 5
    assert clock.now_ns - body._began_ns == 4_250_000_000


def test_speed_is_times_the_clock_of_the_trace(
    made: Make, monkeypatch: pytest.MonkeyPatch, every_second: dict[str, Value]
) -> None:
    body = made(MEMORY, **every_second, speed=4)
    Clock(body, monkeypatch, restore_s=0.5)
    assert latencies_s(body, 4) == [0.5, 0.75, 1.0, 1.25]


def test_without_a_clock_a_request_arrives_when_a_lane_is_free(
    made: Make, monkeypatch: pytest.MonkeyPatch, every_second: dict[str, Value]
) -> None:
    body = made(MEMORY, **every_second)
    Clock(body, monkeypatch, restore_s=2.0)
    assert latencies_s(body, 4) == [2.0] * 4


def test_a_deadline_counts_from_the_arrival_too(
    made: Make, monkeypatch: pytest.MonkeyPatch, every_second: dict[str, Value]
) -> None:
    body = made(MEMORY, **every_second, speed=1, deadline_ms=2500)
    clock = Clock(body, monkeypatch, restore_s=2.0)
    latencies_s(body, 4)
    assert clock.deadlines == [2.5, 1.5, 0.5, 0.0]


def test_a_replay_that_falls_behind_its_clock_says_so(
    made: Make, every_second: dict[str, Value]
) -> None:
    def codes(behind_ns: int) -> set[str]:
        body = made(MEMORY, **every_second, speed=1000)
        run(body)
        body._behind_ns = behind_ns
        return {caution.code for caution in body.observed().cautions} - {"pageable"}

    assert codes(10**12) == {"overloaded"}
    assert codes(0) == set()


def test_stopping_does_not_wait_for_requests_that_are_not_due(made: Make, tmp_path: Path) -> None:
    path = write_trace(tmp_path / "late.jsonl", [(0, 512, [1]), (10**9, 512, [1])])
    body = made(MEMORY, **IN_MEMORY | {"trace": str(path), "requests": 2}, speed=1)
    body.start()
    while body._turns._next < 2:
        body.poll(0.001)
    body.stop()  # and not in eleven days
    assert sum(tally.requests for tally in body._book._passes.values()) == 1


def test_passes_follow_each_other_by_the_average_gap() -> None:
    requests = tuple(Request(at, 512, 1, (1,)) for at in (10.0, 10.0, 12.0))
    turns = Turns(Trace(name="t", digest="", block_tokens=512, requests=requests), speed=2)
    taken = [turns.take() for _ in range(5)]
    assert [turn.number for turn in taken] == [0, 0, 0, 1, 1]
    assert [turn.due_ns for turn in taken] == [0, 0, 10**9, 1_500_000_000, 1_500_000_000]


# ---------------------------------------------------------------- what counts


def test_counts_are_of_whole_passes_once_there_is_one() -> None:
    book = Book(requests=2)
    early = {"dram": {"evictions": 1}}
    assert not book.enter(0, Tally(requests=1, blocks=3))
    assert book.evidence(early)["blocks"] == 3
    assert book.evidence(early)["passes"] == 0
    assert book.enter(0, Tally(requests=1, blocks=4))
    book.at_end_of_pass({"dram": {"evictions": 5}})
    book.enter(1, Tally(requests=1, blocks=100))
    late = book.evidence({"dram": {"evictions": 9}})
    assert (late["passes"], late["requests"], late["blocks"]) == (1, 2, 7)
    assert late["moved"] == {"dram": {"evictions": 5}}


def test_blocks_behind_one_that_is_late_do_not_count(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = made(MEMORY, **IN_MEMORY | {"dram_blocks": 500, "deadline_ms": 1000})
    body._began_ns = 0
    honest = body._store.get_into

    def get_into(source: Any, rows: Any, *, deadline_s: float | None = None) -> Any:
        request = honest(source, rows, deadline_s=deadline_s)
        statuses = request.result()
        if len(statuses) > 2:
            statuses[1] = Status.TIMEOUT
        return request

    monkeypatch.setattr(body._store, "get_into", get_into)
    outcomes = [body._operate(0, n) for n in range(60)]
    assert max(outcome.size_bytes for outcome in outcomes) <= 2 * BLOCK_BYTES
    (tally,) = body._book._passes.values()
    assert tally.late_blocks > 0
    assert tally.unstored_blocks == 0  # it is still here: to put it again is no loss


def test_a_block_that_is_not_what_was_put_ends_the_replay(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DramTier, "checks", False)
    body = made(MEMORY, **IN_MEMORY)
    honest = DramTier.read

    def swapped(tier: DramTier, slots: Any, outs: list[Bytes], part: int | None = None) -> Any:
        found = honest(tier, slots, outs, part)
        outs[0][:] = outs[-1]
        return found

    monkeypatch.setattr(DramTier, "read", swapped)
    with pytest.raises(CorruptDataError, match="the store found block"):
        run(body)
    monkeypatch.setattr(DramTier, "checks", True)  # which it now says without reason
    body = made(MEMORY, **IN_MEMORY)
    with pytest.raises(CorruptDataError, match="what arrived is not block"):
        run(body)


def test_a_byte_in_the_middle_that_is_wrong_is_found_when_the_clock_has_stopped(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = made(MEMORY, **IN_MEMORY)
    run(body)
    honest = DramTier.read

    def flipped(tier: DramTier, slots: Any, outs: list[Bytes], part: int | None = None) -> Any:
        found = honest(tier, slots, outs, part)
        outs[0][BLOCK_BYTES // 2] ^= 1
        return found

    monkeypatch.setattr(DramTier, "read", flipped)
    with pytest.raises(CorruptDataError, match="its XXH3-64 differs"):
        body.verify()


def test_a_store_too_large_for_the_machine_is_refused_before_it_is_made(made: Make) -> None:
    with pytest.raises(TierUnavailableError, match="take fewer dram_blocks"):
        made(MEMORY, **IN_MEMORY, machine=Machine(memory=Memory(available_bytes=10**5)))


# ---------------------------------------------------------------- cases


def test_a_trace_of_ones_own_is_a_case_by_its_name_and_contents_wherever_it_lies(
    tmp_path: Path,
) -> None:
    rows = [(0, 512, [1]), (5, 1000, [1, 2])]
    (tmp_path / "other").mkdir()
    paths = [tmp_path / "my trace+.jsonl", tmp_path / "other" / "my trace+.jsonl"]
    cases = [
        MEMORY.case({**IN_MEMORY, "requests": 2, "trace": str(write_trace(path, rows))})
        for path in paths
    ]
    digest = trace_of(str(paths[0]), 2).digest
    assert {case.id for case in cases} == {
        f"dram.replay/my_trace_.{digest[:8]}-2/lru/dram40/4KiB/qd1"
    }
    assert len({case.definition_hash for case in cases}) == 1
    assert [case.meant["trace"] for case in cases] == [f"my trace+.jsonl {digest}"] * 2
    changed = write_trace(tmp_path / "other" / "changed.jsonl", rows[:1])
    other = MEMORY.case({**IN_MEMORY, "requests": 1, "trace": str(changed)})
    assert other.definition_hash != cases[0].definition_hash


def test_no_two_cases_that_differ_have_one_id(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.jsonl", [(0, 512, [1])] * 60)
    least = {**IN_MEMORY, "nvme_blocks": 9}
    others: list[dict[str, Value]] = [
        {},
        {"block_bytes": 8192},
        {"dram_blocks": 41},
        {"nvme_blocks": 10},
        {"admission": "always"},
        {"policy": "s3fifo"},
        {"speed": 1},
        {"queue_depth": 2},
        {"deadline_ms": 1},
        {"speed": 1, "deadline_ms": 1},
        {"trace": str(trace)},
        {"requests": 59},
    ]
    ids = [DRIVE.case({**least, **other}).id for other in others]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(0, 512, [1, 2])], "line 1: 2 hash_ids for 512 tokens"),
        ([(0, 512, [1])], "has 1 requests: requests = 2 is too many"),
    ],
)
def test_a_wrong_trace_is_a_mistake_in_the_users_file_and_found_before_anything_is_measured(
    tmp_path: Path, rows: list[Any], said: str, llama: KVGeometry
) -> None:
    trace = write_trace(tmp_path / "mine.jsonl", rows)
    path = tmp_path / "suite.toml"
    path.write_text(
        '[[case]]\noperation = "dram.replay"\nblock_bytes = "256KiB"\ndram_blocks = [10, 20]\n'
        f'trace = "{trace}"\nrequests = 2\n',
        encoding="utf-8",
    )
    with pytest.raises(UsageError, match=said):
        load_suite(path, replay.OPERATIONS).build(llama, Machine())


def test_a_toml_file_can_replay_a_trace_of_ones_own(tmp_path: Path, llama: KVGeometry) -> None:
    trace = write_trace(tmp_path / "mine.jsonl", [(0, 512, [1]), (5, 512, [1])])
    path = tmp_path / "suite.toml"
    path.write_text(
        '[[case]]\noperation = "nvme.replay"\nblock_bytes = "block"\ndram_blocks = 10\n'
        f'nvme_blocks = 50\ntrace = ["{trace}", "synthetic"]\nrequests = 2\nspeed = [0, 10]\n',
        encoding="utf-8",
    )
    cases = load_suite(path, replay.OPERATIONS).build(llama, Machine())
    assert [case.params["trace"] for case in cases] == [str(trace)] * 2 + [SYNTHETIC] * 2
    assert [case.params["speed"] for case in cases] == [0, 10] * 2


def test_policies_are_those_of_the_store() -> None:
    assert set(replay_bodies.POLICIES) == set(POLICIES)
