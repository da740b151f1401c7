"""The HTML pages: what they say, that they are one valid file, and what a browser makes of them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from kvbench.compare.record import PASSED, Comparison, Finding, Verdict
from kvbench.errors import UsageError
from kvbench.measure.latency import encode, summarise
from kvbench.measure.result import Caution, Latency, ProcessResult, Report, Row, State, read_report
from kvbench_reports import html
from tests.reports.chromium import BINARY, Chromium, Seen
from tests.reports.test_golden import compare

pytest.importorskip("vl_convert", reason="needs the extra html: pip install 'kvbench[html]'")
pytest.importorskip("jinja2", reason="needs the extra html: pip install 'kvbench[html]'")

from kvbench_reports.html.forest import forest
from kvbench_reports.html.ladder import headlines, ladder
from kvbench_reports.html.latencies import distribution, percentiles
from kvbench_reports.html.says import rate_of
from kvbench_reports.html.spread import spread
from kvbench_reports.html.sweep import sweeps

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "reports" / "published" / "vm-2core-virtio.json"
KIB = 1024
MOST_BYTES = 3_000_000
VOID = {"meta", "link", "br", "path", "img", "input", "hr"}
HOSTILE = "</script><script>window.pwned = 1</script>\"'><img src=x onerror='window.pwned = 1'>"


class Page(HTMLParser):
    """What a page holds; fails on a tag that is closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""  # without scripts and styles
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, dict(attrs)))
        self.words += " "
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.words += " "
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
        elif "style" not in self._open:
            self.words += data

    def all(self, name: str) -> list[str]:
        """The values of an attribute, wherever it stands."""
        return [str(attrs[name]) for _, attrs in self.tags if name in attrs]

    @property
    def text(self) -> str:
        """The words with single spaces."""
        return " ".join(self.words.split())

    @property
    def specs(self) -> dict[str, Any]:
        """The specifications of the charts, by key."""
        return dict(json.loads(self.scripts[0])["specs"])


@cache
def latencies(seed: int) -> tuple[Latency, dict[str, str]]:
    """Of 4,000 operations around 0.3 ms, independent of each other."""
    samples = np.random.default_rng(seed).lognormal(np.log(3e5), 0.3, 4_000).astype(np.int64)
    return summarise([encode(samples)], effective_count=4_000)


def timed_row(case: str, rates: list[float], seed: int, **params: int | str | bool) -> Row:
    """An nvme row as a run of so many processes leaves it, with its histogram."""
    latency, missing = latencies(seed % 3)
    rate = float(np.median(rates))
    return Row(
        id=case,
        tier="nvme",
        operation=case.partition(".")[2].partition("/")[0],
        params=dict(params),
        state=State.OK,
        bytes_per_s=rate,
        bytes_per_s_low=0.97 * rate,
        bytes_per_s_high=1.03 * rate,
        limit_bytes_per_s=8e9,
        limit_fraction=rate / 8e9,
        limit_source="PCIe 4.0 x4 link of nvme0n1",
        latency_s=latency,
        missing=missing,
        path_observed="POSIX, O_DIRECT",
        processes=[process(index, each) for index, each in enumerate(rates)],
    )


def process(index: int, rate: float) -> ProcessResult:
    return ProcessResult(
        process=index,
        statistic="elapsed",
        bytes_per_s=rate,
        payload_bytes=1,
        traffic_bytes=1,
        timed_bytes=1,
        elapsed_s=1.0,
        sample_bytes_per_s=[],
        sample_count=1,
        warmup_samples=0,
        stopped_by="time",
        half_width=None,
        autocorrelation=None,
        slow_fraction=None,
        steady=None,
    )


@pytest.fixture
def swept(measured: Report) -> Report:
    """300 nvme rows of 10 processes: 5 block sizes, 10 depths, 6 engines and orders."""
    blocks = [4 ** (exponent + 3) * KIB for exponent in range(5)]
    rows: list[Row] = []
    for block in blocks:
        for depth in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64):
            for verb, engine, order in (
                ("read", "posix", "random"),
                ("read", "posix", "sequential"),
                ("read", "kvikio", "random"),
                ("read", "kvikio", "sequential"),
                ("write", "posix", "random"),
                ("write", "kvikio", "random"),
            ):
                true = min(7e9, depth * block / (1e-4 + block / 7e9))
                rng = np.random.default_rng(len(rows))
                rates = (true * rng.lognormal(0, 0.02, 10)).tolist()
                case = f"nvme.{verb}/{engine}/{block // KIB}KiB/qd{depth}/{order}"
                params = {"block_bytes": block, "queue_depth": depth}
                words = {"engine": engine, "order": order}
                rows.append(timed_row(case, rates, len(rows), **params, **words))
    measured.rows = rows
    return measured


@pytest.fixture
def hostile(measured: Report) -> Report:
    """A report in which every text is an attack."""
    measured.suite = measured.session_id = measured.simulated = measured.commit = HOSTILE
    measured.command = [HOSTILE]
    measured.inject = {HOSTILE: 0.08}
    measured.warnings = [Caution(code=HOSTILE, message=HOSTILE, fix=HOSTILE)]
    cpu = msgspec.structs.replace(measured.machine.cpu, model=HOSTILE, vendor=HOSTILE)
    measured.machine = msgspec.structs.replace(measured.machine, cpu=cpu)
    measured.model = msgspec.structs.replace(measured.model, name=HOSTILE)
    for row in measured.rows:
        row.id += HOSTILE
        row.path_observed = row.reason = row.limit_source = HOSTILE
        row.params = {"engine": HOSTILE, **row.params}
        if row.tier == "nvme":
            row.tier = HOSTILE
        row.warnings = [Caution(code=HOSTILE, message=HOSTILE, fix=HOSTILE)]
    measured.rows += [
        timed_row(f"nvme.read/{HOSTILE}/qd{depth}", [1e9, 2e9], depth, queue_depth=depth)
        for depth in (1, 4)
    ]
    return measured


@pytest.fixture(params=["measured", "simulated", "published", "swept", "hostile", "comparison"])
def page(request: pytest.FixtureRequest) -> str:
    """Every kind of page."""
    if request.param == "published":
        return html.render(read_report(PUBLISHED))
    made = request.getfixturevalue(request.param)
    return html.render_comparison(made) if isinstance(made, Comparison) else html.render(made)


# One file, valid, that reaches nothing


def test_a_page_is_one_valid_document_that_names_nothing_outside_itself(page: str) -> None:
    assert page.startswith("<!doctype html>")
    found = Page(page)
    assert ("html", {"lang": "en"}) in found.tags
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in found.tags
    assert [tag for tag, _ in found.tags].count("title") == 1
    assert len(found.scripts) == 2  # data and drawing, inlined once
    assert not found.all("src")
    assert not [tag for tag, _ in found.tags if tag in {"link", "img", "iframe", "object"}]
    assert all(address.startswith("#") for address in found.all("href"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    ids = found.all("id")
    assert len(ids) == len(set(ids))
    assert {address[1:] for address in found.all("href")} <= set(ids)
    assert set(found.all("aria-labelledby")) <= set(ids)


def test_a_page_is_under_3_mb_also_for_300_rows_of_10_processes(page: str) -> None:
    assert len(page.encode()) < MOST_BYTES


def test_every_chart_has_a_title_a_caption_a_label_and_its_table(page: str) -> None:
    found = Page(page)
    drawings = [attrs for tag, attrs in found.tags if tag == "div" and attrs.get("role") == "img"]
    keys = [str(each["id"]).removeprefix("chart-") for each in drawings]
    assert sorted(keys) == sorted(found.specs)
    assert all(each["aria-label"] for each in drawings)
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert figures
    for each in figures:
        assert re.search(r"<h3 id=[^>]*>\S", each)
        assert re.search(r"<figcaption>.*<p>\S.*</figcaption>", each, re.DOTALL)
        assert re.search(r"<details>.*<table>.*<td", each, re.DOTALL)


def test_every_chart_is_drawn_by_vega_itself_without_a_browser(swept: Report) -> None:
    import vl_convert  # noqa: PLC0415  after the skip above

    pages = [html.render(read_report(PUBLISHED)), html.render(swept)]
    for text in pages:
        found = Page(text)
        assert len(found.specs) > 8
        for key, spec in found.specs.items():
            drawn = vl_convert.vegalite_to_svg(spec | {"width": 400})
            assert re.search(r'class="mark-(symbol|line)[^>]*><path', drawn), key


def test_without_the_extra_one_line_says_what_to_install(
    measured: Report, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("jinja2", "vl_convert"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, missing, None)  # as if it were not installed
            patch.delitem(sys.modules, "kvbench_reports.html.pages", raising=False)
            patch.delattr(html, "pages", raising=False)
            calls = (partial(html.render, measured), partial(html.render_comparison, comparison))
            for call in calls:
                with pytest.raises(UsageError, match=missing) as raised:
                    call()
                assert str(raised.value).endswith("pip install 'kvbench[html]'")
                assert "\n" not in str(raised.value)


def test_the_format_is_offered_without_importing_what_it_needs() -> None:
    heavy = "{'jinja2', 'vl_convert', 'altair', 'numpy', 'torch'}"
    code = f"import sys, kvbench_reports.html; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "set()"


# What is said


def test_a_report_says_states_notes_and_warnings_as_other_formats_do(measured: Report) -> None:
    text = Page(html.render(measured)).text
    assert text.count("14 rows: 5 ok, 1 degraded, 1 invalid, 6 skipped, 1 failed") == 2
    assert "measured 397% of the limit" in text
    assert "asked for gds, the bytes went by posix-bounce" in text
    assert "5 cases no CUDA device: no NVIDIA driver" in text
    assert "limit (b): 12.4 GB/s, half of memcpy of 256 MiB on all cores" in text
    assert "no p99 in 2 rows, for example: 312 effective samples, 1000 needed" in text
    assert "degraded w2 w3" in text
    said = "processes differ by more than ±10 %: another load, or too few of them"
    assert f"w2 {said} (wide_interval, 2 rows) fix: kvbench run … --processes 10" in text
    assert "w1 the CPU governor is powersave (governor, whole run)" in text


def test_an_invalid_row_has_no_figure_on_the_page(measured: Report) -> None:
    row = next(row for row in measured.rows if row.state is State.INVALID)
    row.processes = [process(0, 31.25e9), process(1, 31.5e9)]
    text = html.render(measured)
    page = Page(text)
    assert "invalid" in page.text
    assert "31.2" not in page.text
    assert "3125" not in page.scripts[0]


def test_a_simulated_report_says_so_above_below_and_at_every_chart(simulated: Report) -> None:
    text = html.render(simulated)
    said = "2 rows from simulated devices (profile nvme-gen4), true of no machine"
    assert text.count(said) == 2
    assert text.index(said) < text.index("<figure")
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert figures
    assert all('<span class="tag">simulated</span>' in each for each in figures)


def test_rows_slowed_on_purpose_are_announced_above_below_and_at_every_chart(
    measured: Report,
) -> None:
    assert "on purpose" not in Page(html.render(measured)).text
    measured.inject = {"nvme.read*": 0.08}
    text = html.render(measured)
    assert text.count("slowed on purpose: nvme.read*=+8%") == 2
    assert text.index("slowed on purpose") < text.index("<figure")
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert all('<span class="tag">injected</span>' in each for each in figures)


def test_a_chart_without_data_is_left_out_and_a_sentence_says_why(measured: Report) -> None:
    text = Page(html.render(measured)).text
    assert "No charts: no row of hbm holds a figure." in text
    assert "No chart of rate by queue depth: no row of dram has a queue depth." in text
    said = "No chart of latency of single operations: no row of nvme holds a histogram"
    assert said in text
    measured.rows = [row for row in measured.rows if row.state is State.SKIPPED]
    nothing = html.render(measured)
    assert "No chart of tier ladder" in nothing
    assert "<figure" not in nothing
    assert "<script" not in nothing


def test_the_machine_is_listed_in_units_and_unknown_facts_are_left_out(measured: Report) -> None:
    text = html.render(measured)
    for term, value in (
        ("total", "16 GiB"),
        ("cgroup limit", "8 GiB"),
        ("hypervisor", "kvm"),
        ("direct I/O", "yes"),
        ("CPU quota cores", "1.5"),
        ("bytes of a block", "2,097,152"),
    ):
        assert f"<dt>{term}</dt><dd>{value}</dd>" in text
    assert "scheduler" not in text[: text.index("<script")]
    assert "None" not in Page(text).text


def test_a_comparison_says_outcome_reasons_rule_sight_conditions_and_the_next_command(
    comparison: Comparison,
) -> None:
    text = Page(html.render_comparison(comparison)).text
    assert text.index("FAIL, exit 3") < text.index("2 slower than allowed")
    assert "1 not comparable: it went another way" in text
    assert "slower by more than dram 3 %, nvme 5 %, p99 10 %" in text
    assert "nvme 17 % in one metric (2 tested), 9.0 % in all of them together" in text
    assert "p99 nothing: 5 processes a side needed" in text
    assert "kernel 6.1.0 in BASE, 6.8.0 in NEW (kernel)" in text
    assert "(no_steady_state) fix: kvbench run ci --time-limit 30" in text
    assert "NEW was slowed on purpose: nvme.read* by 8 %" in text
    assert "confirm: kvbench ab env: env:MALLOC_ARENA_MAX=1 ci --only" in text


def test_a_comparison_lists_every_finding_with_its_verdict_and_reason(
    comparison: Comparison,
) -> None:
    text = html.render_comparison(comparison)
    table = text[text.index('id="findings"') : text.index('id="machine"')]
    rows = [Page(row).text for row in re.findall(r"<tr class.*?</tr>", table, re.DOTALL)]
    assert len(rows) == len(comparison.findings)
    verdicts = [next(v for v in Verdict if row.startswith(v)) for row in rows]
    assert verdicts == sorted(verdicts, key=list(Verdict).index)
    missing = rows[verdicts.index(Verdict.MISSING)]
    assert "fails the gate; failed in NEW: no space left on device" in missing
    assert "1.80 GB/s" in missing


def test_a_pass_is_not_called_a_failure(comparison: Comparison) -> None:
    passed = msgspec.structs.replace(
        comparison, exit_code=PASSED, reasons=[], findings=comparison.findings[5:6], confirm=None
    )
    text = Page(html.render_comparison(passed)).text
    assert "PASS nothing was shown to be slower than allowed" in text
    assert "FAIL" not in text


@pytest.mark.parametrize("name", ["measured", "comparison"])
def test_the_words_and_marks_of_a_page_are_as_they_were(
    name: str, request: pytest.FixtureRequest
) -> None:
    made = request.getfixturevalue(name)
    text = html.render_comparison(made) if isinstance(made, Comparison) else html.render(made)
    body = text[text.index("<body>") : text.index("<script")]
    prefix = "" if name == "comparison" else "report_"
    compare(f"{prefix}{name}.html", body)


# The charts


def test_the_ladder_names_the_fastest_row_of_each_tier_operation_and_path(swept: Report) -> None:
    other = swept.rows[0]
    other.path_observed = "kvikio POSIX"
    best = {
        verb: max((row for row in swept.rows if row.operation == verb), key=rate_of)
        for verb in ("read", "write")
    }
    ids = [row[1] for row in ladder(swept).table.rows]
    assert set(ids) == {best["read"].id, best["write"].id, other.id}
    assert ids[-1] == other.id  # the slowest
    tip = json.dumps(ladder(swept).panels[0].spec["layer"])
    assert best["read"].id in tip


def test_the_big_figure_is_of_a_row_that_gives_blocks_back_and_is_bytes_over_rate(
    measured: Report,
) -> None:
    measured.rows.append(
        timed_row("nvme.write/posix/2MiB/qd16", [7.5e9], 1, block_bytes=2048 * KIB)
    )
    found = {each.tier: each for each in headlines(measured)}
    assert found["nvme"].case == "nvme.read/posix/2MiB/qd16/random"
    assert found["nvme"].time == "165 ms"  # 1 GiB at 6.514 GB/s
    assert found["hbm"].why == "no figure: 5 skipped"


def test_limit_lines_are_drawn_where_a_limit_is_known_and_nowhere_else(swept: Report) -> None:
    drawn = sweeps("nvme", swept.rows)[0]
    texts = json.dumps([panel.spec for panel in drawn.panels])
    assert '"text": "limit 8.00 GB/s"' in texts
    for row in swept.rows:
        row.limit_bytes_per_s = row.limit_fraction = None
    without = sweeps("nvme", swept.rows)[0]
    assert "limit" not in without.caption
    assert '"limit 8' not in json.dumps([panel.spec for panel in without.panels])


def test_a_line_joins_only_rows_that_differ_in_nothing_but_the_axis(swept: Report) -> None:
    figure = next(each for each in sweeps("nvme", swept.rows) if each.title == "Rate by block size")
    assert {panel.title for panel in figure.panels} == {
        "read, posix, random",
        "read, posix, sequential",
        "read, kvikio, random",
        "read, kvikio, sequential",
        "write, posix",  # all of them random
        "write, kvikio",
    }
    for panel in figure.panels:
        data: Any = panel.spec["data"]
        lines: dict[int, list[int]] = {}
        for row in data["values"]:
            lines.setdefault(row["line"], []).append(row["at"])
        assert all(places == sorted(set(places)) for places in lines.values())
    assert figure.legend[0].text == "queue depth 1"


def test_what_is_thinned_is_said_and_the_table_keeps_everything(swept: Report) -> None:
    text = Page(html.render(swept)).text
    assert "Thinned: 180 of 300 rows drawn, at most 6 lines in 6 panels" in text
    assert "Thinned: 12 of 300 rows drawn, those that spread most" in text
    assert len(spread("nvme", swept.rows).table.rows) == 300
    assert len(distribution("nvme", swept.rows).table.rows) == 300


def test_a_percentile_curve_passes_through_the_percentiles_that_the_row_states() -> None:
    latency = timed_row("nvme.read/x", [1e9], 3, queue_depth=1).latency_s
    assert latency is not None
    curve = dict(percentiles(latency))
    assert (curve[50.0], curve[90.0], curve[99.0]) == (latency.p50, latency.p90, latency.p99)
    assert sorted(curve.values()) == list(curve.values())


def test_a_percentile_curve_ends_where_ten_independent_samples_lie_beyond() -> None:
    latency = timed_row("nvme.read/x", [1e9], 3, queue_depth=1).latency_s
    assert latency is not None
    few = msgspec.structs.replace(latency, effective_count=250.0)
    assert percentiles(few)[-1][0] == pytest.approx(96.0)


def test_a_row_without_twenty_independent_samples_has_no_curve() -> None:
    row = timed_row("nvme.read/x", [1e9], 3, queue_depth=1)
    assert row.latency_s is not None
    row.latency_s = msgspec.structs.replace(row.latency_s, effective_count=19.0)
    figure = distribution("nvme", [row])
    assert not figure.panels
    assert figure.absent == "no row of nvme has 20 independent samples"


@pytest.mark.parametrize("damage", [lambda text: text[:90], lambda _: "é", lambda _: "AAAA"])
def test_a_damaged_histogram_is_an_error_for_the_user(damage: Any, swept: Report) -> None:
    row = swept.rows[0]
    latency: Latency | None = row.latency_s
    assert latency is not None
    row.latency_s = msgspec.structs.replace(latency, histogram=damage(latency.histogram))
    with pytest.raises(UsageError, match="histogram of this report is"):
        html.render(swept)


def test_a_dot_of_the_spread_is_a_process_relative_to_the_median_of_its_row() -> None:
    row = timed_row("nvme.read/x", [0.9e9, 1.0e9, 1.2e9], 3, queue_depth=1)
    figure = spread("nvme", [row])
    data: Any = figure.panels[0].spec["data"]
    assert [each["share"] for each in data["values"]] == pytest.approx([-0.1, 0.0, 0.2])
    assert figure.table.rows == (("nvme.read/x", "3", "-10.0 %", "+20.0 %", "-10.0, 0.0, +20.0"),)


def forest_rows(comparison: Comparison) -> Iterator[tuple[Finding, dict[str, Any]]]:
    data: Any = forest(comparison).panels[0].spec["data"]
    by_change = {each.change: each for each in comparison.findings}
    for row in data["values"]:
        yield by_change[row["change"]], row


def test_the_forest_plot_draws_every_tested_finding_and_cuts_what_leaves_it_with_an_arrow(
    comparison: Comparison,
) -> None:
    drawn = {finding.id: row for finding, row in forest_rows(comparison)}
    assert len(drawn) == 8
    wide = drawn["nvme.read/posix/2MiB/qd16/random p99"]
    assert wide["left"] == wide["low"] > -0.45
    assert wide["right"] == wide["high"] < 0.986
    slower = drawn["nvme.read/posix/2MiB/qd16/random"]
    assert (slower["low"], slower["high"]) == (0.098, 0.194)
    assert slower["left"] is slower["right"] is None


def test_a_verdict_is_a_word_and_a_shape_before_it_is_a_colour(comparison: Comparison) -> None:
    shapes = {
        finding.verdict: (row["shape"], row["hollow"]) for finding, row in forest_rows(comparison)
    }
    assert len(set(shapes.values())) == len(shapes) == 4
    label = forest(comparison).panels[0].label
    assert "SLOWER nvme.read/posix/2MiB/qd16/random +14.5 %" in label


def test_a_plot_that_leaves_the_screen_has_its_scale_above_too(comparison: Comparison) -> None:
    def scales(drawn: Comparison) -> int:
        return json.dumps(forest(drawn).panels[0].spec).count('"labelExpr"')

    many = msgspec.structs.replace(comparison, findings=comparison.findings * 2)
    assert (scales(comparison), scales(many)) == (1, 2)


# In a browser

LOOK = """(() => {
  const drawings = [...document.querySelectorAll(".drawing")];
  const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = (text) => rgb(text).map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const contrast = (ink) => {
    const [a, b] = [light(ink), paper].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = [...document.querySelectorAll(".drawing svg text")];
  const marks = [...document.querySelectorAll(".drawing svg .mark-symbol path")];
  return {
    charts: drawings.length,
    undrawn: drawings.filter((each) =>
      !each.querySelector("svg .mark-symbol path, svg .mark-line path")).map((each) => each.id),
    broken: drawings.filter((each) => /NaN|undefined/.test(each.innerHTML)).map((e) => e.id),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    narrowest: Math.min(...drawings.map((each) => each.getBoundingClientRect().width)),
    paper: paper,
    text: Math.min(...[...texts, document.querySelector("h1"), document.querySelector(".aside")]
      .map((each) => contrast(getComputedStyle(each)[each.closest("svg") ? "fill" : "color"]))),
    mark: Math.min(...marks.map((each) => contrast(getComputedStyle(each).stroke))
      .filter((each) => each > 1.01)),
    pwned: window.pwned === 1,
  };
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    if BINARY is None:
        pytest.skip("needs Chromium on the path: apt-get install chromium")
    with Chromium() as running:
        yield running


def seen(browser: Chromium, page: str, folder: Path, **how: Any) -> Seen:
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    return browser.visit(path, LOOK, **how)


@pytest.mark.parametrize(("width_px", "dark"), [(1200, False), (375, True)])
def test_a_browser_draws_every_chart_without_complaint_request_or_sideways_scrolling(
    page: str, browser: Chromium, tmp_path: Path, width_px: int, dark: bool
) -> None:
    found = seen(browser, page, tmp_path, width_px=width_px, dark=dark)
    assert found.complaints == []
    assert found.requests == [(tmp_path / "page.html").as_uri()]
    assert found.facts["charts"] > 0
    assert found.facts["undrawn"] == []
    assert found.facts["broken"] == []
    assert found.facts["overflow"] == 0
    assert found.facts["pwned"] is False
    assert (found.facts["paper"] < 0.05) is dark
    assert found.facts["text"] >= 4.5  # WCAG 2.2 AA for text, and below for graphics
    assert found.facts["mark"] >= 3


def test_a_request_or_a_script_that_slipped_in_would_be_noticed(
    measured: Report, browser: Chromium, tmp_path: Path
) -> None:
    # The two tests above would be worth nothing if this browser reported nothing.
    attack = "<img src='http://127.0.0.1:9/x.png'><script>window.pwned = 1</script></main>"
    found = seen(browser, html.render(measured).replace("</main>", attack), tmp_path)
    assert len(found.complaints) >= 2  # the policy stopped both
    assert found.facts["pwned"] is False
