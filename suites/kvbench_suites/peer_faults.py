"""What a peer that fails costs: time lost in each request, local hits meanwhile, wrong blocks.

One operation is a request of an engine: a prefix whose first blocks are here and whose others a
peer has is looked up and got, within a deadline. Requests come at a pace. While they do, a script
goes round: all is well, the fault happens and lasts, it ends, all is well again. The payload is the
usable prefix: the leading blocks that came, each of them compared whole; a single wrong one and the
row has no figure. What the fault cost is in the section *what faults cost* of a report.

Nobody tells the reader that the peer has failed: there is no membership here, which would notice
after its lease. So what is seen is what deadlines and breakers do by themselves.
"""

from collections.abc import Mapping, Sequence

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.pattern import SECTOR_BYTES
from kvbench.measure.suite import Case, Kind, Operation, Parameter, Plan, Suite, Value, sweep
from kvbench.units import KIB, exact_bytes
from kvbench_suites import nvme

FAULTS = {
    "kill": "the peer is killed; later another process takes its place",
    "freeze": "the peer stands still, and goes on later",
    "slow": "50 KB a second come from the peer",
    "partition": "nothing passes, in either direction",
    "evict": "blocks leave the peer between each lookup and its fetch",
    "flip": "a bit of every 256 KiB turns over on the way",
    "version": "the peer is replaced by one that speaks another version",
    "seed": "the peer is replaced by one whose namespace has another seed",
}
ON_THE_WAY = frozenset(("slow", "partition", "flip"))  # done by a proxy, so of TCP only
TRANSPORTS = ("tcp", "shm")
LARGEST_BLOCK_BYTES = 256 * KIB  # of the suite
MS_PER_S = 1000

_PARAMETERS = (
    Parameter(name="fault", kind=Kind.CHOICE, meaning="what happens", choices=tuple(FAULTS)),
    Parameter(
        name="transport",
        kind=Kind.CHOICE,
        meaning="how blocks come",
        choices=TRANSPORTS,
        default="tcp",
    ),
    Parameter(
        name="block_bytes",
        kind=Kind.BYTES,
        meaning="payload of one block",
        least=SECTOR_BYTES,
        multiple_of=SECTOR_BYTES,
    ),
    Parameter(
        name="local", kind=Kind.COUNT, meaning="first blocks that are here", default=4, most=1024
    ),
    Parameter(
        name="batch", kind=Kind.COUNT, meaning="blocks that the peer has", default=12, most=1024
    ),
    Parameter(
        name="deadline_ms",
        kind=Kind.COUNT,
        meaning="how long a request may take",
        default=250,
        most=10_000,
    ),
    Parameter(
        name="every_ms",
        kind=Kind.COUNT,
        meaning="from one request to the next; 0: at once",
        least=0,
        default=5,
        most=10_000,
    ),
    Parameter(
        name="recompute_ms",
        kind=Kind.COUNT,
        meaning="what a block costs to compute; 0: not known, and every fetch is worth it",
        least=0,
        default=0,
        most=10_000,
    ),
    Parameter(
        name="healthy_ms", kind=Kind.COUNT, meaning="before the fault", default=1000, most=60_000
    ),
    Parameter(name="fault_ms", kind=Kind.COUNT, meaning="of the fault", default=2500, most=20_000),
)


def _label(params: Mapping[str, Value]) -> str:
    parts = [
        f"{params['fault']}/{params['transport']}",
        exact_bytes(int(params["block_bytes"])),
        f"{params['local']}-{params['batch']}blocks",
        f"{params['deadline_ms']}ms",
        f"e{params['every_ms']}-h{params['healthy_ms']}-f{params['fault_ms']}",
    ]
    if params["recompute_ms"]:
        parts.append(f"r{params['recompute_ms']}")
    return "/".join(parts)


def _contradiction(params: Mapping[str, Value]) -> str | None:
    if params["fault"] in ON_THE_WAY and params["transport"] != "tcp":
        return f"fault = '{params['fault']}' is done on the way: transport = 'tcp'"
    return None


FAULT = Operation(
    name="peer.fault",
    meaning="requests while a peer fails and comes back",
    body="kvbench_suites.peer_fault_bodies:Fault",
    parameters=_PARAMETERS,
    label=_label,
    path=lambda params: str(params["transport"]),
    contradiction=_contradiction,
    stream=True,
)


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """Each fault once by TCP; those of a process by shared memory too."""
    del machine  # it needs processes and sockets, which every one has
    block_bytes = min(nvme.whole_sectors(geometry.block_bytes), LARGEST_BLOCK_BYTES)
    size = {"block_bytes": block_bytes}
    cases = sweep(FAULT, fault=tuple(FAULTS), transport="tcp", **size)
    cases += sweep(FAULT, fault="slow", transport="tcp", recompute_ms=10, **size)
    cases += sweep(FAULT, fault=("kill", "freeze", "evict"), transport="shm", **size)
    return cases


OPERATIONS = (FAULT,)
SUITE = Suite(
    name="peer-faults",
    question="What does a peer that fails cost each request, and is a wrong block ever served?",
    build=build,
    # Never ended early: a script that is cut off says nothing. The one under way is finished.
    plan=Plan(processes=3, min_time_s=8.0, time_limit_s=8.0, warmup_s=0.2),
)
