"""Options of a simulation as text: what is read, and what is refused in one line."""

import re

import pytest

from kvbench.errors import UsageError
from kvbench.sim.options import Axis, Options, Prices, grid, read_axis, read_prices, read_router
from kvbench.sim.scenario import Architecture


def test_a_sweep_is_read_as_values_of_the_options_kind() -> None:
    assert read_axis("dram_gib=0,64,256") == Axis(option="dram_gib", values=[0.0, 64.0, 256.0])
    assert read_axis("--dram-gib=1") == Axis(option="dram_gib", values=[1.0])
    assert read_axis("nodes=2, 4").values == [2, 4]
    assert read_axis("architecture=none,p2p").values == [Architecture.NONE, Architecture.P2P]
    assert read_axis("overlap=true,false").values == [True, False]
    assert read_axis("slo_ttft_s=null,3").values == [None, 3.0]


def test_a_routers_own_options_go_on_after_a_comma() -> None:
    axis = read_axis("router=random,cost:overlap_weight=1,temperature=0.5,least-work")

    assert axis.values == ["random", "cost:overlap_weight=1,temperature=0.5", "least-work"]
    assert read_router("cost:overlap_weight=1,temperature=0.5") == (
        "cost",
        {"overlap_weight": 1.0, "temperature": 0.5},
    )


def test_the_last_axis_of_a_grid_moves_fastest() -> None:
    axes = [read_axis("nodes=1,2"), read_axis("dram_gib=0,8")]

    changed = [each for each, _ in grid(Options(), axes)]

    assert changed == [
        {"nodes": 1, "dram_gib": 0.0},
        {"nodes": 1, "dram_gib": 8.0},
        {"nodes": 2, "dram_gib": 0.0},
        {"nodes": 2, "dram_gib": 8.0},
    ]
    assert [options.nodes for _, options in grid(Options(), axes)] == [1, 1, 2, 2]


def test_prices_are_of_a_day_and_add_up_over_the_cluster() -> None:
    prices = read_prices("gpu_hour=2.5, dram_gib_hour=0.01,node_hour=1,date=2026-11-26")

    assert prices == Prices(date="2026-11-26", gpu_hour=2.5, dram_gib_hour=0.01, node_hour=1.0)
    options = Options(nodes=2, decode_nodes=1, gpus=8, dram_gib=100)
    assert prices.per_hour(options) == pytest.approx(3 * (8 * 2.5 + 1.0 + 1.0))


def test_a_central_store_costs_only_where_there_is_one() -> None:
    prices = Prices(date="2026-11-26", central_gib_hour=0.5)

    assert prices.per_hour(Options(central_gib=10)) == 0.0
    central = Options(central_gib=10, architecture=Architecture.CENTRAL)
    assert prices.per_hour(central) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("speed=1,2", "OPTION=VALUE"),
        ("dram_gib", "OPTION=VALUE"),
        ("dram_gib=much", "'much' is no value"),
        ("nodes=1.5", "'1.5' is no value"),
        ("architecture=mesh", "'mesh' is no value"),
        ("nodes=2,2", "twice"),
    ],
)
def test_a_sweep_of_what_is_not_an_option_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as error:
        read_axis(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu_hour=2", "date=YYYY-MM-DD"),
        ("gpu_hour=2,date=yesterday", "YYYY-MM-DD"),
        ("gpu_hour=-1,date=2026-11-26", "at least 0"),
        ("gpu_hour=nan,date=2026-11-26", "at least 0"),
        ("beer=1,date=2026-11-26", "'beer'"),
    ],
)
def test_a_price_that_means_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        read_prices(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(dram_gib=-1), "--dram-gib -1"),
        (Options(dram_gib=float("nan")), "--dram-gib nan"),
        (Options(nodes=0), "--nodes 0"),
        (Options(nodes=1_000_000), "--nodes 1,000,000: expected at most 10,000"),
        (Options(hbm_batch_share=1), "--hbm-batch-share 1"),
        (Options(prefill_scale=0), "--prefill-scale 0"),
        (Options(rate_scale=0), "--rate-scale 0"),
        (Options(network_gbit=float("inf")), "--network-gbit inf"),
        (Options(requests=0), "--requests 0"),
        (Options(reject=True), "--slo-ttft-s"),
        (Options(router="random:x"), "'x' is no option"),
    ],
)
def test_a_value_out_of_range_is_refused_and_named(options: Options, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        options.check()


def test_a_grid_is_refused_where_an_option_stands_twice_or_there_are_too_many_runs() -> None:
    with pytest.raises(UsageError, match="each option once"):
        grid(Options(), [read_axis("nodes=1"), read_axis("nodes=2")])
    many = ",".join(str(each) for each in range(1, 102))
    with pytest.raises(UsageError, match="10,201 runs"):
        grid(Options(), [read_axis(f"nodes={many}"), read_axis(f"gpus={many}")])
    with pytest.raises(UsageError, match="--nodes 0"):
        grid(Options(), [read_axis("nodes=0,1")])
