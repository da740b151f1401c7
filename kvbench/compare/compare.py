"""BASE against NEW: matched, tested, and turned into an exit status with its reasons.

`gate` has the statistics, `match` says who is tested with whom, `judge` what a result is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvbench import __version__
from kvbench.compare.alike import (
    check_sources,
    conditions,
    differences,
    interleaved,
    require_alike,
)
from kvbench.compare.confirm import confirm_command
from kvbench.compare.gate import ALPHA, PAIRED_FROM
from kvbench.compare.judge import judge, looks
from kvbench.compare.match import INTERLEAVED, Pair, match, tiers
from kvbench.compare.metrics import GROUPS, MARGINS, chosen, metrics_of
from kvbench.compare.noise import Noise, age_cautions
from kvbench.compare.record import (
    INCONCLUSIVE,
    NOT_COMPARABLE,
    PASSED,
    REGRESSION,
    Comparison,
    Design,
    Finding,
    Kind,
    NoiseUse,
    Sight,
    Source,
    Verdict,
)
from kvbench.errors import NotComparableError, UsageError
from kvbench.machine import redact_argument
from kvbench.measure.result import Caution, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to compare."""

    margins: Mapping[str, float] = field(default_factory=lambda: dict(MARGINS))
    noise: Noise | None = None
    noise_path: str = ""
    only: Sequence[str] = ()
    force: bool = False  # compare different machines or models
    assume_quiet: bool = False  # two sessions differ no more than processes of one
    strict: bool = False  # UNSURE is not good enough


def compare(
    base: Report,
    new: Report,
    paths: tuple[str, str] = ("BASE", "NEW"),
    options: Options | None = None,
) -> Comparison:
    """Hold NEW against BASE; `paths` name the two in errors and in the result.

    Raises:
        UsageError: BASE was slowed on purpose, both are one session, or `only` matches nothing.
        NotComparableError: the machines or models differ, or the noise floor is another's.
    """
    options = options or Options()
    check_sources(base, new, paths)
    unlike = differences(base, new)
    require_alike(unlike, force=options.force)
    _check_only(base, new, options.only)
    _check_noise(options, new)
    design = _design(base, new, options)
    noise = options.noise if design is Design.FLOOR else None
    metrics = metrics_of(base, options.only), metrics_of(new, options.only)
    matched = match((base, new), metrics, options.margins, design, noise)
    findings = list(matched.findings)
    for family in (matched.metrics, tiers(matched.metrics, noise)):
        findings += judge(family, design, options.margins)
    exit_code, reasons = _outcome(findings, strict=options.strict)
    pairs = [each.pair for each in matched.metrics if each.pair is not None]
    blocks = max((len(each.base) for each in matched.metrics), default=0)
    return Comparison(
        kvbench_version=__version__,
        base=_source(base, paths[0]),
        new=_source(new, paths[1]),
        machine=new.machine,
        model=new.model,
        simulated=new.simulated or base.simulated,
        design=design,
        blocks=blocks if design in INTERLEAVED else None,
        alpha=ALPHA,
        margins=dict(options.margins),
        noise=_noise_use(noise, options.noise_path),
        findings=findings,
        sight=_sight(findings),
        conditions=[*_noise_cautions(options, noise, new), *_conditions(base, new, pairs)],
        differences=unlike,
        exit_code=exit_code,
        reasons=reasons,
        confirm=confirm_command(base, new, _suspects(findings)),
    )


def _design(base: Report, new: Report, options: Options) -> Design:
    if interleaved(base, new):
        measured = (len(row.processes) for row in (*base.rows, *new.rows) if row.processes)
        return Design.PAIRED if min(measured, default=0) >= PAIRED_FROM else Design.INTERLEAVED
    if options.noise is not None:
        return Design.FLOOR
    return Design.QUIET if options.assume_quiet else Design.UNKNOWN


def _check_only(base: Report, new: Report, only: Sequence[str]) -> None:
    for glob in only:
        if not chosen((*base.rows, *new.rows), [glob]):
            raise UsageError(f"--only {glob!r} matches no row of either report")


def _check_noise(options: Options, new: Report) -> None:
    noise, path = options.noise, options.noise_path
    if noise is None or options.force:
        return
    other = new.simulated is None and noise.machine.fingerprint != new.machine.fingerprint
    if other or noise.simulated != new.simulated:
        raise NotComparableError(
            f"the noise floor {path} is of another machine: `kvbench calibrate` this one, or "
            "use --force"
        )
    if noise.model.block_bytes != new.model.block_bytes or noise.model.name != new.model.name:
        raise NotComparableError(
            f"the noise floor {path} is of {noise.model.name}, NEW is of {new.model.name}: "
            "`kvbench calibrate` with that model, or use --force"
        )


def _conditions(base: Report, new: Report, pairs: Sequence[Pair]) -> list[Caution]:
    both = [(pair.base, pair.new) for pair in pairs if pair.base and pair.new]
    return conditions(base, new, both)


def _noise_cautions(options: Options, used: Noise | None, new: Report) -> list[Caution]:
    if used is not None:
        return age_cautions(used, new, options.noise_path)
    if options.noise is None:
        return []
    text = "the two sides are of one session: the noise floor was not needed"
    return [Caution(code="noise_unused", message=text)]


def _noise_use(noise: Noise | None, path: str) -> NoiseUse | None:
    if noise is None:
        return None
    return NoiseUse(
        path=redact_argument(path), sessions=noise.sessions, measured_at=noise.measured_at
    )


def _sight(findings: Sequence[Finding]) -> list[Sight]:
    """What could have been seen in each group, or why nothing could."""
    by_group: dict[str, list[Finding]] = {}
    for each in findings:
        by_group.setdefault(each.group, []).append(each)
    order = {group: at for at, group in enumerate(GROUPS)}
    sights: list[Sight] = []
    for group in sorted(by_group, key=lambda each: order.get(each, len(order))):
        members = [each for each in by_group[group] if each.kind is not Kind.TIER]
        seen = [each.mde for each in members if each.mde is not None]
        reasons = (each.reason for each in members if each.reason)
        sights.append(
            Sight(
                group=group,
                metrics=len(seen),
                metric=float(np.median(seen)) if seen else None,
                tier=next((each.mde for each in by_group[group] if each.kind is Kind.TIER), None),
                reason=None if seen else next(reasons, "nothing to test"),
            )
        )
    return sights


def _outcome(findings: Sequence[Finding], *, strict: bool) -> tuple[int, list[str]]:
    """The exit status and every reason for it: 3 before 4 before 5."""

    def count(verdict: Verdict) -> int:
        return sum(each.verdict is verdict for each in findings)

    went_another_way = sum(
        each.verdict is Verdict.NOT_COMPARABLE and each.fails for each in findings
    )
    comparable = any(each.change is not None or each.verdict is Verdict.UNSURE for each in findings)
    checks = (
        (REGRESSION, count(Verdict.SLOWER), "{} slower than allowed"),
        (NOT_COMPARABLE, count(Verdict.MISSING), "{} of BASE missing from NEW"),
        (NOT_COMPARABLE, went_another_way, "{} not comparable: went another way"),
        (NOT_COMPARABLE, not comparable, "no metric of the two reports can be compared"),
        (INCONCLUSIVE, count(Verdict.UNSURE) if strict else 0, "{} unsure, and --strict"),
    )
    found = [(code, text.format(number)) for code, number, text in checks if number]
    return min((code for code, _ in found), default=PASSED), [text for _, text in found]


def _suspects(findings: Sequence[Finding]) -> list[Finding]:
    found = [
        each for each in findings if each.verdict is Verdict.SLOWER or looks(each, Verdict.SLOWER)
    ]
    return sorted(found, key=lambda each: -(each.change or 0.0))


def _source(report: Report, path: str) -> Source:
    return Source(
        path=redact_argument(path),
        kvbench_version=report.kvbench_version,
        session_id=report.session_id,
        suite=report.suite,
        started_at=report.started_at,
        commit=report.commit,
        side=report.side,
        inject=report.inject,
    )
