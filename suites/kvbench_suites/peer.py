"""Blocks from peers: lookups, transfers by each transport, and what other software does instead.

What is measured is kvbench's own store with peers behind it, every block compared with its checksum
on arrival. Holders are other processes, started by each case and filled with known bytes; or they
run already, on other machines too, and `peers` names a file with the lines that they printed. The
baselines move blocks of the same size between two processes of this machine: iperf3 one stream of
bytes, Redis the values of a central server, NIXL and Mooncake one-sided reads; none checks what
arrives. One that is not installed is skipped, and the row says so.
"""

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.pattern import SECTOR_BYTES
from kvbench.measure.suite import (
    Case,
    Kind,
    Operation,
    Parameter,
    Plan,
    Suite,
    Value,
    sweep,
)
from kvbench.units import KIB, MIB, exact_bytes
from kvbench_suites import nvme
from kvbench_suites.peer_reader import TLS, has_nixl

TRANSPORTS = ("tcp", TLS, "shm", "nixl")
TIERS = ("dram", "nvme", "hbm")
STARTED = "started"  # by the case itself
MADE = "made"  # certificates, by the case itself
OBSERVED = {"tcp": "tcp", TLS: TLS, "shm": "shm", "nixl": "nixl (UCX)"}
BATCH = 64
PYTHON_MOONCAKE = "KVBENCH_PYTHON_MOONCAKE"  # Python of an environment with it; else this one
MOONCAKE = "mooncake-transfer-engine-non-cuda"  # or the one with CUDA: mooncake-transfer-engine
PATHS = {
    "iperf3": "tcp, one stream of iperf3",
    "redis_get": "tcp, redis-server on loopback",
    "nixl_read": "NIXL READ (UCX)",
    "mooncake_read": "Mooncake transfer engine, tcp, P2PHANDSHAKE",
}

_BLOCK = Parameter(
    name="block_bytes",
    kind=Kind.BYTES,
    meaning="payload of one block",
    least=SECTOR_BYTES,
    multiple_of=SECTOR_BYTES,
)
_BATCH = Parameter(
    name="batch", kind=Kind.COUNT, meaning="blocks of one request", default=BATCH, most=4096
)
_OF_GETS = (
    Parameter(
        name="transport",
        kind=Kind.CHOICE,
        meaning="how blocks come",
        choices=TRANSPORTS,
        default="tcp",
    ),
    _BLOCK,
    _BATCH,
    Parameter(
        name="queue_depth", kind=Kind.COUNT, meaning="requests in flight", default=1, most=64
    ),
    Parameter(
        name="holders", kind=Kind.COUNT, meaning="peers that have the blocks", default=1, most=16
    ),
    Parameter(name="streams", kind=Kind.COUNT, meaning="channels to one peer", default=2, most=16),
    Parameter(
        name="tier",
        kind=Kind.CHOICE,
        meaning="where the holders have them",
        choices=TIERS,
        default="dram",
    ),
    Parameter(
        name="memory",
        kind=Kind.CHOICE,
        meaning="where they are to arrive",
        choices=("host", "device"),
        default="host",
    ),
    Parameter(
        name="peers",
        kind=Kind.TEXT,
        meaning=f"{STARTED} by the case, or a file with the lines of running holders",
        default=STARTED,
        stands_for=lambda value: value if value == STARTED else "running",
    ),
    Parameter(
        name="tls",
        kind=Kind.TEXT,
        meaning=f"{MADE} by the case, or for running holders a folder of ca.pem, cert.pem, key.pem",
        default=MADE,
        stands_for=lambda value: value if value == MADE else "given",
    ),
)
_OF_LOOKUPS = (
    Parameter(
        name="prefix", kind=Kind.COUNT, meaning="blocks of the prefix", default=1000, most=100_000
    ),
    Parameter(name="peers", kind=Kind.COUNT, meaning="peers that share", default=8, most=256),
    Parameter(
        name="entries",
        kind=Kind.COUNT,
        meaning="blocks of each peer beside the prefix",
        default=10_000,
        most=1_000_000,
    ),
)


def _get_label(params: Mapping[str, Value]) -> str:
    tier = str(params["tier"]) + ("-device" if params["memory"] == "device" else "")
    parts = [
        str(params["transport"]).replace("+", "-"),
        exact_bytes(int(params["block_bytes"])),
        f"batch{params['batch']}",
        f"qd{params['queue_depth']}",
        f"{params['holders']}x{tier}",
        f"s{params['streams']}",
    ]
    if params["peers"] != STARTED:
        parts.append("running")
    return "/".join(parts)


def _get_path(params: Mapping[str, Value]) -> str:
    path = f"{OBSERVED[str(params['transport'])]}, from {params['tier']}"
    return f"{path}, to the GPU" if params["memory"] == "device" else path


def _get_contradiction(params: Mapping[str, Value]) -> str | None:
    placed = params["transport"] in {"shm", "nixl"}
    if placed and params["tier"] != "dram":
        return f"transport = '{params['transport']}' reads host memory: tier = 'dram'"
    own = params["tls"] != MADE
    if own and params["peers"] == STARTED:
        return "tls is for running holders: those that the case starts have certificates it makes"
    if own and params["transport"] not in {TLS, "nixl"}:
        return f"transport = '{params['transport']}' uses no certificates: leave tls away"
    if params["transport"] == TLS and params["peers"] != STARTED and not own:
        return "transport = 'tcp+tls' of running holders needs tls: a folder with a certificate"
    return None


def _get_unmet(params: Mapping[str, Value], machine: Machine) -> str | None:
    on_gpu = params["memory"] == "device" or params["tier"] == "hbm"
    if on_gpu and not machine.has_gpu:
        return f"no CUDA device: {machine.gpu_reason}"
    if params["transport"] == "nixl" and not has_nixl():
        return "NIXL is not installed: pip install 'kvbench[nixl]'"
    makes = params["transport"] == TLS and params["tls"] == MADE
    if makes and importlib.util.find_spec("cryptography") is None:
        return "no certificates can be made: pip install 'kvbench[peer]'"
    if params["tier"] == "nvme":
        return nvme.READ.unmet({"engine": "posix", "memory": "host"}, machine)
    return None


def _lookup_label(params: Mapping[str, Value]) -> str:
    return f"{params['prefix']}blocks/{params['peers']}peers/{params['entries']}entries"


def _block_label(params: Mapping[str, Value]) -> str:
    return f"{exact_bytes(int(params['block_bytes']))}/batch{params['batch']}"


def _lacks_program(name: str, package: str, machine: Machine) -> str | None:
    del machine  # programs are this process's affair
    if shutil.which(name) is None:
        return f"{name} is not installed: apt install {package}"
    return None


def _lacks_nixl(_params: Mapping[str, Value], _machine: Machine) -> str | None:
    return None if has_nixl() else "NIXL is not installed: pip install 'kvbench[nixl]'"


def _lacks_mooncake(_params: Mapping[str, Value], _machine: Machine) -> str | None:
    if PYTHON_MOONCAKE in os.environ or importlib.util.find_spec("mooncake") is not None:
        return None
    return (
        f"Mooncake is not installed: pip install {MOONCAKE}, or name the Python of an environment "
        f"that has it by {PYTHON_MOONCAKE}"
    )


GET = Operation(
    name="peer.get",
    meaning="get blocks that peers have, checked on arrival",
    body="kvbench_suites.peer_bodies:Get",
    parameters=_OF_GETS,
    label=_get_label,
    path=_get_path,
    contradiction=_get_contradiction,
    unmet=_get_unmet,
    stream=True,
)
LOOKUP = Operation(
    name="peer.lookup",
    meaning="find out who has a prefix; the payload are keys of 32 bytes",
    body="kvbench_suites.peer_lookups:Lookup",
    parameters=_OF_LOOKUPS,
    label=_lookup_label,
    path=lambda _params: "this process's copy of the directory",
    stream=True,
)
IPERF3 = Operation(
    name="peer.iperf3",
    meaning="baseline: one stream of iperf3 over loopback, which nobody checks",
    body="kvbench_suites.peer_baselines:Iperf3",
    parameters=(
        Parameter(
            name="write_bytes",
            kind=Kind.BYTES,
            meaning="of one write to the socket",
            default=128 * KIB,
            most=MIB,
        ),
    ),
    label=lambda params: exact_bytes(int(params["write_bytes"])),
    path=lambda _params: PATHS["iperf3"],
    unmet=lambda _params, machine: _lacks_program("iperf3", "iperf3", machine),
)
REDIS_GET = Operation(
    name="peer.redis_get",
    meaning="baseline: pipelined GETs of a Redis server, by a client of two reads a block",
    body="kvbench_suites.peer_baselines:RedisGet",
    parameters=(_BLOCK, _BATCH),
    label=_block_label,
    path=lambda _params: PATHS["redis_get"],
    unmet=lambda _params, machine: _lacks_program("redis-server", "redis-server", machine),
    stream=True,
)
NIXL_READ = Operation(
    name="peer.nixl_read",
    meaning="baseline: READs of NIXL alone, straight into rows",
    body="kvbench_suites.peer_one_sided:NixlRead",
    parameters=(_BLOCK, _BATCH),
    label=_block_label,
    path=lambda _params: PATHS["nixl_read"],
    unmet=_lacks_nixl,
    stream=True,
)
MOONCAKE_READ = Operation(
    name="peer.mooncake_read",
    meaning="baseline: reads of Mooncake's transfer engine over TCP, straight into rows",
    body="kvbench_suites.peer_one_sided:MooncakeRead",
    parameters=(_BLOCK, _BATCH),
    label=_block_label,
    path=lambda _params: PATHS["mooncake_read"],
    unmet=_lacks_mooncake,
    stream=True,
)


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """Ours and theirs next to each other, at the model's block and at 64 KiB, 1 and 4 MiB."""
    block_bytes = nvme.whole_sectors(geometry.block_bytes)
    cases = sweep(LOOKUP, prefix=(100, 1000), peers=(1, 8, 64))
    cases += sweep(IPERF3, write_bytes=128 * KIB)
    for size in sorted({64 * KIB, MIB, 4 * MIB}):
        cases += sweep(GET, transport="tcp", block_bytes=size, streams=(1, 2))
        cases += sweep(REDIS_GET, block_bytes=size)
        cases += sweep(MOONCAKE_READ, block_bytes=size)
        cases += sweep(GET, transport=("shm", "nixl"), block_bytes=size)
        cases += sweep(NIXL_READ, block_bytes=size)
        cases += sweep(GET, transport="tcp", block_bytes=size, holders=2)
        cases += sweep(GET, transport=TLS, block_bytes=size, batch=16)
        cases += sweep(GET, transport="tcp", block_bytes=size, batch=16, tier="nvme")
    sizes = sorted({block_bytes} - {64 * KIB, MIB, 4 * MIB})
    if sizes:
        cases += sweep(GET, transport=("tcp", "shm"), block_bytes=sizes, batch=(1, 16))
    cases += sweep(GET, transport="tcp", block_bytes=MIB, batch=1)
    cases += sweep(GET, transport="tcp", block_bytes=MIB, batch=16, tier="hbm", memory="device")
    del machine  # what it lacks is skipped, and said
    return cases


OPERATIONS = (LOOKUP, GET, IPERF3, REDIS_GET, NIXL_READ, MOONCAKE_READ)
SUITE = Suite(
    name="peer",
    question="How fast do blocks come from peers, by transport, and what do others do instead?",
    build=build,
    plan=Plan(processes=3, time_limit_s=3.0, data_bytes=512 * MIB),
)
