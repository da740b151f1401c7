"""Look at this machine once and make its record.

Fast (well under half a second without a GPU), needs no root, imports neither torch nor kvikio.
"""

import hashlib
import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import msgspec

from kvbench.machine.gds import gds_path
from kvbench.machine.gpu import probe_gpus
from kvbench.machine.host import probe_cgroup, probe_cpu, probe_memory, probe_numa, probe_os
from kvbench.machine.kvikio import probe_kvikio
from kvbench.machine.record import Machine
from kvbench.machine.storage import probe_storage
from kvbench.machine.tree import Tree


def probe_machine(
    directory: Path | None = None,
    *,
    root: Path = Path("/"),
    nvml: ModuleType | None = None,
    environ: Mapping[str, str] | None = None,
) -> Machine:
    """The record of this machine, and of the drive below `directory` when one is given.

    `root`, `nvml` and `environ` are this machine's own unless a test brings others.

    Raises:
        UsageError: `directory` is not an existing directory.
    """
    if nvml is None:
        nvml = importlib.import_module("pynvml")  # 20 ms that a test need not wait for
    environ = os.environ if environ is None else environ
    tree = Tree(root)
    storage = probe_storage(directory, tree) if directory is not None else None
    gpus, cuda = probe_gpus(nvml, tree, environ)
    cgroup = probe_cgroup(tree)
    machine = Machine(
        gpus=gpus,
        cuda=cuda,
        cpu=probe_cpu(tree),
        numa_nodes=probe_numa(tree),
        memory=probe_memory(tree, cgroup),
        storage=storage,
        kvikio=probe_kvikio(),
        os=probe_os(tree),
        cgroup=cgroup,
    )
    if storage is not None:
        path, reason = gds_path(machine, tree, environ)
        storage = msgspec.structs.replace(storage, gds=path, gds_reason=reason)
        machine = msgspec.structs.replace(machine, storage=storage)
    return msgspec.structs.replace(machine, fingerprint=fingerprint(machine))


def fingerprint(machine: Machine) -> str:
    """16 hex digits that stay the same while figures of this machine are comparable.

    Over GPU models and driver major, CPU model and cores, memory to the nearest power of two, and
    the model, kind and file system of the drive. Free space, clocks and loads change nothing.
    """
    values = list(identity(machine).values())
    return hashlib.blake2b(msgspec.json.encode(values), digest_size=8).hexdigest()


def identity(machine: Machine) -> dict[str, object]:
    """What the fingerprint is over, by name, so that a difference can be named."""
    memory_bytes, storage = machine.memory.total_bytes, machine.storage
    return {
        "GPUs": sorted(gpu.name or "" for gpu in machine.visible_gpus),
        "driver major": (machine.cuda.driver_version or "").partition(".")[0],
        "CPU": machine.cpu.model,
        "cores": machine.cpu.logical_cores,
        "memory (log2 bytes)": round(math.log2(memory_bytes)) if memory_bytes else None,
        "drive (model, kind, filesystem, count)": [
            storage.device_model,
            storage.device_kind,
            storage.filesystem,
            len(storage.drives),
        ]
        if storage
        else None,
    }
