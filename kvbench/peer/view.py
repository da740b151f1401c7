"""What all peers say of themselves, side by side: the table of `kvbench peer status`.

Each says what it knows of the others; held against what those say, that is the directory's lag.
Asks nobody: see `kvbench.peer.client`.

May import: kvbench.units, kvbench.peer.{model, status, traffic}. msgspec.
"""

from collections.abc import Iterator, Sequence

import msgspec

from kvbench.peer.model import Peer, PeerError
from kvbench.peer.status import ServiceStatus
from kvbench.peer.traffic import PeerTraffic
from kvbench.units import format_bytes

ID_DIGITS = 8
HEADS = ("peer", "id", "state", "blocks", "held", "others", "behind", "in", "out")


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One peer: what it said, or why it said nothing.

    `behind` is how many of its deltas the other peer that knows least has yet to apply; None: no
    other peer has answered. What it is missed in by others is in their status.
    """

    id: str
    name: str
    draining: bool
    endpoints: dict[str, str]
    behind: int | None
    unknown_to: list[str]  # names of the peers that do not know it
    status: ServiceStatus | None
    error: str | None


def seen(peers: Sequence[Peer], said: Sequence[ServiceStatus | PeerError]) -> list[Seen]:
    """The peers, with what each of them said; then those that only some of them know."""
    statuses = {each.id: each for each in said if isinstance(each, ServiceStatus)}
    found: list[Seen] = []
    for peer, answer in zip(peers, said, strict=True):
        own = answer if isinstance(answer, ServiceStatus) else None
        others = [each for key, each in statuses.items() if key != peer.id.hex()]
        found.append(
            Seen(
                id=peer.id.hex(),
                name=peer.name,
                draining=peer.draining,
                endpoints=peer.endpoints,
                behind=_behind(peer, own, others),
                unknown_to=[
                    each.name
                    for each in others
                    if all(known.id != peer.id.hex() for known in each.peers)
                ],
                status=own,
                error=str(answer) if isinstance(answer, PeerError) else None,
            )
        )
    return [*found, *_only_known(found, list(statuses.values()))]


def _only_known(found: Sequence[Seen], statuses: Sequence[ServiceStatus]) -> list[Seen]:
    """Peers that others know, and that were not heard of here."""
    here = {each.id for each in found}
    unheard = {known.id: known for each in statuses for known in each.peers if known.id not in here}
    rows: list[Seen] = []
    for key, known in sorted(unheard.items(), key=lambda item: (item[1].name, item[0])):
        knows = {each.name: any(other.id == key for other in each.peers) for each in statuses}
        names = ", ".join(name for name, does in knows.items() if does)
        rows.append(
            Seen(
                id=key,
                name=known.name,
                draining=known.draining,
                endpoints=known.endpoints,
                behind=None,
                unknown_to=[name for name, does in knows.items() if not does],
                status=None,
                error=f"known to {names}, but not heard of here: frozen, or cut off from here",
            )
        )
    return rows


def cells(each: Seen) -> tuple[str, ...]:
    """One row, as HEADS."""
    first = (each.name, each.id[:ID_DIGITS])
    own = each.status
    if own is None:
        return (*first, "no answer", "", "", "", "", "", "")
    held = ", ".join(
        f"{name} {format_bytes(tier.size_bytes)} of {format_bytes(tier.capacity_bytes)}"
        for name, tier in own.tiers.items()
    )
    return (
        *first,
        "draining" if each.draining else "up",
        str(own.entries),
        held,
        str(len(own.peers)),
        "" if each.behind is None else str(each.behind),
        format_bytes(own.incoming.arrived_bytes),
        format_bytes(own.outgoing.sent_bytes),
    )


def troubles(found: Sequence[Seen]) -> Iterator[str]:
    """Lines about what is not as it should be, and what came from whom."""
    for each in found:
        own = each.status
        if own is None:
            yield f"{each.name}: {each.error}"
            continue
        if each.unknown_to:
            yield f"{each.name}: not known to {', '.join(each.unknown_to)}"
        for name, tier in own.tiers.items():
            if tier.fence is not None:
                yield f"{each.name}: tier {name} is not used: {tier.fence}"
        for line in own.incoming.peers.values():
            yield from (f"{each.name}: {text}" for text in _of_line(line))
        for how, door in own.doors.items():
            if door.dropped:
                dropped = ", ".join(f"{n} {kind}" for kind, n in door.dropped.items())
                yield f"{each.name}: connections dropped by {how}: {dropped}"
        yield from (f"{each.name}: {text}" for text in _of_counts(own))


def _behind(peer: Peer, own: ServiceStatus | None, others: Sequence[ServiceStatus]) -> int | None:
    if own is None:
        return None
    known = [
        each.sequence
        for other in others
        for each in other.peers
        if each.id == peer.id.hex() and each.sequence is not None
    ]
    return max(0, own.published - min(known)) if known else None


def _of_counts(own: ServiceStatus) -> Iterator[str]:
    """What a peer met that no peer should send."""
    if own.repairs.get("garbage"):
        yield (
            f"{own.repairs['garbage']} messages in the name of other peers were garbage and left "
            "alone: its log says in whose"
        )
    if own.members.get("refused"):
        yield f"{own.members['refused']} peers refused: its log says why"


def _of_line(line: PeerTraffic) -> Iterator[str]:
    """What came from one other peer, and what did not."""
    for path, way in line.paths.items():
        size = format_bytes(way.size_bytes)
        yield f"{way.blocks} blocks, {size}, from {line.name} by {path}"
    if line.breaker != "closed":
        yield f"leaves {line.name} alone (breaker {line.breaker})"
    if line.reasons:
        missed = ", ".join(f"{n} {why}" for why, n in line.reasons.items())
        yield f"did not get from {line.name}: {missed}"
