"""What a comparison is of, in words: sides, design, rule, notices, sight and the closing sentence.

Every format for people takes its sentences from here, so that all of them say the same, and all
say when devices were simulated, a side was slowed on purpose or a difference was let pass.
"""

from collections.abc import Mapping, Sequence

from kvbench.compare.record import (
    PASSED,
    Comparison,
    Design,
    Finding,
    Kind,
    Sight,
    Source,
    Verdict,
)
from kvbench.measure.result import DIRTY, Report
from kvbench_reports import head as report_head
from kvbench_reports.words import clean, count, moment, percent, short_percent

Lines = list[tuple[str, list[str]]]
NOTICES = ("simulated", "injected", "forced")  # labels of what must not be missed
SHORT_COMMIT = 10
SEEN = "could have seen (80 % power)"
_NO_FLOOR = "nothing can be called slower, faster or same"


def head(comparison: Comparison) -> Lines:
    """The lines at the top: a label, and facts to be printed with a separator between them."""
    model = comparison.model
    return [
        (
            "compare",
            [
                f"kvbench {clean(comparison.kvbench_version)}",
                f"suite {clean(comparison.new.suite)}",
                f"{clean(model.name)} in {clean(model.cache_dtype)}",
            ],
        ),
        *notices(comparison),
        ("base", _source(comparison.base, comparison.new)),
        ("new", _source(comparison.new, comparison.base)),
        *_machine(comparison),
        ("design", [design(comparison)]),
        ("rule", rule(comparison)),
    ]


def notices(comparison: Comparison) -> Lines:
    """What makes the figures less than a fair comparison of a real machine with itself."""
    lines: Lines = []
    if comparison.simulated:
        profile = clean(comparison.simulated)
        text = f"figures are from simulated devices (profile {profile}), true of no machine"
        lines.append(("simulated", [text]))
    for side, source in (("BASE", comparison.base), ("NEW", comparison.new)):
        if source.inject:
            slowed = inject_words(source.inject)
            lines.append(("injected", [f"{side} was slowed on purpose: {slowed}"]))
    if comparison.differences:
        first, *rest = (clean(text) for text in comparison.differences)
        lines.append(("forced", [f"not comparable without --force: {first}", *rest]))
    return lines


def inject_words(inject: Mapping[str, float]) -> str:
    """Which cases were slowed by how much: `nvme.read* by 8 %`."""
    return ", ".join(f"{clean(glob)} by {short_percent(share)} %" for glob, share in inject.items())


def design(comparison: Comparison) -> str:
    """How the sides were measured, and what that allows to conclude."""
    kind, noise = comparison.design, comparison.noise
    most, fewest = comparison.blocks or 0, comparison.fewest_blocks
    span = f"{fewest} to {most}" if fewest is not None and fewest < most else str(most)
    pairs = f"{span} interleaved pair{'' if most == 1 else 's'}"
    if kind is Design.PAIRED:
        return f"one session, {pairs}"
    if kind is Design.INTERLEAVED:
        few = "too few to test as pairs" if span == str(most) else "where they are few"
        return f"one session, {pairs}: {few}, tested as two groups"
    if kind is Design.QUIET:
        return "two sessions, assumed quiet: whatever differs between sessions counts as a change"
    if kind is Design.UNKNOWN:
        return f"two sessions, no noise floor: {_NO_FLOOR}"
    if noise is None:
        return "two sessions, with a noise floor"
    source = f" ({clean(noise.path)}, {moment(noise.measured_at)})"
    return f"two sessions, noise floor of {count(noise.sessions, 'session')}{source}"


def rule(comparison: Comparison) -> list[str]:
    """What is called slower, and over how many tests the guarantee holds."""
    present = {each.group for each in comparison.findings}
    margins = {
        group: margin
        for group, margin in comparison.margins.items()
        if group in present or not present
    }
    allowed = ", ".join(
        f"{clean(group)} {short_percent(margin)} %" for group, margin in margins.items()
    )
    metrics, tiers = (_tests(comparison.findings, tier=tier) for tier in (False, True))
    tests = f"{metrics} + {tiers} tests" if tiers else count(metrics, "test")
    facts = [f"slower by more than {allowed}"] if allowed else []
    return [
        *facts,
        f"{short_percent(comparison.alpha)} % family-wise over {tests} (Holm)",
        "+ is slower",
    ]


def sight_text(sight: Sight) -> str:
    """What could have been seen in a group, or why nothing could."""
    parts: list[str] = []
    if sight.metric is not None:
        parts.append(f"{percent(sight.metric)} % in one metric ({sight.metrics:,} tested)")
    if sight.tier is not None:
        parts.append(f"{percent(sight.tier)} % in all of them together")
    reason = clean(sight.reason or "")
    if not parts:
        return f"nothing: {reason or 'no metric was tested'}"
    return ", ".join(parts) + (f" ({reason})" if reason else "")


def outcome(comparison: Comparison) -> str:
    """`PASS` or `FAIL, exit 3`: the word that the exit status repeats."""
    passed = comparison.exit_code == PASSED
    return "PASS" if passed else f"FAIL, exit {comparison.exit_code}"


def why(comparison: Comparison) -> list[str]:
    """The reasons behind the outcome, the gravest first; what a pass does not mean, too."""
    if comparison.reasons:
        return [clean(reason) for reason in comparison.reasons]
    if not any(each.change is not None for each in comparison.findings):
        return ["nothing was tested", counts(comparison)]
    if comparison.design is Design.UNKNOWN:
        return [f"without a noise floor {_NO_FLOOR}", counts(comparison)]
    return ["nothing was shown to be slower than allowed", counts(comparison)]


def counts(comparison: Comparison) -> str:
    """`11 findings: 2 slower, 1 missing …`, worst first."""
    tally = {
        verdict: sum(each.verdict is verdict for each in comparison.findings) for verdict in Verdict
    }
    parts = [f"{how_many:,} {verdict.lower()}" for verdict, how_many in tally.items() if how_many]
    total = count(len(comparison.findings), "finding")
    return f"{total}: {', '.join(parts)}" if parts else "no findings"


def confirm_label(comparison: Comparison) -> str:
    """What the command that follows would do."""
    return "settle it" if comparison.exit_code == PASSED else "confirm"


def _source(source: Source, other: Source) -> list[str]:
    facts = [clean(source.path) or "path not recorded"]
    if source.commit:
        commit, dirty, _ = clean(source.commit).partition(DIRTY)
        facts.append(f"commit {commit[:SHORT_COMMIT]}{dirty}")
    if source.side is not None:
        facts.append(f"side {clean(source.side)}")
    facts.append(moment(source.started_at))
    if source.suite != other.suite:
        facts.append(f"suite {clean(source.suite)}")
    if source.kvbench_version != other.kvbench_version:
        facts.append(f"kvbench {clean(source.kvbench_version)}")
    return facts


def _machine(comparison: Comparison) -> Lines:
    """The machine and the drive in the words of a report's head."""
    of_new = Report(
        kvbench_version=comparison.new.kvbench_version,
        session_id=comparison.new.session_id,
        suite=comparison.new.suite,
        command=[],
        started_at=comparison.new.started_at,
        plan={},
        machine=comparison.machine,
        model=comparison.model,
        rows=[],
    )
    wanted = {"machine", *(["drive"] if comparison.machine.storage else [])}
    return [line for line in report_head.head(of_new) if line[0] in wanted]


def _tests(findings: Sequence[Finding], *, tier: bool) -> int:
    return max(
        (each.tests or 0 for each in findings if (each.kind is Kind.TIER) is tier), default=0
    )
