"""From what the processes measured to one row: the figure, its interval, and whether to believe it.

Judgement only looks at evidence in the process results, the limit and the parameters; nothing is
measured here. The first rule that fires decides the state, the gravest first.
"""

from collections.abc import Sequence

from kvbench.measure.latency import summarise
from kvbench.measure.result import Caution, ProcessResult, Row, State
from kvbench.measure.stats import process_interval
from kvbench.measure.suite import Case, Limit
from kvbench.measure.worker import Failure

FIGURES = (
    "payload_bytes",
    "traffic_bytes",
    "device_bytes",
    "bytes_per_s",
    "bytes_per_s_low",
    "bytes_per_s_high",
    "interval_method",
    "latency_s",
    "limit_bytes_per_s",
    "limit_source",
    "limit_fraction",
    "path_observed",
)
LIMIT_TOLERANCE = 1.05  # above the speed of light the measurement is wrong until shown otherwise
READS = frozenset({"read", "get", "restore_tokens", "replay"})
RESIDENT_TOLERANCE = 0.01  # share of a file in the page cache before a read that claims to be cold
OTHERS = 1.2  # a device that moved this many times the payload worked for others too
DEVICE_TOLERANCE = 0.90  # a device that moved less than this of the payload did not serve it all
WIDE = 0.10  # half an interval wider than this share of the median earns a caution


def empty_row(case: Case, state: State, code: str, reason: str) -> Row:
    """A row without a figure: skipped, failed or invalid before anything was computed."""
    return Row(
        id=case.id,
        tier=case.operation.tier,
        operation=case.operation.name.partition(".")[2],
        params=case.meant,
        beside=case.beside.id if case.beside else None,
        state=state,
        reason_code=code,
        reason=reason,
        definition_hash=case.definition_hash,
        path_requested=case.operation.path(case.params),
        missing=dict.fromkeys(FIGURES, reason),
    )


def failed_row(case: Case, failure: Failure, done: Sequence[ProcessResult]) -> Row:
    """The row of a case one of whose processes had no result; the others are kept as evidence."""
    row = empty_row(case, State(failure.state), failure.code, failure.text)
    row.processes = list(done)
    return row


def make_row(case: Case, done: Sequence[ProcessResult], limit: Limit, *, simulated: bool) -> Row:
    """The row of a case all of whose processes have a result."""
    row = empty_row(case, State.SIMULATED if simulated else State.OK, "", "")
    row.reason = row.reason_code = None
    row.missing = {}
    row.processes = list(done)
    _fill_bytes(row)
    _fill_rate(row)
    _fill_latency(row)
    _fill_limit(row, limit)
    row.path_observed = done[0].path_observed
    if row.path_observed is None:
        row.missing["path_observed"] = "the bytes left no trace that could be read"
    _judge(row)
    _caution(row)
    _explain_nulls(row)
    return row


def _fill_bytes(row: Row) -> None:
    row.payload_bytes = sum(process.payload_bytes for process in row.processes)
    row.traffic_bytes = sum(process.traffic_bytes for process in row.processes)
    device = [process.device_bytes for process in row.processes if process.device_bytes is not None]
    if len(device) == len(row.processes):
        row.device_bytes = sum(device)
    else:
        row.missing["device_bytes"] = "no block device's counters stand behind these bytes"


def _fill_rate(row: Row) -> None:
    rates = [process.bytes_per_s for process in row.processes]
    interval = process_interval(rates)
    if interval is None:
        row.bytes_per_s = rates[0]
        for field in ("bytes_per_s_low", "bytes_per_s_high"):
            row.missing[field] = "one process shows no spread between processes: raise --processes"
        return
    row.bytes_per_s, row.bytes_per_s_low, row.bytes_per_s_high, row.interval_method = interval


def _fill_latency(row: Row) -> None:
    histograms = [
        process.latency_histogram for process in row.processes if process.latency_histogram
    ]
    if not histograms:
        row.missing["latency_s"] = "a step of many operations has no latency of single ones"
        return
    effective = sum(process.latency_effective_count for process in row.processes)
    row.latency_s, missing = summarise(histograms, effective_count=effective)
    row.missing.update(missing)


def _fill_limit(row: Row, limit: Limit) -> None:
    row.limit_bytes_per_s, source = limit
    if row.limit_bytes_per_s is None:
        row.missing["limit_bytes_per_s"] = source
        return
    row.limit_source = source
    if row.bytes_per_s is not None:
        row.limit_fraction = row.bytes_per_s / row.limit_bytes_per_s


def _judge(row: Row) -> None:
    verdict = _above_limit(row) or _cached(row) or _other_path(row) or _unconfirmed(row)
    if verdict is None:
        return
    row.state, row.reason_code, row.reason = verdict
    if row.state is State.INVALID:
        # The processes keep what was seen; the row states no figure that must not be believed.
        for field in ("bytes_per_s", "bytes_per_s_low", "bytes_per_s_high", "limit_fraction"):
            setattr(row, field, None)
            row.missing[field] = row.reason
        row.latency_s = None
        row.missing["latency_s"] = row.reason


Verdict = tuple[State, str, str] | None


def _above_limit(row: Row) -> Verdict:
    if row.limit_bytes_per_s is None:
        return None
    # Each process by itself: a median would let one impossible process pass.
    fraction = max(process.bytes_per_s for process in row.processes) / row.limit_bytes_per_s
    if fraction <= LIMIT_TOLERANCE:
        return None
    return (
        State.INVALID,
        "above_limit",
        f"measured {fraction:.0%} of the limit ({row.limit_source}): "
        "a cache, a wrong limit or a wrong measurement",
    )


def _cached(row: Row) -> Verdict:
    """Reads that claim to come from a drive, and did not; writes that it has not seen yet."""
    if row.tier != "nvme" or row.state is State.SIMULATED:
        return None
    resident = max((process.resident_before or 0.0 for process in row.processes), default=0.0)
    if row.operation in READS and resident > RESIDENT_TOLERANCE:
        return (
            State.INVALID,
            "page_cache_resident",
            f"{resident:.0%} of the file was in the page cache before a cold read",
        )
    if row.device_bytes is None or not row.payload_bytes:
        return None
    share = min(_device_shares(row))  # each process by itself: others must not vouch for one
    if share >= DEVICE_TOLERANCE:
        return None
    verb = "read" if row.operation in READS else "written"
    text = f"the device had {verb} only {share:.0%} of the bytes when the clock stopped"
    if row.operation == "write" and row.path_observed != row.path_requested:
        return State.DEGRADED, "device_bytes", f"{text}: they were still in the page cache"
    return State.INVALID, "device_bytes", f"{text}: a cache above it took or served the rest"


def _device_shares(row: Row) -> list[float]:
    """What the device moved for each byte that it was asked for, process by process.

    A process that was slowed on purpose asked for more than its payload; one whose store has
    faster tiers asked for less, and says for how much. Where nothing was asked for, nothing lacks.
    """
    shares: list[float] = []
    for each in row.processes:
        asked_bytes = each.payload_bytes * (1 + each.inject)
        if each.device_payload_bytes is not None:
            asked_bytes = each.device_payload_bytes
        shares.append((each.device_bytes or 0) / asked_bytes if asked_bytes else 1.0)
    return shares


def _other_path(row: Row) -> Verdict:
    if row.state is State.SIMULATED or row.path_observed in {None, row.path_requested}:
        return None
    return (
        State.DEGRADED,
        "other_path",
        f"asked for {row.path_requested}, the bytes went by {row.path_observed}",
    )


def _unconfirmed(row: Row) -> Verdict:
    """Bytes of a drive that nothing but the row itself vouches for."""
    if row.tier != "nvme" or row.state is State.SIMULATED:
        return None
    if row.device_bytes is None:
        text = "no device counters here: a cache above the drive may have served these bytes"
        return State.DEGRADED, "unconfirmed", text
    after = max((process.resident_after or 0.0 for process in row.processes), default=0.0)
    if row.operation in READS and after > RESIDENT_TOLERANCE:
        text = f"{after:.0%} of the file came into the page cache while it was read past it"
        return State.DEGRADED, "page_cache_resident", text
    return None


def _explain_nulls(row: Row) -> None:
    """Every figure that is null has a reason; some have it from the one they depend on."""
    for field, cause in (
        ("interval_method", "bytes_per_s_low"),
        ("limit_source", "limit_bytes_per_s"),
        ("limit_fraction", "limit_bytes_per_s"),
    ):
        if getattr(row, field) is None and cause in row.missing:
            row.missing.setdefault(field, row.missing[cause])


def _caution(row: Row) -> None:
    seen = {(caution.code, caution.message) for caution in row.warnings}
    for process in row.processes:
        for caution in process.cautions:
            if (caution.code, caution.message) not in seen:
                seen.add((caution.code, caution.message))
                row.warnings.append(caution)
    if any(process.steady is False for process in row.processes):
        row.warnings.append(
            Caution(
                code="no_steady_state",
                message="the rate was still moving when sampling ended",
                fix="--time-limit 30",
            )
        )
    if row.device_bytes is not None and max(_device_shares(row)) > OTHERS:
        row.warnings.append(
            Caution(
                code="other_traffic",
                message="the device moved much more than these bytes: another load, or a RAID",
                fix="iostat -x 1  # find it, and run again without it",
            )
        )
    low, high, centre = row.bytes_per_s_low, row.bytes_per_s_high, row.bytes_per_s
    if low and high and centre and (high - low) / 2 > WIDE * centre:
        row.warnings.append(
            Caution(
                code="wide_interval",
                message="processes differ by more than ±10 %: another load, or too few of them",
                fix=f"--processes {max(10, 2 * len(row.processes))}",
            )
        )
