"""Figures and words into one HTML file that opens offline and can reach no network.

The scripts that draw are inlined once, and the page's content security policy lets no other run
and nothing be fetched, whatever a report says. Everything a report says is escaped by Jinja.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

import jinja2
import vl_convert
from markupsafe import Markup

from kvbench.compare.record import PASSED, Comparison, Verdict
from kvbench.measure.result import Report, Row
from kvbench_reports.ci import inject_text
from kvbench_reports.compare import head as compare_head
from kvbench_reports.compare.figures import ranked
from kvbench_reports.head import SEPARATOR, SIMULATED, closing, head, simulated_notice
from kvbench_reports.html.figure import Figure, Spec, Table
from kvbench_reports.html.forest import forest, listed
from kvbench_reports.html.ladder import headlines, ladder, prompt_words
from kvbench_reports.html.latencies import distribution
from kvbench_reports.html.machine import machine_facts, model_facts, run_facts
from kvbench_reports.html.says import alone, key_of, measured, tiers_of
from kvbench_reports.html.spread import spread
from kvbench_reports.html.sweep import sweeps
from kvbench_reports.html.vega import CONFIG
from kvbench_reports.interference import NOTE, interference
from kvbench_reports.view import collect_warnings, tier_views
from kvbench_reports.words import clean, count

_HERE = files("kvbench_reports.html") / "templates"


def report_page(report: Report) -> str:
    """The page of a report.

    Raises:
        UsageError: a latency histogram is damaged.
    """
    warned = collect_warnings(report)
    notices = _report_notices(report)
    overview = ladder(report)
    figures = {
        clean(tier): _tier_figures(tier, rows) if measured(rows) else []
        for tier, rows in tiers_of(report).items()
    }
    every = [overview, *(figure for each in figures.values() for figure in each)]
    return page(
        "report.html.j2",
        every,
        title=f"kvbench report: suite {clean(report.suite)}",
        lines=[(name, SEPARATOR.join(facts)) for name, facts in head(report) if name != SIMULATED],
        notices=notices,
        tags=[name for name, _ in notices],
        prompt=prompt_words(report),
        headlines=headlines(report),
        ladder=overview,
        views=tier_views(report, warned),
        figures=figures,
        interference=_interference(report),
        interference_note=NOTE,
        warned=warned,
        run=[run_facts(report), model_facts(report.model)],
        machine=machine_facts(report.machine),
        closing=closing(report),
    )


def comparison_page(comparison: Comparison) -> str:
    """The page of a comparison."""
    plot = forest(comparison)
    groups = ranked(comparison)
    notices = [(name, "; ".join(facts)) for name, facts in compare_head.notices(comparison)]
    said = {name for name, _ in notices}
    return page(
        "comparison.html.j2",
        [plot],
        title=f"kvbench compare: {compare_head.outcome(comparison)}",
        passed=comparison.exit_code == PASSED,
        outcome=compare_head.outcome(comparison),
        why=compare_head.why(comparison),
        lines=[
            (name, SEPARATOR.join(facts))
            for name, facts in compare_head.head(comparison)
            if name not in said
        ],
        notices=notices,
        tags=list(dict.fromkeys(name for name, _ in notices)),
        tally=[(verdict, len(groups[verdict])) for verdict in Verdict],
        forest=plot,
        findings=listed(comparison),
        seen=compare_head.SEEN,
        sight=[(clean(each.group), compare_head.sight_text(each)) for each in comparison.sight],
        conditions=comparison.conditions,
        confirm=clean(comparison.confirm) if comparison.confirm else "",
        confirm_label=compare_head.confirm_label(comparison),
        machine=[model_facts(comparison.model), *machine_facts(comparison.machine)],
    )


def _tier_figures(tier: str, rows: list[Row]) -> list[Figure]:
    parameters = [*sweeps(tier, rows), distribution(tier, rows)] if alone(rows) else []
    return [*parameters, spread(tier, rows)]


def _interference(report: Report) -> Table | None:
    """The rows beside a load; None without any."""
    rows = tuple(
        (each.case, each.load, each.load_rate, each.share_text, each.interval_text, each.why)
        for each in interference(report)
    )
    columns = ("case", "while", "runs at", "of alone, %", "95 %, %", "notes")
    return Table(columns=columns, rows=rows, text=2) if rows else None


def _report_notices(report: Report) -> list[tuple[str, str]]:
    """What keeps the figures from being taken for a machine's own."""
    simulated = simulated_notice(report)
    injected = inject_text(report.inject)
    return [
        *([(SIMULATED, simulated)] if simulated else []),
        *([("injected", f"rows were {injected}; no baseline")] if injected else []),
    ]


def page(template: str, drawn: list[Figure], **parts: object) -> str:
    """A page from its template, with the charts that its figures need."""
    specs: dict[str, Spec] = {panel.key: panel.spec for figure in drawn for panel in figure.panels}
    script = _script() if specs else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _templates()
        .get_template(template, globals={"clean": clean, "key": key_of, "count": count})
        .render(
            parts,
            style=_read("style.css"),
            script=Markup(script),  # ours and Vega's, nothing of a report's
            digest=digest,
            specs={"config": CONFIG, "specs": specs},
        )
    )


@cache
def _script() -> str:
    """Vega, Vega-Lite and the few lines that draw with them.

    Nothing in it may end the element that it stands in.
    """
    script = (
        f"{vl_convert.javascript_bundle('window.vegaEmbed = vegaEmbed;')}\n{_read('charts.js')}"
    )
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script, flags=re.IGNORECASE)


@cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
