"""What fio gets from the same drive: the ceiling of every store, and no store itself.

One file, blocks of the same size in order, past the page cache, 16 in flight; writing ends with
an fsync. fio looks at no byte. Its buffers are of ordinary pages, or of transparent huge pages,
of which a drive can be given a block in one piece.
"""

import json
import os
import subprocess
from pathlib import Path

QUEUE_DEPTH = 16
# What fio allocates with malloc is then in huge pages (glibc 2.35 on); its own options ask for
# pages that somebody has to have set aside.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def fio_seconds(
    folder: Path, block_bytes: int, blocks: int, *, huge_pages: bool
) -> tuple[float, float]:
    """Seconds to write, and to read, that many blocks.

    Raises:
        OSError: fio cannot be started.
        subprocess.CalledProcessError: fio failed.
    """
    job = [
        *("fio", f"--filename={folder / 'fio.dat'}", "--direct=1", "--output-format=json"),
        *(f"--bs={block_bytes}", f"--size={block_bytes * blocks}"),
        *("--ioengine=libaio", f"--iodepth={QUEUE_DEPTH}"),
    ]
    environment = os.environ | (HUGE_PAGES if huge_pages else {})
    return (
        _seconds([*job, "--end_fsync=1"], "write", environment),
        _seconds([*job, "--readonly"], "read", environment),
    )


def _seconds(job: list[str], direction: str, environment: dict[str, str]) -> float:
    command = [*job, f"--name={direction}", f"--rw={direction}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    figures = json.loads(done.stdout)["jobs"][0][direction]
    return float(figures["io_bytes"] / figures["bw_bytes"])
