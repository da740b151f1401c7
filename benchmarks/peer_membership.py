"""Peers as processes on this machine: how soon all see all, what it costs to be there, who is gone.

    python benchmarks/peer_membership.py [--peers 8] [--lease-s 2] [--puts-per-s 10000] [--s 10]
    unshare -rn sh -c 'ip link set lo up && python benchmarks/peer_membership.py'

Each process is a peer with Zenoh, directory, publisher and a real log of events, and no store: its
blocks are names. They all join the first one. Printed: seconds until every directory has every
peer's entries; what a peer sends at rest, as bytes and packets of the loopback device divided by
peers (/proc/net/dev: the second line above has a device of its own); seconds until a killed and a
frozen process is gone from every directory; and from a put on the first peer, at `--puts-per-s`,
until a lookup on the last one finds the block, by CLOCK_MONOTONIC, which is one for the machine.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.model import Peer
from kvbench.peer.replication import Answers, Replication
from kvbench.store.block import Stamp
from kvbench.store.events import EventLog, Events, Kind

ENTRIES = 1000  # of each peer, before anything is measured
BATCH = 50  # puts that come together, as blocks of one request
WAIT_S = 60.0


class Names:
    """Blocks without bytes: a real log of events."""

    def __init__(self) -> None:
        self.log = EventLog()
        self.keys: set[bytes] = set()

    def events(self, since: int = 0, limit: int = 1024) -> Events:
        """Those of the log."""
        return self.log.since(since, limit)

    def wait_for_event(self, number: int, timeout_s: float) -> bool:
        """Until it has happened."""
        return self.log.wait(number, timeout_s)

    def held(self, keys: Sequence[bytes], *, tenants: Collection[str] | None) -> Sequence[bool]:  # noqa: ARG002  a Source
        """Whether each is there."""
        return [key in self.keys for key in keys]

    def listing(self, *, tenants: Collection[str] | None) -> list[bytes]:  # noqa: ARG002  a Source
        """All of them."""
        return list(self.keys)

    def put(self, keys: Sequence[bytes]) -> None:
        """Store some."""
        self.keys.update(keys)
        self.log.append(Kind.STORED, "dram", [Stamp(key, None, 0, "", b"") for key in keys])


# A peer.


def serve(order: dict[str, object]) -> None:
    """Be a peer until standard input closes; say what happens in lines of JSON."""
    names, number = Names(), int(str(order["number"]))
    names.put([os.urandom(32) for _ in range(ENTRIES)])
    me = Peer(
        id=os.urandom(16),
        name=str(number),
        epoch=names.log.epoch,
        block_bytes=2**20,
        parts=1,
        namespaces=(b"n" * 16,),
        host="",
        endpoints={},
        capacities={},
    )
    join = order["join"]
    config = MembershipConfig(
        join=[str(each) for each in join] if isinstance(join, list) else [],
        lease_s=float(str(order["lease_s"])),
    )
    one = Replication(me, config, names, answers=Answers())
    say({"ready": number})
    sys.stdin.readline()  # Python has started everywhere: what follows is the joining alone
    one.start()
    say({"endpoint": one.membership.endpoints[0]})
    threading.Thread(target=watch, args=(one,), daemon=True).start()
    for line in sys.stdin:
        word, *arguments = line.split()
        if word == "put":
            put(names, int(arguments[0]), float(arguments[1]))
        elif word == "look":
            threading.Thread(target=look, args=(one, int(arguments[0])), daemon=True).start()
    one.close()


def say(what: dict[str, object]) -> None:
    """A line for the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def watch(one: Replication) -> None:
    """Say whenever the number of peers with all their entries changes."""
    known = -1
    while True:
        now = sum(h.synced and h.entries >= ENTRIES for h in one.directory.holdings())
        if now != known:
            known = now
            say({"known": known, "at_s": time.monotonic()})
        time.sleep(0.2)


def key_of(at: int) -> bytes:
    """The key of put number `at`, known to both sides."""
    return (at + 2**32).to_bytes(8, "little") + bytes(24)


def put(names: Names, per_s: int, for_s: float) -> None:
    """Puts at a pace; say when each batch was put."""
    start_s, times = time.monotonic(), list[float]()
    for at in range(0, int(per_s * for_s), BATCH):
        ahead_s = start_s + at / per_s - time.monotonic()
        if ahead_s > 0:
            time.sleep(ahead_s)
        times.append(time.monotonic())
        names.put([key_of(number) for number in range(at, at + BATCH)])
    say({"put": times})


def look(one: Replication, count: int) -> None:
    """Say when each batch of puts could be found by a lookup."""
    times: list[float] = []
    until_s = time.monotonic() + WAIT_S
    for at in range(0, count, BATCH):
        last = [key_of(at + BATCH - 1)]
        while not one.directory.holders(last):
            if time.monotonic() > until_s:
                break
            time.sleep(0.001)
        times.append(time.monotonic())
    repairs = one.follower.repairs()
    say({"found": times, "gaps": repairs.gaps, "dropped": one.membership.counts().dropped})


# The parent.


class Process:
    """A peer, and what it said last."""

    def __init__(self, number: int, join: Sequence[str], lease_s: float) -> None:
        order = {"number": number, "join": list(join), "lease_s": lease_s}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.known, self.at_s = 0, 0.0
        self.said: queue.SimpleQueue[dict[str, object]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout or ():
            said = json.loads(line)
            if "known" in said:
                self.known, self.at_s = said["known"], said["at_s"]
            else:
                self.said.put(said)

    def tell(self, line: str) -> None:
        """A command."""
        if self.process.stdin is not None:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def cpu_s(self) -> float:
        """Seconds of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loopback() -> tuple[int, int]:
    """Bytes and packets that the loopback device has carried."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name.strip() == "lo":
            fields = rest.split()
            return int(fields[0]), int(fields[1])
    raise SystemExit("this machine has no loopback device")


def until(true: Callable[[], bool]) -> bool:
    """Whether it becomes true in time."""
    until_s = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.01)
    return True


def settled(peers: Sequence[Process], since_s: float) -> str:
    """Seconds until each of these knows all others of them."""
    if not until(lambda: all(each.known == len(peers) - 1 for each in peers)):
        return f"NOT within {WAIT_S:.0f} s: {sorted(each.known for each in peers)}"
    return f"{max(each.at_s for each in peers) - since_s:.2f} s"


def rest(peers: Sequence[Process], for_s: float) -> None:
    """Print what being there costs."""
    time.sleep(5.0)  # the last snapshots and the beats after them
    start_s, before, cpu_s = time.monotonic(), loopback(), sum(each.cpu_s() for each in peers)
    time.sleep(for_s)
    took_s, after = time.monotonic() - start_s, loopback()
    size_bytes, packets = (
        (now - then) / took_s / len(peers) for now, then in zip(after, before, strict=True)
    )
    share = (sum(each.cpu_s() for each in peers) - cpu_s) / took_s / len(peers)
    print(
        f"at rest: {size_bytes / 1e3:.1f} kB/s and {packets:.0f} packets/s sent by each peer "
        f"(TCP and its acknowledgements), {100 * share:.1f} % of a core each"
    )


def visibility(peers: Sequence[Process], per_s: int, for_s: float) -> None:
    """Print how long it takes until a put can be found elsewhere."""
    count = int(per_s * for_s) // BATCH * BATCH
    peers[-1].tell(f"look {count}")
    peers[0].tell(f"put {per_s} {count / per_s}")
    told, found = peers[0].said.get(timeout=WAIT_S), peers[-1].said.get(timeout=2 * WAIT_S)
    put_s, found_s = told["put"], found["found"]
    if not isinstance(put_s, list) or not isinstance(found_s, list):
        raise SystemExit("a peer said what was not asked for")
    waits = sorted(after - before for before, after in zip(put_s, found_s, strict=True))
    pace = count / (put_s[-1] - put_s[0])
    print(
        f"visible: p50 {waits[len(waits) // 2] * 1e3:.1f} ms, "
        f"p99 {waits[int(0.99 * len(waits))] * 1e3:.1f} ms, longest {waits[-1] * 1e3:.1f} ms, "
        f"{count} puts at {pace:.0f}/s; gaps {found['gaps']}, dropped {found['dropped']}"
    )


def lose(peers: list[Process], number: signal.Signals, what: str) -> None:
    """Print how soon the last one is missed by all others."""
    lost = peers.pop()
    start_s = time.monotonic()
    lost.process.send_signal(number)
    print(f"{what}: gone everywhere after {settled(peers, start_s)}", flush=True)
    lost.process.kill()


def main() -> None:
    """Start, measure, end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=8)
    parser.add_argument("--lease-s", type=float, default=2.0)
    parser.add_argument("--puts-per-s", type=int, default=10_000)
    parser.add_argument("--s", type=float, default=10.0, help="seconds of each measurement")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return
    print(f"{arguments.peers} peers, lease {arguments.lease_s} s, {os.cpu_count()} cores")
    start_s = time.monotonic()
    peers = [Process(0, [], arguments.lease_s)]
    try:
        peers[0].said.get(timeout=WAIT_S)
        peers[0].tell("join")
        endpoint = str(peers[0].said.get(timeout=WAIT_S)["endpoint"])
        others = range(1, arguments.peers)
        peers += [Process(number, [endpoint], arguments.lease_s) for number in others]
        for peer in peers[1:]:
            peer.said.get(timeout=WAIT_S)
        join_s = time.monotonic()
        print(f"{arguments.peers} processes of Python have started after {join_s - start_s:.2f} s")
        for peer in peers[1:]:
            peer.tell("join")
        for peer in peers[1:]:
            peer.said.get(timeout=WAIT_S)
        print(f"all see all {settled(peers, join_s)} after they began to join", flush=True)
        rest(peers, arguments.s)
        visibility(peers, arguments.puts_per_s, arguments.s)
        everybody = list(peers)
        lose(peers, signal.SIGKILL, "killed")
        lose(peers, signal.SIGSTOP, "frozen")
        peers = everybody
    finally:
        for peer in peers:
            peer.process.kill()
            peer.process.wait()


if __name__ == "__main__":
    main()
