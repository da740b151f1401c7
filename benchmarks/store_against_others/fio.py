"""What fio gets from the same drive: the ceiling of every store, and no store itself.

One file, blocks of the same size in order, past the page cache, 16 in flight; writing ends with
an fsync. fio looks at no byte.
"""

import json
import subprocess
from pathlib import Path

QUEUE_DEPTH = 16


def fio_seconds(folder: Path, block_bytes: int, blocks: int) -> tuple[float, float]:
    """Seconds to write, and to read, that many blocks.

    Raises:
        OSError: fio cannot be started.
        subprocess.CalledProcessError: fio failed.
    """
    return (
        _run(folder, block_bytes, blocks, "write", "--end_fsync=1"),
        _run(folder, block_bytes, blocks, "read", "--readonly"),
    )


def _run(folder: Path, block_bytes: int, blocks: int, direction: str, *more: str) -> float:
    command = [
        *("fio", f"--name={direction}", f"--filename={folder / 'fio.dat'}", f"--rw={direction}"),
        *(f"--bs={block_bytes}", f"--size={block_bytes * blocks}", "--direct=1"),
        *("--ioengine=libaio", f"--iodepth={QUEUE_DEPTH}", "--output-format=json", *more),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout)["jobs"][0][direction]
    return float(figures["io_bytes"] / figures["bw_bytes"])
