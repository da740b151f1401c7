"""MODELLED, not measured: a directory on every peer against a sharded one, by number of peers.

    python benchmarks/peer_scaling.py [--blocks 200000] [--changes-per-s 200] [--requests-per-s 20]

What a peer sends, keeps and waits for, from 8 to 10,000 peers. Replicated: each peer tells each
other everything, as `kvbench.peer` does. Sharded: each hint is told to 2 owners, by rendezvous
hash, in one batch a second for each owner that has something new; a lookup asks the owners of the
prefix. How evenly a rendezvous hash spreads and how much moves when a peer goes is drawn here with
NumPy; the rest is arithmetic on the assumptions that are printed.
"""

import argparse
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PEERS = (8, 64, 128, 1_000, 10_000)
HINT_BYTES = 8  # on the wire
ENTRY_BYTES = 80  # of a hint that one peer holds: measured by benchmarks/peer_directory.py
SHARED_BYTES = 8  # of each further holder: measured there, too
MESSAGE_BYTES = 120  # headers of Zenoh, TCP and IP, the key, and the acknowledgement
BATCH_S = 0.005  # of the publisher
OWNER_BATCH_S = 1.0  # of changes to one owner: with many owners each gets few
BEAT_S = 5.0  # of a peer at rest
KEEP_ALIVES_PER_S = 1.5  # of a link: three in a lease of 2 s
OWNERS = 2
LOCAL_S = 25e-6  # a lookup in the directory here: measured by benchmarks/peer_directory.py
ROUND_TRIP_S = 200e-6  # assumed: one in a data centre, with a thread that wakes at either end
RANGE_BLOCKS = 64  # one owner for so many blocks of a prefix in a row, or each would ask everybody


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What each peer holds and does."""

    blocks: int
    changes_per_s: float  # blocks stored or removed
    requests_per_s: float  # lookups
    prefix_blocks: int
    copies: float  # peers that hold a block, on average


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one peer."""

    sent_bytes_per_s: float
    messages_per_s: float
    memory_bytes: float
    lookup_s: float
    stale_s: float  # from a change until the last who asks knows
    links: int


def replicated(peers: int, load: Load) -> Cost:
    """Each tells each everything."""
    others = peers - 1
    batches_per_s = min(load.changes_per_s, 1 / BATCH_S)
    messages = others * (batches_per_s + 1 / BEAT_S + KEEP_ALIVES_PER_S)
    hints = others * load.changes_per_s * HINT_BYTES
    entries = peers * load.blocks
    distinct = entries / load.copies
    return Cost(
        sent_bytes_per_s=messages * MESSAGE_BYTES + hints,
        messages_per_s=messages,
        memory_bytes=distinct * ENTRY_BYTES + (entries - distinct) * SHARED_BYTES,
        lookup_s=LOCAL_S,
        stale_s=BATCH_S + ROUND_TRIP_S,
        links=others,
    )


def fullest(peers: int, each: float) -> float:
    """The fullest of so many owners over the mean, which is `each`, if things fall by chance."""
    return 1 + math.sqrt(2 * math.log(peers) / each)


def sharded(peers: int, load: Load) -> Cost:
    """Each hint is told to its owners; a lookup asks one owner of each range of the prefix."""
    owners = min(OWNERS, peers)
    told_per_s = load.changes_per_s * owners
    # Owners that have something new in a batch: balls into bins.
    hit = peers * -math.expm1(-told_per_s * OWNER_BATCH_S / peers)
    ranges = math.ceil(load.prefix_blocks / RANGE_BLOCKS)
    asked = peers * -math.expm1(ranges * math.log1p(-1 / peers))
    questions = load.requests_per_s * asked
    # A link to whoever was told or asked of late; keep-alives are for those only.
    links = min(peers - 1, round(hit + questions))
    messages = hit / OWNER_BATCH_S + 2 * questions + links * KEEP_ALIVES_PER_S
    asked_bytes = load.requests_per_s * load.prefix_blocks * 2 * HINT_BYTES  # and the answers
    entries = load.blocks * owners
    uneven = fullest(peers, entries / RANGE_BLOCKS)
    return Cost(
        sent_bytes_per_s=messages * MESSAGE_BYTES + told_per_s * HINT_BYTES + asked_bytes,
        messages_per_s=messages,
        memory_bytes=entries * uneven * ENTRY_BYTES,
        lookup_s=LOCAL_S + ROUND_TRIP_S * (1 + math.log2(max(1.0, asked)) / 4),
        stale_s=OWNER_BATCH_S + ROUND_TRIP_S,
        links=links,
    )


def spread(peers: int) -> str:
    """What a rendezvous hash that is drawn does, beside what chance would."""
    generator = np.random.default_rng(peers)
    salts = generator.integers(0, 2**63, peers, dtype=np.uint64)
    counts, moved, done = np.zeros(peers, np.int64), 0, 0
    piece = max(1, 4_000_000 // peers)
    while done < 50 * peers + 20_000:
        keys = generator.integers(0, 2**63, piece, dtype=np.uint64)
        scores = mixed(keys[:, None] ^ salts[None, :])
        best = np.argpartition(scores, peers - OWNERS, axis=1)[:, peers - OWNERS :]
        counts += np.bincount(best.ravel(), minlength=peers)
        moved += int((best == 0).sum())  # the owners of a hint change only if peer 0 was one
        done += piece
    return (
        f"{peers:,}: {counts.max() / counts.mean():.2f} x ({fullest(peers, counts.mean()):.2f} x), "
        f"{100 * moved / done:.2f} %"
    )


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood: OOPSLA 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def line(name: str, peers: int, cost: Cost) -> str:
    """Of the table."""
    return (
        f"| {peers:,} | {name} | {cost.links:,} | {cost.sent_bytes_per_s / 1e6:.2f} MB/s | "
        f"{cost.messages_per_s:,.0f} | {cost.memory_bytes / 1e9:.2f} GB | "
        f"{cost.lookup_s * 1e6:.0f} us | {cost.stale_s * 1e3:.0f} ms |"
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=200_000, help="that a peer holds")
    parser.add_argument("--changes-per-s", type=float, default=200.0, help="blocks of a peer")
    parser.add_argument("--requests-per-s", type=float, default=20.0, help="lookups of a peer")
    parser.add_argument("--prefix-blocks", type=int, default=1000)
    parser.add_argument("--copies", type=float, default=1.5, help="peers that hold a block")
    load = Load(**vars(parser.parse_args()))
    print(
        f"MODELLED. A peer: {load.blocks:,} blocks, {load.changes_per_s:g} changes/s, "
        f"{load.requests_per_s:g} lookups/s of {load.prefix_blocks} blocks; a block is held by "
        f"{load.copies:g} peers; a hint has {HINT_BYTES} bytes, an entry {ENTRY_BYTES}, a message "
        f"{MESSAGE_BYTES} besides; a round trip takes {ROUND_TRIP_S * 1e6:.0f} us.\n"
    )
    print(
        "| peers | directory | links | sent by a peer | messages/s | memory | lookup | staleness |"
    )
    print("|---|---|---|---|---|---|---|---|")
    notes: list[str] = []
    for peers in PEERS:
        print(line("replicated", peers, replicated(peers, load)))
        print(line("sharded", peers, sharded(peers, load)))
        notes.append(spread(peers))
    print(
        "\nDrawn: the fullest owner over the mean of a sample (and by chance), the share of hints "
        "that get another owner when a peer goes: " + "; ".join(notes) + "."
    )


if __name__ == "__main__":
    main()
