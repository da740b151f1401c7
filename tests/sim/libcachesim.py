"""libCacheSim 0.3.5 as an oracle: which references hit. GPL, so it is never imported by kvbench.

It is run by an interpreter that has it: the one named by KVBENCH_LIBCACHESIM, or this one.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest

SCRIPT = """
import json, sys
import libcachesim
for line in sys.stdin:
    name, blocks, ids = json.loads(line)
    cache = getattr(libcachesim, name)(blocks, hashpower=18)
    request = libcachesim.Request()
    request.obj_size = 1
    hits = []
    for number in ids:
        request.obj_id = number + 1
        hits.append("1" if cache.get(request) else "0")
    print("".join(hits), flush=True)
"""
# Our flat policies that it has too, and its names for them. All with its default settings.
NAMES = {
    "lru": "LRU",
    "fifo": "FIFO",
    "lfu": "LFU",
    "slru": "SLRU",
    "2q": "TwoQ",
    "arc": "ARC",
    "s3fifo": "S3FIFO",
}


def hits_of(cases: Sequence[tuple[str, int, Sequence[int]]]) -> list[list[bool]]:
    """For each policy (its name), capacity and references: which of these hit; else a skip."""
    python = os.environ.get("KVBENCH_LIBCACHESIM")
    if not python and importlib.util.find_spec("libcachesim") is None:
        pytest.skip("needs libcachesim 0.3.5: name a Python that has it in KVBENCH_LIBCACHESIM")
    asked = "\n".join(json.dumps([name, blocks, list(ids)]) for name, blocks, ids in cases)
    done = subprocess.run(
        [python or sys.executable, "-c", SCRIPT],
        input=asked,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    return [[hit == "1" for hit in line] for line in done.stdout.split()]
