"""Keys of blocks against plain keyed BLAKE3 of the same bytes: tokens a second on one core.

    python benchmarks/keys_per_second.py [--rounds 5] [--tokens 1048576] [--block-tokens 16]

Interleaved A B A B: `kvbench.keys.block_keys` of a prompt as a NumPy array and as a list of
integers, and a loop over messages that are made beforehand and do not depend on each other, which
is all that blake3's Python package itself takes. Time is the process's own, so that a busy machine
does not count as slowness.
"""

import argparse
import statistics
import time

import numpy as np
from blake3 import blake3

from kvbench.keys import NO_PARENT, Namespace, block_keys


def main() -> None:
    """Compare, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--block-tokens", type=int, default=16)
    arguments = parser.parse_args()
    namespace = Namespace(
        model="llama-3.1-8b",
        revision="0e9e39f",
        geometry="gqa 32x8x128",
        cache_dtype="bf16",
        layout="NHD",
        block_tokens=arguments.block_tokens,
        layers=(0, 32),
        heads=(0, 8),
    )
    generator = np.random.default_rng(1)
    array = generator.integers(0, 128_256, arguments.tokens, dtype=np.uint32)
    numbers: list[int] = array.tolist()
    data, size, key = array.tobytes(), 4 * arguments.block_tokens, namespace.digest
    messages = [NO_PARENT + data[at : at + size] for at in range(0, len(data) - size + 1, size)]

    def plain() -> None:
        for message in messages:
            blake3(message, key=key).digest()

    bodies = (
        ("block_keys, array", lambda: block_keys(namespace, array)),
        ("block_keys, list", lambda: block_keys(namespace, numbers)),
        ("blake3 alone", plain),
    )
    rates: dict[str, list[float]] = {name: [] for name, _ in bodies}
    for _ in range(arguments.rounds):
        for name, body in bodies:
            start = time.process_time()
            body()
            rates[name].append(arguments.tokens / (time.process_time() - start))
    alone = statistics.median(rates["blake3 alone"])
    for name, found in rates.items():
        middle = statistics.median(found)
        each = " ".join(f"{rate / 1e6:.1f}" for rate in found)
        print(f"{name:18} {middle / 1e6:6.1f} M tokens/s, {middle / alone:.2f} x, rounds: {each}")


if __name__ == "__main__":
    main()
