"""BASE against NEW: matched, tested, and turned into an exit status with its reasons.

`gate` has the statistics, `match` says who is tested with whom, `judge` what a result is called.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
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
    if (other := _noise_unlike(noise, new)) is not None:
        unlike.append(f"the noise floor {options.noise_path} is of {other}")
    metrics = metrics_of(base, options.only), metrics_of(new, options.only)
    matched = match((base, new), metrics, options.margins, design, noise, options.only)
    blocks = [len(each.base) for each in matched.metrics]
    design = _as_tested(design, blocks)
    findings = list(matched.findings)
    for family in (matched.metrics, tiers(matched.metrics, noise)):
        findings += judge(family, design, options.margins)
    if options.strict:
        findings = [_strictly(each) for each in findings]
    exit_code, reasons = _outcome(findings)
    pairs = [each.pair for each in matched.metrics if each.pair is not None]
    return Comparison(
        kvbench_version=__version__,
        base=_source(base, paths[0]),
        new=_source(new, paths[1]),
        machine=new.machine,
        model=new.model,
        simulated=new.simulated or base.simulated,
        design=design,
        blocks=max(blocks, default=0) if design in INTERLEAVED else None,
        fewest_blocks=min(blocks, default=0) if design in INTERLEAVED else None,
        alpha=ALPHA,
        margins=dict(options.margins),
        noise=_noise_use(noise, options.noise_path),
        findings=findings,
        sight=_sight(findings, design),
        conditions=[*_noise_cautions(options, noise, new), *_conditions(base, new, pairs)],
        differences=unlike,
        exit_code=exit_code,
        reasons=reasons,
        confirm=confirm_command(base, new, _suspects(findings), options.margins),
    )


def _design(base: Report, new: Report, options: Options) -> Design:
    if interleaved(base, new):
        return Design.PAIRED
    if options.noise is not None:
        return Design.FLOOR
    return Design.QUIET if options.assume_quiet else Design.UNKNOWN


def _as_tested(design: Design, blocks: Sequence[int]) -> Design:
    """Pairs of which there are too few for a paired test are two groups."""
    few = design is Design.PAIRED and blocks and min(blocks) < PAIRED_FROM
    return Design.INTERLEAVED if few else design


def _check_only(base: Report, new: Report, only: Sequence[str]) -> None:
    for glob in only:
        if not chosen((*base.rows, *new.rows), [glob]):
            raise UsageError(f"--only {glob!r} matches no row of either report")


def _check_noise(options: Options, new: Report) -> None:
    unlike = _noise_unlike(options.noise, new)
    if unlike is not None and not options.force:
        raise NotComparableError(
            f"the noise floor {options.noise_path} is of {unlike}: `kvbench calibrate` with the "
            "options of NEW, or use --force"
        )


def _noise_unlike(noise: Noise | None, new: Report) -> str | None:
    """What the floor is of instead, in words; None when it is NEW's."""
    if noise is None:
        return None
    if noise.simulated != new.simulated:
        return f"simulated devices ({noise.simulated})" if noise.simulated else "a real machine"
    if new.simulated is None and noise.machine.fingerprint != new.machine.fingerprint:
        return f"another machine ({noise.machine.fingerprint})"
    if noise.model.block_bytes != new.model.block_bytes or noise.model.name != new.model.name:
        return f"the model {noise.model.name} in blocks of {noise.model.block_bytes} bytes"
    return None


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


def _sight(findings: Sequence[Finding], design: Design) -> list[Sight]:
    """What could have been seen in each group, or why nothing could."""
    by_group: dict[str, list[Finding]] = {}
    for each in findings:
        by_group.setdefault(each.group, []).append(each)
    order = {group: at for at, group in enumerate(GROUPS)}
    alike = "if the two sessions were as alike as processes of one, which is not known"
    assumed = alike if design is Design.UNKNOWN else None
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
                reason=assumed if seen else next(reasons, "nothing to test"),
            )
        )
    return sights


def _strictly(finding: Finding) -> Finding:
    unsure = finding.verdict is Verdict.UNSURE
    return msgspec.structs.replace(finding, fails=True) if unsure else finding


def _outcome(findings: Sequence[Finding]) -> tuple[int, list[str]]:
    """The exit status and every reason for it: 3 before 4 before 5."""

    def count(verdict: Verdict) -> int:
        """Of findings that fail; a row and its latency that vanished are one."""
        failing = [each for each in findings if each.verdict is verdict and each.fails]
        rows = {each.row for each in failing if verdict is Verdict.MISSING}
        return len(rows) or len(failing)

    untested = not any(each.change is not None for each in findings)
    why = next((each.reason for each in findings if each.verdict is Verdict.UNSURE), None)
    nothing = "no metric of the two reports can be compared" + (f": {why}" if why else "")
    checks = (
        (REGRESSION, count(Verdict.SLOWER), "{} slower than allowed"),
        (NOT_COMPARABLE, count(Verdict.MISSING), "{} of BASE missing from NEW"),
        (NOT_COMPARABLE, count(Verdict.NOT_COMPARABLE), "{} not comparable: went another way"),
        (NOT_COMPARABLE, untested, nothing),
        (INCONCLUSIVE, count(Verdict.UNSURE), "{} unsure, and --strict"),
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
