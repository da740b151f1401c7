"""A peer as a process: `python -m tests.peer.one_peer ORDER`, a JSON object, see `main`.

Prints a line of JSON whenever what it sees changes; takes commands from standard input until that
closes.
"""

import json
import sys
import threading
import time
from pathlib import Path

import msgspec

from kvbench.peer.certs import TlsFiles
from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.replication import Answers, Replication
from tests.peer.eventful import NAMESPACE, Eventful, keys, peer


def main() -> None:
    order = json.loads(sys.argv[1])
    number = order["number"]
    store = Eventful()
    store.put(keys(range(number)))
    spaces = [bytes.fromhex(each) for each in order.get("namespaces", [NAMESPACE.hex()])]
    me = peer(
        number,
        epoch=store.log.epoch,
        version=order.get("version", 1),
        block_bytes=order.get("block_bytes", 4096),
        namespaces=tuple(spaces),
    )
    if "id" in order:
        me = msgspec.structs.replace(me, id=bytes.fromhex(order["id"]))
    config = MembershipConfig(
        join=order["join"],
        lease_s=order["lease_s"],
        tls=TlsFiles(*map(Path, order["tls"])) if "tls" in order else None,
    )

    def drain() -> bytes:
        one.drain()
        return b"draining"

    def status() -> bytes:
        return f"peer {number} is well".encode()

    answers = Answers(status=status, drain=drain)
    one = Replication(me, config, store, answers=answers)
    one.start()
    threading.Thread(target=show, args=(one,), daemon=True).start()
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "leave":
            break
        start, count = map(int, numbers)
        change = store.put if word == "put" else store.evict
        change(keys(range(start, start + count)))
    one.close()


def show(one: Replication) -> None:
    seen: list[str] | None = None
    while True:
        view = sorted(f"{h.peer.name}:{h.entries}" for h in one.directory.holdings() if h.synced)
        if view != seen:
            seen = view
            said = {"endpoint": one.membership.endpoints[0], "view": view}
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
        time.sleep(0.01)


if __name__ == "__main__":
    main()
