"""Holders on nodes of a Ray cluster: `python -m kvbench_suites.peer_ray --address HOST:PORT`.

One actor for each holder, on other nodes than this one if there are any. Writes the file that
`peers` of `peer.get` takes, says who is lost, and ends them all when it is interrupted or its
standard input ends. Needs the extra `ray` here, and kvbench of the same version on every node.
Starts no cluster and copies no certificates: `--tls` is a folder that every node has.
"""

import argparse
import contextlib
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

import msgspec

from kvbench.errors import KvbenchError, TierUnavailableError, UsageError
from kvbench.peer.cluster import loopback
from kvbench_suites.peer import GET
from kvbench_suites.peer_holder import Order, Said
from kvbench_suites.peer_processes import START_S, HolderProcess

LOOPBACK = "127.0.0.1"
CONNECT_S = 5.0
WORKER_S = 60.0  # until Ray has started a worker, beside what the holder itself takes
LOOK_S = 1.0  # between looks whether holders are there
END_S = 10.0  # then Ray kills them
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster: its id, and the address that other nodes reach it by."""

    id: str
    address: str


@dataclass(frozen=True, slots=True)
class Seat:
    """A holder as the driver has it; `name` is for people."""

    name: str
    actor: Any  # of `_Holding`


class _Holding:
    """In a worker of the cluster: one holder, which dies with that worker."""

    def __init__(self, order: bytes) -> None:
        self._holder = HolderProcess(msgspec.json.decode(order, type=Order))

    def ready(self) -> bytes:
        """The line that the holder prints first, `Said`; also if it cannot."""
        try:
            said = Said(ready=self._holder.ready)
        except TierUnavailableError as error:
            said = Said(error=str(error))
        return msgspec.json.encode(said)

    def ended(self) -> int | None:
        """The exit status of one that is there no more."""
        return self._holder.ended

    def close(self) -> None:
        """End it, and wait until it is gone."""
        self._holder.close()


def spread(nodes: Sequence[Node], here: Node, count: int) -> list[Node]:
    """Nodes of so many holders, in turn: others than `here`, unless there is no other."""
    chosen = [each for each in nodes if each.id != here.id] or [here]
    return [chosen[number % len(chosen)] for number in range(count)]


def host_for(node: Node, here: Node, *, tls: bool) -> str:
    """Where a holder on a node listens: loopback on this machine, else the node's address.

    Raises:
        UsageError: others could reach it, and there are no certificates.
    """
    if node.address == here.address:
        return LOOPBACK
    if not tls and not loopback(node.address):
        raise UsageError(
            f"a holder on {node.address} would listen beyond loopback, which needs TLS: "
            "give --tls DIR, a folder with ca.pem, cert.pem and key.pem on every node"
        )
    return node.address


def main() -> None:
    """Start holders, name them in a file, and end them when told to."""
    _take_signals()
    try:
        options = _options(sys.argv[1:])
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what Ray prints is none of ours
        with _joined(options.address) as ray:
            _take_signals()  # Ray has set its own
            _serve(ray, options, out)
    except KvbenchError as error:
        sys.stderr.write(f"peer_ray: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before the holders were named
        sys.stderr.write("peer_ray: interrupted\n")
        sys.exit(128 + signal.SIGINT)


def _take_signals() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """As Ctrl-C, the one exception that Ray's own calls let through; a second one is ignored."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for any other mistake."""
        raise UsageError(message)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    known = {each.name: each for each in GET.parameters}
    parser = _Parser(prog="python -m kvbench_suites.peer_ray", description=__doc__)
    add = parser.add_argument
    add("--address", required=True, help="HOST:PORT of the cluster, or auto")
    add("--holders", type=lambda text: known["holders"].parse(_whole(text)), default=1)
    add("--block-bytes", type=known["block_bytes"].parse, required=True, help="such as 1MiB")
    add("--blocks", type=lambda text: max(1, _whole(text)), required=True, help="of each holder")
    add("--seed", type=_whole, default=0, help="of what the blocks hold")
    add("--tier", choices=("dram",), default="dram", help="start others by hand, over there")
    add("--how", choices=("tcp", "nixl"), default="tcp")
    add("--tls", type=Path, help="folder with ca.pem, cert.pem and key.pem, on every node")
    add("-o", "--out", type=Path, required=True, help="file for the parameter `peers`")
    options = parser.parse_args(arguments)
    if not options.out.parent.is_dir():
        raise UsageError(f"cannot write {options.out}: {options.out.parent} is not a directory")
    return options


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


@contextlib.contextmanager
def _joined(address: str) -> Generator[Any]:
    """Ray, as a driver of that cluster."""
    try:
        ray: Any = importlib.import_module("ray")  # an extra without types, and takes a second
    except ImportError:
        raise UsageError(
            "holders on a cluster need Ray, which is missing: pip install 'kvbench[ray]'"
        ) from None
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or "/" in host or not port.isdecimal()):
        raise UsageError(f"--address {address}: expected HOST:PORT, or auto")
    try:
        if address != "auto":  # Ray itself would try for two minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = str(error).partition("\n")[0]
        raise UsageError(f"--address {address}: cannot join that cluster: {said}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _serve(ray: Any, options: argparse.Namespace, out: TextIO) -> None:  # noqa: ANN401  Ray is not typed
    """Start holders and name them; when told to, or if none is left, end them."""
    alive = [Node(n["NodeID"], n["NodeManagerAddress"]) for n in ray.nodes() if n["Alive"]]
    own = ray.get_runtime_context().get_node_id()
    here = next(each for each in alive if each.id == own)
    nodes = spread(alive, here, options.holders)
    hosts = [host_for(each, here, tls=options.tls is not None) for each in nodes]
    seats: list[Seat] = []
    try:
        for number, (node, host) in enumerate(zip(nodes, hosts, strict=True), 1):
            actor = _actor(ray, node, _order(options, host))
            seats.append(Seat(f"holder {number} on {node.address}", actor))
        _write(options.out, [_ready(ray, each) for each in seats])
        where = ", ".join(sorted({each.address for each in nodes}))
        said = f"{len(seats)} holders on {where}: {options.out}; Ctrl-C ends them"
        print(said, file=out, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for lost in _losses(ray, seats):
                print(lost, file=out, flush=True)
    finally:
        _end(ray, seats)


def _order(options: argparse.Namespace, host: str) -> Order:
    return Order(
        block_bytes=options.block_bytes,
        blocks=options.blocks,
        seed=options.seed,
        tier=options.tier,
        how=options.how,
        host=host,
        tls=None if options.tls is None else str(options.tls.absolute()),
    )


def _actor(ray: Any, node: Node, order: Order) -> Any:  # noqa: ANN401  Ray is not typed
    strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
    there = strategies.NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
    # Of no CPU, or a holder would wait for ever on a node whose CPUs others have.
    seat = ray.remote(_Holding).options(num_cpus=0, max_restarts=0, scheduling_strategy=there)
    return seat.remote(msgspec.json.encode(order))


def _ready(ray: Any, seat: Seat) -> bytes:  # noqa: ANN401  Ray is not typed
    """The first line of a holder."""
    try:
        line: bytes = ray.get(seat.actor.ready.remote(), timeout=START_S + WORKER_S)
    except ray.exceptions.RayError as error:
        raise TierUnavailableError(f"{seat.name}: {_cause(error)}") from None
    said = msgspec.json.decode(line, type=Said)
    if said.error is not None:
        raise TierUnavailableError(f"{seat.name}: {said.error}")
    return line


def _write(path: Path, lines: Sequence[bytes]) -> None:
    """Whole or not at all: others wait for the file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(b"".join(line + b"\n" for line in lines))
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def _losses(ray: Any, seats: Sequence[Seat]) -> Iterator[str]:  # noqa: ANN401  Ray is not typed
    """A line for each holder that is lost, until standard input ends.

    Raises:
        TierUnavailableError: no holder is left.
    """
    stdin = sys.stdin.fileno()
    asked = {each.actor.ended.remote(): each for each in seats}
    while asked:
        if select.select([stdin], [], [], LOOK_S)[0] and not os.read(stdin, 1 << 16):
            return
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0)
        for answer in done:
            seat = asked.pop(answer)
            why = _lost(ray, answer)
            if why is None:
                asked[seat.actor.ended.remote()] = seat
            else:
                yield f"{seat.name} is lost: {why}"
    raise TierUnavailableError("no holder is left")


def _lost(ray: Any, answer: Any) -> str | None:  # noqa: ANN401  Ray is not typed
    """Why a holder is there no more; None if it is."""
    try:
        status: int | None = ray.get(answer)
    except ray.exceptions.ActorUnavailableError:  # Ray expects to reach it again, or else says so
        return None
    except ray.exceptions.RayError as error:
        return _cause(error)
    return None if status is None else f"it ended, status {status}"


def _end(ray: Any, seats: Sequence[Seat]) -> None:  # noqa: ANN401  Ray is not typed
    """Holders first, then the workers that have them; who does not answer dies with its worker."""
    with contextlib.suppress(ray.exceptions.RayError):  # a cluster that is gone has ended them
        closing = [each.actor.close.remote() for each in seats]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=END_S)
        for each in seats:
            ray.kill(each.actor)


def _cause(error: Exception) -> str:
    """Ray's messages have many lines; the last one begins with the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(". ")[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
