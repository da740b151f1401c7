"""kvbench's store with an NVMe tier and nothing above it, as `protocol.Store`.

Without a tier in memory every block that is read comes from the drive. `write` ends with a
`flush`: unlike the others' blocks, these would survive a loss of power. Run by compare.py.
"""

from pathlib import Path

from benchmarks.store_against_others.protocol import Blocks, Options, key, serve
from kvbench import __version__
from kvbench.store.block import Layout, Status
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.options import Options as StoreOptions

ROOM = 1.25  # of the drive for the blocks; records are a page longer than blocks
SPARE_BYTES = 64 << 20


class NvmeStore:
    """`options`: threads for each direction, which is the queue depth."""

    def __init__(self, folder: Path, rows: Blocks, options: Options) -> None:
        threads = int(options["threads"])
        self._rows = rows
        self._keys = [key(index) for index in range(len(rows))]
        self._store = open_store(
            StoreConfig(
                layout=Layout(rows.shape[1]),
                directories=(folder,),
                require_drives=True,
                nvme_bytes=int(ROOM * rows.nbytes) + SPARE_BYTES,
                options=StoreOptions(
                    read_threads=threads,
                    write_threads=threads,
                    put_queue_bytes=rows.nbytes,  # they lie in the caller's memory meanwhile
                    queued_tasks=len(rows),
                ),
            )
        )
        self._lease = self._store.lookup([])

    @property
    def facts(self) -> dict[str, str]:
        """Its checksums are on: they cannot be turned off."""
        return {"version": __version__, "direct": "asked for", "fsync": "fdatasync and index"}

    def write(self) -> None:
        """Put, then flush."""
        self._store.put(self._keys, self._rows).result()
        self._store.flush().result()

    def look_up(self) -> int:
        """Lease the prefix."""
        self._lease = self._store.lookup(self._keys, owner="benchmark", ttl_s=600.0)
        return len(self._lease)

    def read(self) -> int:
        """Into the rows, checked on the way; then release."""
        rows = self._rows[: len(self._lease)]
        statuses = self._store.get_into(self._lease, rows).result()
        self._lease.release()
        return statuses.count(Status.OK)

    def close(self) -> None:
        """Its threads end, and the index is marked clean."""
        self._store.close()


if __name__ == "__main__":
    serve(NvmeStore)
