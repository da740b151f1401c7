"""Simulations as tables, JSON, words and a page."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import msgspec
import pytest
from rich.console import Console

from kvbench.errors import UsageError
from kvbench.sim.options import Axis
from kvbench.sim.record import Simulation, decode_simulation, encode_simulation
from kvbench_reports import html
from kvbench_reports.schema import schema_text
from kvbench_reports.simulation import SIMULATION_FORMATS, table
from kvbench_reports.simulation.words import pareto, what_if
from kvbench_reports.words import NONE
from tests.reports.chromium import BINARY, Chromium
from tests.reports.simulations import hostile, make_run, make_simulation, single, swept

SCHEMA = Path(__file__).parents[2] / "reports" / "simulation.schema.json"
HOSTILE = "</script><script>window.pwned = 1</script>\"'><img src=x onerror='window.pwned = 1'>"
BOTH = {"single": single, "swept": swept}
LOOK = """({
    wide: document.documentElement.scrollWidth - window.innerWidth,
    drawn: document.querySelectorAll('.drawing:has(svg path)').length,
    panels: document.querySelectorAll('.drawing').length,
    pwned: window.pwned || 0,
})"""


def shown(simulation: Simulation, width: int, **how: object) -> str:
    text = io.StringIO()
    table.show(simulation, Console(file=text, width=width, **how))  # type: ignore[arg-type]
    return text.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", BOTH)
def test_no_line_of_a_table_is_wider_than_the_terminal(name: str, width: int) -> None:
    for line in shown(BOTH[name](), width).splitlines():
        assert len(line) <= width, line


def test_columns_that_do_not_fit_are_named_and_a_wide_terminal_has_all() -> None:
    narrow, wide = shown(swept(), 60), shown(swept(), 140)

    assert "no room for" in narrow
    assert "no room for" not in wide
    assert "goodput" in wide
    assert "$/M tok" in narrow  # the last to go


def test_without_colour_a_table_holds_no_escape() -> None:
    coloured = shown(swept(), 100, force_terminal=True, color_system="standard")
    plain = shown(swept(), 100, force_terminal=False)

    assert "\x1b[" in coloured
    assert "\x1b[" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


@pytest.mark.parametrize("form", ["table", "json", "html"])
@pytest.mark.parametrize("name", BOTH)
def test_every_format_says_that_it_is_simulated(name: str, form: str) -> None:
    if form == "html":
        pytest.importorskip("vl_convert", reason="needs the extra html")
        text = html.render_simulation(BOTH[name]())
    else:
        text = SIMULATION_FORMATS[form](BOTH[name]())

    assert "SIMULATED" in text
    assert "not measured" in text


def test_both_definitions_of_a_hit_are_named_where_hits_are_shown() -> None:
    for simulation in (single(), swept()):
        text = " ".join(shown(simulation, 100).split())
        assert "leading blocks that were used / all blocks of the input" in text
        assert "tokens that were not computed / all tokens of the input" in text


def test_a_failed_run_is_a_row_without_figures_and_its_reason_is_told() -> None:
    text = shown(swept(), 100)

    assert re.search(rf"^4096 +{NONE}[ {NONE}]*$", text, re.MULTILINE)
    assert "dram_gib 4096: out of memory" in text
    assert "4 runs SIMULATED, 1 failed" in text


def test_the_critical_path_of_a_request_is_shown_part_by_part() -> None:
    text = " ".join(shown(single(), 100).split())

    assert "request 3 arrived at 1.50 s" in text
    assert re.search(r"queue 120 27 .*compute 300 68 ", text)


def test_a_step_that_changes_nothing_is_called_nothing_from_there_on() -> None:
    shape = [(0.0, 3.0, 0.1), (64.0, 1.0, 0.3), (256.0, 1.005, 0.3), (1024.0, 1.0, 0.3)]
    runs = [make_run(slower=slow, found=hit, dram_gib=size) for size, slow, hit in shape]
    axis = Axis(option="dram_gib", values=[size for size, *_ in shape])

    said = what_if(make_simulation(runs, [axis]))

    assert said[0].startswith("dram_gib 0 → 64: block hit rate 5.0 % → 15.0 %, mean TTFT 3.36 s →")
    assert said[1] == "beyond dram_gib 64 nothing changes by more than 2 %"
    assert not any("256" in each for each in said)


def test_a_change_after_a_flat_stretch_is_not_called_nothing() -> None:
    shape = [(0.0, 1.0), (64.0, 1.0), (256.0, 2.0)]
    runs = [make_run(slower=slower, found=0.3, dram_gib=size) for size, slower in shape]
    axis = Axis(option="dram_gib", values=[0.0, 64.0, 256.0])

    said = what_if(make_simulation(runs, [axis]))

    assert said[0] == "dram_gib 0 → 64: nothing changes by more than 2 %"
    assert "mean TTFT 1.41 s → 2.37 s" in said[1]
    assert not any(each.startswith("beyond") for each in said)


def test_words_are_ranked_by_mean_ttft_with_how_far_behind() -> None:
    runs = [
        make_run(slower=slower, found=0.3, router=name)
        for name, slower in (("random", 9.0), ("cost", 1.0), ("least-work", 1.001))
    ]
    axis = Axis(option="router", values=["random", "cost", "least-work"])

    (first, *_) = what_if(make_simulation(runs, [axis], priced=False))

    assert first.startswith("router by mean TTFT: cost 1.41 s (block hit rate 15.0 %); least-work")
    assert "as cost, within 2 %" in first
    assert re.search(r"random 9\.\d+ s \(6\.\d+ times", first)


def test_of_many_values_the_best_and_the_worst_are_named() -> None:
    runs = [make_run(slower=1.0 + at, found=0.3, router=f"r{at}") for at in range(8)]
    axis = Axis(option="router", values=[f"r{at}" for at in range(8)])

    (first, *_) = what_if(make_simulation(runs, [axis]))

    assert re.findall(r"\br\d (?=\d)", first) == ["r0 ", "r1 ", "r2 ", "r3 ", "r7 "]
    assert "3 more between" in first


def test_seeds_are_a_range_and_one_seed_is_called_no_interval() -> None:
    runs = [make_run(slower=1 + seed / 10, found=0.3, seed=seed) for seed in range(3)]

    said = what_if(make_simulation(runs, [Axis(option="seed", values=[0, 1, 2])]))

    assert said[0].startswith("over 3 seeds: block hit rate 15.0 %, mean TTFT 1.41 s to 1.60 s")
    assert not any("is not known" in each for each in said)
    assert any("one seed" in each for each in what_if(swept()))


def test_the_front_holds_the_runs_that_no_other_beats_in_both() -> None:
    points = [(50.0, 3.0), (60.0, 1.0), (70.0, 2.0), (80.0, 0.5), (90.0, 0.5)]
    runs = [
        make_run(slower=slower, found=0.3, dollars=dollars, nodes=index)
        for index, (dollars, slower) in enumerate(points)
    ]
    axis = Axis(option="nodes", values=list(range(len(points))))

    assert pareto(make_simulation(runs, [axis])) == [0, 1, 3]


def test_without_prices_no_cost_is_shown_anywhere() -> None:
    runs = [make_run(slower=1.0, found=0.3, dollars=None, dram_gib=size) for size in (0.0, 8.0)]
    axis = Axis(option="dram_gib", values=[0.0, 8.0])
    bare = make_simulation(runs, [axis], priced=False)

    assert "$" not in shown(bare, 140)
    assert json.loads(encode_simulation(bare))["runs"][0]["summary"]["cost"] is None


def test_json_reads_back_and_follows_the_exported_schema() -> None:
    for simulation in (single(), swept()):
        text = SIMULATION_FORMATS["json"](simulation)
        assert decode_simulation(text.encode(), "it") == simulation
        jsonschema.validate(
            json.loads(text),
            json.loads(SCHEMA.read_text(encoding="utf-8")),
            cls=jsonschema.Draft202012Validator,
        )


def test_the_exported_schema_of_simulations_is_current() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text("simulation"), (
        "python -m kvbench_reports.schema simulation > reports/simulation.schema.json"
    )


def test_a_file_of_another_kind_or_version_is_refused() -> None:
    later = msgspec.structs.replace(single(), schema="kvbench.simulation/2")

    with pytest.raises(UsageError, match=r"kvbench\.simulation/2.*upgrade"):
        decode_simulation(encode_simulation(later), "x.json")
    with pytest.raises(UsageError, match=r"x\.json is not a kvbench simulation"):
        decode_simulation(b"{}", "x.json")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    pytest.importorskip("vl_convert", reason="needs the extra html: pip install 'kvbench[html]'")
    if BINARY is None:
        pytest.skip("needs Chromium on the path: apt-get install chromium")
    with Chromium() as running:
        yield running


@pytest.mark.parametrize(("width_px", "dark"), [(1200, False), (375, True)])
@pytest.mark.parametrize("name", BOTH)
def test_a_browser_draws_every_chart_without_complaint_request_or_sideways_scrolling(
    name: str, browser: Chromium, tmp_path: Path, width_px: int, dark: bool
) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render_simulation(BOTH[name]()), encoding="utf-8")

    seen = browser.visit(page, LOOK, width_px=width_px, dark=dark)

    assert seen.complaints == []
    assert seen.requests == [page.as_uri()]
    assert seen.facts["wide"] <= 0
    assert seen.facts["drawn"] == seen.facts["panels"] == (4 if name == "swept" else 3)


def test_words_from_files_can_run_nothing_on_the_page(browser: Chromium, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render_simulation(hostile(swept(), HOSTILE)), encoding="utf-8")

    seen = browser.visit(page, LOOK)

    assert (seen.complaints, seen.facts["pwned"], seen.facts["drawn"]) == ([], 0, 4)


def test_charts_thin_out_many_runs_and_say_so() -> None:
    pytest.importorskip("vl_convert", reason="needs the extra html: pip install 'kvbench[html]'")
    sizes = [float(each) for each in range(40)]
    runs = [make_run(slower=1.0, found=0.3, dram_gib=size) for size in sizes]
    page = html.render_simulation(
        make_simulation(runs, [Axis(option="dram_gib", values=list(sizes))])
    )

    assert "Thinned: 6 of 40 runs drawn" in page
    assert "Thinned: 24 of 40 runs drawn" in page
    assert "40 rows as a table" in page
