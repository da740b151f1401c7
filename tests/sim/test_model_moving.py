"""Moving blocks in the performance model: curves, data sheets, shared paths, overlap."""

import math
from pathlib import Path as File

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.geometry import load_geometry
from kvbench.measure.result import Report, Row, State, read_report
from kvbench.sim.model import compute, from_hardware, from_report, hardware, nic, scenario_parts
from kvbench.sim.model.curve import Point, fit
from kvbench.sim.model.prediction import around
from kvbench.sim.model.transfer import (
    alone_s,
    chain,
    exposed_s,
    pair_s,
    quantised,
    shared_s,
)
from kvbench.sim.scenario import Path

PUBLISHED = File(__file__).parents[2] / "reports" / "published" / "vm-2core-virtio.json"
MIB = 2**20
LINK = Path(latency_s=0.0, bytes_per_s=10.0)


def point(block_bytes: int, batch: int, depth: int, seconds_per_byte: float) -> Point:
    rate = 1 / seconds_per_byte
    return Point(
        block_bytes=block_bytes,
        batch=batch,
        depth=depth,
        bytes_per_s=rate,
        low=rate * 0.95,
        high=rate * 1.05,
    )


def law(block: float, batch: float, depth: float) -> float:
    """5 GB/s, 3 us a block, 40 us a request; 80 us of latency a request and 9 us a block."""
    return 1 / 5e9 + (3e-6 + 9e-6 / depth) / block + (40e-6 + 80e-6 / depth) / (block * batch)


def report_of(rows: list[Row], *, simulated: str | None = None) -> Report:
    whole = read_report(PUBLISHED, samples=False)
    return msgspec.structs.replace(whole, rows=rows, simulated=simulated)


def row(operation: str, rate: float, **params: int | str | bool) -> Row:
    tier, name = operation.split(".")
    return Row(
        id=f"{operation}/{len(params)}",
        tier=tier,
        operation=name,
        params=params,
        state=State.OK,
        bytes_per_s=rate,
        bytes_per_s_low=rate * 0.9,
        bytes_per_s_high=rate * 1.1,
    )


def test_a_curve_finds_the_costs_that_its_points_were_made_with() -> None:
    points = [
        point(block, batch, depth, law(block, batch, depth))
        for block in (65_536, MIB, 4 * MIB)
        for batch in (1, 16)
        for depth in (1, 4, 16)
    ]
    curve = fit(points, "made up")

    assert curve.s_per_byte == pytest.approx(1 / 5e9, rel=1e-6)
    assert curve.s_per_block == pytest.approx(3e-6, rel=1e-6)
    assert curve.s_per_request == pytest.approx(40e-6, rel=1e-6)
    assert curve.latency_s == pytest.approx(80e-6, rel=1e-6)
    assert curve.block_latency_s == pytest.approx(9e-6, rel=1e-6)
    for block, batch, depth in ((262_144, 4, 2), (2 * MIB, 7, 9)):
        assert curve.s_of_byte(block, batch, depth) == pytest.approx(
            law(block, batch, depth), rel=1e-6
        )


def test_what_a_law_misses_is_carried_over_from_points_nearby_and_forgotten_far_away() -> None:
    points = [point(block, 1, 1, 1e-9) for block in (MIB, 4 * MIB, 64 * MIB)]
    points.append(point(16 * MIB, 1, 1, 1.5e-9))  # a dip that no law of this form has
    curve = fit(points, "made up")

    bare = msgspec.structs.replace(curve, points=())
    near = curve.s_of_byte(16 * MIB, 1, 1) / bare.s_of_byte(16 * MIB, 1, 1)
    far = curve.s_of_byte(16 * MIB, 2**40, 1) / bare.s_of_byte(16 * MIB, 2**40, 1)
    assert near > 1.15
    assert far == pytest.approx(1, abs=0.02)


def test_a_prediction_beyond_the_points_says_so_and_one_between_them_does_not() -> None:
    curve = fit([point(MIB, 1, 1, 1e-9), point(4 * MIB, 1, 8, 1e-9)], "made up")

    assert curve.seconds(8 * MIB, block_bytes=2 * MIB, depth=4).outside == ()
    beyond = curve.seconds(8 * MIB, block_bytes=65_536, depth=32)
    assert beyond.outside == (
        "block_bytes 65536 is outside 1.04858e+06 to 4.1943e+06",
        "depth 32 is outside 1 to 8",
    )
    assert beyond.source == "made up"


def test_a_prediction_is_no_surer_than_the_points_that_it_rests_on() -> None:
    same = [point(MIB, 1, 1, 1e-9), point(2 * MIB, 1, 1, 1e-9)]
    sure = fit(same, "x").seconds(MIB, block_bytes=MIB)
    apart = fit([same[0], point(MIB, 1, 1, 2e-9)], "x").seconds(MIB, block_bytes=MIB)

    assert sure.high / sure.value == pytest.approx(math.sqrt(1.05 / 0.95), rel=1e-3)
    assert apart.low < MIB * 1e-9 < MIB * 2e-9 < apart.high


def test_points_without_a_rate_make_no_curve() -> None:
    with pytest.raises(UsageError, match="expected points with rates above 0"):
        fit([], "nothing")


def test_requests_in_flight_are_never_more_than_there_are() -> None:
    curve = fit([point(MIB, 1, d, law(MIB, 1, d)) for d in (1, 2, 4, 8)], "made up")

    one = curve.seconds(MIB, block_bytes=MIB, batch=16, depth=8)
    assert one.value == pytest.approx(curve.seconds(MIB, block_bytes=MIB, depth=1).value)


def test_a_report_gives_its_tiers_and_says_why_others_are_missing() -> None:
    tiers = from_report(read_report(PUBLISHED, samples=False))

    assert tiers.kind == "measured"
    assert set(tiers.curves) == {"dram.read", "dram.write", "nvme.read", "nvme.write"}
    assert "no GPU in it: copies in host memory" in tiers.curves["dram.read"].source
    assert "no CUDA device" in tiers.missing["hbm.read"]
    assert tiers.missing["peer.read"] == "no row of peer.get"
    with pytest.raises(UsageError, match=r"has no peer\.read: no row of peer\.get"):
        tiers.path("peer.read", block_bytes=MIB)
    read = tiers.seconds("nvme.read", 64 * MIB, block_bytes=2 * MIB, queue_depth=16)
    assert read.outside == ()
    assert 64 * MIB / read.value == pytest.approx(974e6, rel=0.1)  # the row of that case


def test_with_a_gpu_its_link_is_the_way_to_host_memory() -> None:
    rows = [
        row("dram.copy", 10e9, block_bytes=MIB, threads=1, memory="locked"),
        row("hbm.transfer", 50e9, block_bytes=MIB, batch=16, direction="h2d", memory="pinned"),
        row("hbm.transfer", 40e9, block_bytes=MIB, batch=16, direction="d2h", memory="pinned"),
    ]
    tiers = from_report(report_of(rows))

    reads, writes = (
        tiers.curve(name).bytes_per_s(block_bytes=MIB, batch=16).value
        for name in ("dram.read", "dram.write")
    )
    assert (reads, writes) == pytest.approx((50e9, 40e9))


def test_rows_of_a_simulated_device_never_pass_for_measured() -> None:
    rows = [row("nvme.read", 1e9, block_bytes=MIB, queue_depth=1)]

    assert from_report(report_of(rows)).kind == "measured"
    simulated = from_report(report_of(rows, simulated="steady"))
    assert simulated.kind == "simulated"
    assert "simulated" in simulated.curves["nvme.read"].source


def test_a_case_that_ran_beside_a_load_is_no_point() -> None:
    alone = row("nvme.read", 1e9, block_bytes=MIB, queue_depth=1)
    loaded = msgspec.structs.replace(alone, id="x+y", beside="y", bytes_per_s=1e6)

    assert len(from_report(report_of([alone, loaded])).curves["nvme.read"].points) == 1
    with pytest.raises(UsageError, match="kvbench run quick"):
        from_report(report_of([loaded]))


def test_a_data_sheet_is_taken_with_a_stated_share_and_its_sources() -> None:
    curve = from_hardware(hardware("H100"), gpus=8).curve("dram.read")
    rate = curve.bytes_per_s(block_bytes=64 * MIB, depth=16)

    assert rate.value == pytest.approx(8 * 64e9 * 0.8, rel=0.01)
    assert "h100_sxm.yaml" in rate.source
    assert "0.8 (0.7 to 0.86" in rate.source
    assert rate.low < rate.value < rate.high


def test_what_a_report_lacks_may_come_from_a_data_sheet_and_the_name_tells() -> None:
    measured = from_report(report_of([row("nvme.read", 1e9, block_bytes=MIB, queue_depth=1)]))
    both = measured.with_defaults(from_hardware(hardware("a100")))

    assert both.curves["nvme.read"] == measured.curves["nvme.read"]
    assert both.kind == "mixed"
    assert "dram.read" in both.name
    assert "A100" in both.name
    assert measured.with_defaults(measured) is measured


@pytest.mark.parametrize("name", ["h1000", "hundred", ""])
def test_hardware_that_is_not_known_is_an_error_that_lists_what_is(name: str) -> None:
    with pytest.raises(UsageError, match="There are a100"):
        hardware(name)


def test_a_port_is_known_by_its_rate() -> None:
    assert nic("400G").bytes_per_s == 50e9


def test_two_transfers_at_once_share_a_path_evenly() -> None:
    assert shared_s(LINK, [0, 0], [100, 100]) == pytest.approx([20, 20])
    # Alone for 5 s (50 of 100), then half each: the first needs 10 s more, the other goes on alone
    assert shared_s(LINK, [0, 5], [100, 100]) == pytest.approx([15, 20])
    assert shared_s(LINK, [0, 100], [100, 100]) == pytest.approx([10, 110])


def test_a_flow_has_its_own_limit_and_latency_is_not_shared() -> None:
    path = Path(latency_s=1.0, bytes_per_s=10.0, flow_bytes_per_s=4.0)

    assert alone_s(path, 20) == 6.0
    assert alone_s(path, 0) == 0.0
    assert shared_s(path, [0, 0], [20, 20]) == pytest.approx([6, 6])  # 4 + 4 are less than 10
    assert shared_s(path, [0, 0, 0, 0], [10, 10, 10, 10]) == pytest.approx([5, 5, 5, 5])
    with pytest.raises(UsageError, match="expected as many"):
        shared_s(path, [0], [1, 2])


def stepped(starts: list[float], sizes: list[float], rate: float) -> list[float]:
    """The slow, obvious way: small steps of time, the rate divided among who runs."""
    step_s, now_s = 1e-3, 0.0
    left, done = list(sizes), [math.nan] * len(sizes)
    while any(math.isnan(end) for end in done):
        running = [i for i, at in enumerate(starts) if at <= now_s and math.isnan(done[i])]
        now_s += step_s
        for i in running:
            left[i] -= rate / len(running) * step_s
            if left[i] <= 0:
                done[i] = now_s
    return done


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 8).map(float), st.integers(1, 20).map(float)),
        min_size=1,
        max_size=4,
    )
)
def test_sharing_agrees_with_small_steps_of_time(flows: list[tuple[float, float]]) -> None:
    starts, sizes = [flow[0] for flow in flows], [flow[1] for flow in flows]

    assert shared_s(LINK, starts, sizes) == pytest.approx(stepped(starts, sizes, 10.0), abs=0.02)


def test_loads_that_slow_each_other_end_where_shared_work_does() -> None:
    assert pair_s((10, 10), (2, 2)) == pytest.approx((20, 20))
    assert pair_s((5, 10), (2, 2)) == pytest.approx((10, 15))  # as sharing one path does
    assert pair_s((5, 10), (1, 1)) == pytest.approx((5, 10))


def test_a_transfer_hides_behind_all_but_one_layer_of_the_prefill() -> None:
    assert exposed_s(0.5, 1.0, 80) == 0.0
    assert exposed_s(1.5, 1.0, 4) == pytest.approx(1.5 - 0.75)
    assert exposed_s(1.5, 1.0, 1) == 1.5  # nothing can be overlapped


def test_quantised_blocks_pay_for_the_kernel_and_move_fewer_bytes() -> None:
    path = quantised(LINK, stored_share=0.5, kernel_bytes_per_s=100)

    assert alone_s(path, 50) == pytest.approx(5 + 1)  # 100 bytes: half over the link, all computed
    assert alone_s(path, 0) == 0.0
    assert path.bytes_per_s == LINK.bytes_per_s  # transfers at the same time still share all of it


@pytest.mark.parametrize("stored", ["fp8", "int8"])
def test_what_is_stored_smaller_takes_the_time_of_its_kernel_where_hbm_is_known(
    stored: str,
) -> None:
    model, tiers = load_geometry("llama-3.1-8b"), from_hardware(hardware("h100"), gpus=1)
    plain = scenario_parts(model, compute(model, "h100", gpus=1), tiers)
    small = scenario_parts(model, compute(model, "h100", gpus=1), tiers, stored_dtype=stored)

    share = small.stored_bytes_per_token / plain.kv_bytes_per_token
    size_bytes = 1e9
    kernel_s = size_bytes * (1 + share) * tiers.curve("hbm.read").s_per_byte
    moved_s = alone_s(plain.reads["dram"], size_bytes * share)
    # Smaller blocks take a little longer on their way, too
    took_s = alone_s(small.reads["dram"], size_bytes * share)
    assert took_s == pytest.approx(moved_s + kernel_s, rel=1e-3)
    assert any(note.startswith(f"quantising to {stored}: ") for note in small.notes)


def test_a_chain_of_paths_is_as_slow_as_its_slowest() -> None:
    made = chain(LINK, None, Path(latency_s=2.0, bytes_per_s=3.0))

    assert (made.latency_s, made.bytes_per_s) == (2.0, 3.0)
    with pytest.raises(UsageError, match="no paths"):
        chain(None)


def test_predictions_add_with_both_sources_and_every_doubt() -> None:
    one = around(2.0, 0.5, 2, unit="s", source="a")
    other = around(1.0, 1, 1, unit="s", source="b", outside=("far",))

    both = one.plus(other)
    assert (both.low, both.value, both.high) == (2.0, 3.0, 5.0)
    assert both.source == "a + b"
    assert both.outside == ("far",)
    with pytest.raises(UsageError, match="cannot be added"):
        one.plus(around(1.0, 1, 1, unit="B/s", source="b"))


def test_parts_of_a_scenario_name_their_calibrations() -> None:
    model = load_geometry("llama-3.1-70b")
    tiers = from_hardware(hardware("h100"))
    parts = scenario_parts(model, compute(model, "h100"), tiers, stored_dtype="fp8")

    assert parts.kind == "datasheet tiers, modelled computing"
    assert any(note.startswith("computing: ") for note in parts.notes)
    assert any(note.startswith("nvme.read: data sheet") for note in parts.notes)
    assert parts.stored_bytes_per_token < 0.6 * parts.kv_bytes_per_token
    dram = parts.tier("dram", 2**40, block_tokens=512)
    assert dram.capacity_blocks == int(2**40 // (parts.stored_bytes_per_token * 512))
    assert dram.read == parts.reads["dram"]
    assert parts.decode.most_context_tokens == int(parts.hbm_free_bytes / parts.kv_bytes_per_token)


def test_a_tier_with_room_and_no_known_speed_is_refused() -> None:
    model = load_geometry("llama-3.1-8b")
    only_nvme = from_report(report_of([row("nvme.read", 1e9, block_bytes=MIB, queue_depth=1)]))
    parts = scenario_parts(model, compute(model, "h100", gpus=1), only_nvme)

    assert parts.tier("dram", 0, block_tokens=512).capacity_blocks == 0
    with pytest.raises(UsageError, match="how fast dram is is not known"):
        parts.tier("dram", 2**40, block_tokens=512)
