"""From options to a scenario: capacities, paths and what the figures stand on."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.geometry import load_geometry
from kvbench.sim.options import Options
from kvbench.sim.scenario import Architecture
from kvbench.sim.study import Study, check_names, make_study
from kvbench.sim.sweep import cut
from tests.sim.test_sweep import trace

BLOCK_BYTES = 327_680 * 512  # llama-3.1-70b in bf16
GIB = 2**30


def study(**options: object) -> Study:
    return make_study(msgspec.structs.replace(Options(), **options), trace())


def test_capacities_are_whole_blocks_of_the_models_bytes() -> None:
    scenario = study(hbm_gib=32.0, dram_gib=100.0, nvme_gib=1000.0).scenario

    assert {tier.name: tier.capacity_blocks for tier in scenario.tiers} == {
        "hbm": 16 * GIB // BLOCK_BYTES,  # the other half is the running batch's
        "dram": 100 * GIB // BLOCK_BYTES,
        "nvme": 1000 * GIB // BLOCK_BYTES,
    }


def test_a_tier_of_no_size_is_not_there_and_nothing_is_said_of_it() -> None:
    without, with_it = study(dram_gib=0.0), study(dram_gib=1.0)

    assert [tier.name for tier in without.scenario.tiers] == ["hbm"]
    assert not any("dram" in note for note in without.calibrations)
    assert any(note.startswith("dram.read") for note in with_it.calibrations)


def test_what_is_stored_smaller_below_hbm_fits_more_blocks_there() -> None:
    raw, small = study(dram_gib=100.0), study(dram_gib=100.0, stored_dtype="fp8")

    assert small.scenario.tiers[1].capacity_blocks == 100 * GIB // (BLOCK_BYTES // 2)
    assert small.scenario.stored_bytes_per_token == raw.scenario.kv_bytes_per_token / 2


def test_a_central_store_is_shared_behind_its_own_link() -> None:
    scenario = study(
        architecture=Architecture.CENTRAL, central_gib=64.0, central_gbit=80.0, network_gbit=40.0
    ).scenario

    assert scenario.central is not None
    assert scenario.central.capacity_blocks == 64 * GIB // BLOCK_BYTES
    assert scenario.central.read is not None
    assert scenario.central.read.bytes_per_s == 10e9
    assert scenario.network is not None
    assert scenario.network.bytes_per_s == 5e9


def test_hbm_is_what_weights_leave_or_what_the_user_says_and_none_of_it_counts_twice() -> None:
    geometry = load_geometry("llama-3.1-70b")
    free = study().scenario
    said = study(hbm_gib=10.0, hbm_batch_share=0.2)
    apart = study(hbm_gib=10.0, decode_nodes=1)

    most = 8 * 80e9 / geometry.model_bytes_per_token / 512
    assert 0 < free.tiers[0].capacity_blocks < most
    tokens = 10 * GIB / geometry.model_bytes_per_token
    assert said.scenario.decode.most_context_tokens == int(0.2 * tokens)
    assert said.scenario.tiers[0].capacity_blocks == int(0.8 * tokens / 512)
    assert any(
        note.startswith("hbm: 8 GiB for blocks, 2 GiB for the running batch")
        for note in said.calibrations
    )
    # On nodes of their own, prefill has the blocks and decode the batch
    assert apart.scenario.decode.most_context_tokens == int(tokens)
    assert apart.scenario.tiers[0].capacity_blocks == int(tokens / 512)


def test_scales_of_computing_multiply_what_is_modelled_and_the_note_says_which_to_try() -> None:
    plain, scaled = study(), study(prefill_scale=2.0, decode_scale=0.5)

    modelled, slower = plain.scenario.prefill, scaled.scenario.prefill
    assert slower.seconds(1000, 200) == pytest.approx(2 * modelled.seconds(1000, 200))
    assert scaled.scenario.decode.fixed_s == plain.scenario.decode.fixed_s / 2
    assert scaled.scenario.decode.per_sequence_s == plain.scenario.decode.per_sequence_s / 2
    assert any("--sweep prefill_scale=" in note for note in plain.calibrations)
    assert any("results are of 2 and 0.5 times" in note for note in scaled.calibrations)


def test_quantising_for_a_central_store_takes_time_as_for_any_tier_below_hbm() -> None:
    shared = {"architecture": Architecture.CENTRAL, "central_gbit": 400.0}
    plain, small = study(**shared).scenario, study(**shared, stored_dtype="fp8").scenario

    assert plain.central is not None
    assert plain.central.read is not None
    assert plain.central.read.flow_bytes_per_s == float("inf")
    assert small.central is not None
    assert small.central.read is not None
    assert small.central.read.flow_bytes_per_s < small.central.read.bytes_per_s


def test_lengths_beyond_the_calibration_are_a_warning_with_their_share() -> None:
    long = replace(trace(), input_tokens=np.full(40, 200_000, np.int32))

    inside, outside = study().outside, make_study(Options(), long).outside

    assert not any("requests" in each for each in inside)
    assert any("40 of 40 requests (100 %)" in each for each in outside)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"router": "best"}, "'best'"),
        ({"router": "random:x=1"}, "'x'"),
        ({"eviction": "mru"}, "'mru'"),
        ({"model": "llama-9"}, "llama-9"),
        ({"hardware": "abacus"}, "'abacus'"),
        ({"tiers": "nowhere.json"}, "'nowhere.json'"),
        ({"hardware": "mooncake-fast25"}, "--tiers"),
    ],
)
def test_a_name_that_is_not_known_is_refused_in_one_line(
    options: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as error:
        check_names(msgspec.structs.replace(Options(), **options))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_tiers_of_a_report_are_its_measured_curves_and_say_so() -> None:
    report = Path(__file__).parents[2] / "reports" / "published" / "vm-2core-virtio.json"
    made = study(tiers=str(report), dram_gib=8.0, nvme_gib=8.0)
    sheet = study(dram_gib=8.0, nvme_gib=8.0)

    assert any("measured" in note and "nvme" in note for note in made.calibrations)
    measured, data_sheet = made.scenario.tiers[2].read, sheet.scenario.tiers[2].read
    assert measured is not None
    assert data_sheet is not None
    assert measured.bytes_per_s < data_sheet.bytes_per_s  # a virtual disk


def test_a_part_of_a_trace_is_its_first_requests_at_another_rate() -> None:
    part = cut(trace(), 10, 2.0)

    assert part.requests == 10
    assert part.arrival_s.tolist() == [each / 2 for each in range(10)]
    assert len(part.ids) == part.starts[-1] == 20
    assert part.unique_blocks == 11
