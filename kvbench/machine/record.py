"""The machine record: what was found, as data that goes into every report.

Frozen and keyword-only, base units only (bytes, bytes per second, hertz). A fact that could not
be learned is None, and where the reason matters a `_reason` or `_source` field beside it holds
the reason. Every field has a default, so that reports of other versions decode. Nothing here
probes, judges or prints: see `kvbench.machine.probe` and `kvbench.machine.doctor`.

No secrets: no environment, host name, serial number, address or user name.
"""

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as NVML describes it."""

    index: int = 0  # NVML's, the order of nvidia-smi
    cuda_index: int | None = None  # under CUDA_VISIBLE_DEVICES; None when CUDA will not see it
    name: str | None = None
    identity_hash: str | None = None  # 8 hex digits of the hashed UUID
    compute_capability: str | None = None  # "9.0"
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_bus_bits: int | None = None
    memory_clock_max_hz: int | None = None
    hbm_bytes_per_s: float | None = None  # theoretical: see kvbench.machine.gpu.hbm_rate
    hbm_source: str | None = None
    pcie_generation: int | None = None  # as negotiated now
    pcie_width: int | None = None  # lanes, as negotiated now
    pcie_generation_max: int | None = None  # what GPU and slot can do together
    pcie_width_max: int | None = None
    pcie_bytes_per_s: float | None = None  # one direction, after line encoding
    pcie_source: str | None = None
    numa_node: int | None = None
    nvlinks: int | None = None  # links present
    nvlinks_active: int | None = None
    performance_state: int | None = None  # 0 is full speed, 8 and above idle
    sm_clock_hz: int | None = None
    sm_clock_max_hz: int | None = None
    throttle_reasons: list[str] = []  # what holds the clocks back now, idleness left out
    idle: bool | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence_mode: bool | None = None
    bar1_bytes: int | None = None
    other_processes: int | None = None


class Cuda(msgspec.Struct, frozen=True, kw_only=True):
    """The NVIDIA driver."""

    driver_version: str | None = None  # "570.86.15"
    cuda_driver_version: str | None = None  # newest CUDA that the driver runs: "12.8"
    nvml_error: str | None = None  # why NVML told nothing
    pci_gpus: int | None = None  # NVIDIA GPUs on the PCI bus, with or without a driver


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processors, all sockets together."""

    model: str | None = None
    vendor: str | None = None
    architecture: str | None = None
    logical_cores: int | None = None
    physical_cores: int | None = None
    sockets: int | None = None
    affinity_cores: int | None = None  # logical cores that this process may use
    l3_bytes: int | None = None  # all L3 caches together
    governor: str | None = None
    virtualised: bool | None = None
    hypervisor: str | None = None


class NumaNode(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node. A node without cpus (CXL, HBM, Grace's GPU memory) has an empty list."""

    index: int = 0
    cpus: list[int] = []
    memory_bytes: int | None = None
    free_bytes: int | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Host memory and what a process may do with it."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    cgroup_limit_bytes: int | None = None  # None: no limit
    locked_limit_bytes: int | None = None  # None: unlimited, or unknown when the source is None
    locked_limit_source: str | None = None  # "RLIMIT_MEMLOCK" | "CAP_IPC_LOCK" | "unlimited"
    huge_page_bytes: int | None = None
    huge_pages_total: int | None = None
    huge_pages_free: int | None = None
    transparent_huge_pages: str | None = None  # "always" | "madvise" | "never"
    bandwidth_bytes_per_s: float | None = None  # theoretical, all populated channels
    bandwidth_source: str | None = None  # the formula with its numbers
    bandwidth_reason: str | None = None  # why there is no figure


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """The directory under test and the drive below it."""

    directory: str | None = None  # a home directory is shown as ~
    filesystem: str | None = None
    mount_options: list[str] = []  # those that change what a measurement means
    block_device: str | None = None  # what the filesystem sits on: "nvme0n1p1", "dm-0"
    drives: list[str] = []  # whole drives below it: ["nvme0n1", "nvme1n1"]
    device_model: str | None = None
    device_kind: str = "unknown"  # nvme sata scsi virtio xen loop network memory unknown
    rotational: bool | None = None
    numa_node: int | None = None
    scheduler: str | None = None
    logical_block_bytes: int | None = None
    link_generation: int | None = None  # PCIe, of the first drive
    link_width: int | None = None
    link_generation_max: int | None = None
    link_width_max: int | None = None
    link_bytes_per_s: float | None = None  # one direction, after line encoding, all drives
    link_source: str | None = None
    link_reason: str | None = None  # why there is no figure
    writable: bool | None = None
    direct_io: bool = False
    direct_io_alignment_bytes: int | None = None  # of file offset and length
    direct_io_memory_alignment_bytes: int | None = None  # of the buffer's address
    direct_io_reason: str | None = None  # why not, or where the alignment comes from
    total_bytes: int | None = None
    free_bytes: int | None = None  # free to this user
    stat_path: str | None = None  # the block device's byte counters: "/sys/…/stat"
    gds: str = "compat"  # nvidia-fs | p2pdma | compat: the path cuFile would choose
    gds_reason: str | None = None


class Kvikio(msgspec.Struct, frozen=True, kw_only=True):
    """Whether KvikIO can be imported, found out without importing it."""

    package: str | None = None  # "kvikio-cu12"
    version: str | None = None
    libcuda: bool | None = None
    libcuda_version: str | None = None  # "12.2"
    usable: bool = False
    reason: str | None = None  # why it is not usable
    fix: str | None = None  # the command that makes it usable


class Os(msgspec.Struct, frozen=True, kw_only=True):
    """Software below the measurement."""

    kernel: str | None = None
    distribution: str | None = None
    python_version: str | None = None
    kvbench_version: str | None = None
    platform: str | None = None  # vendor and product of the machine or cloud instance
    container: bool | None = None


class Cgroup(msgspec.Struct, frozen=True, kw_only=True):
    """What the control group allows; None where there is no limit."""

    version: int | None = None
    cpu_quota_cores: float | None = None
    memory_bytes: int | None = None


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was found out about this machine, once, before anything is measured."""

    gpus: list[Gpu] = []
    cuda: Cuda = Cuda()
    cpu: Cpu = Cpu()
    numa_nodes: list[NumaNode] = []
    memory: Memory = Memory()
    storage: Storage | None = None  # None: no directory was named
    kvikio: Kvikio = Kvikio()
    os: Os = Os()
    cgroup: Cgroup = Cgroup()
    fingerprint: str = ""  # 16 hex digits: see kvbench.machine.probe.fingerprint

    @property
    def visible_gpus(self) -> list[Gpu]:
        """The GPUs that a CUDA program started here sees, cuda:0 first."""
        found = [(gpu.cuda_index, gpu) for gpu in self.gpus if gpu.cuda_index is not None]
        return [gpu for _, gpu in sorted(found, key=lambda pair: pair[0])]

    @property
    def has_gpu(self) -> bool:
        """Whether a CUDA program started here sees a GPU."""
        return bool(self.visible_gpus)

    @property
    def gpu_reason(self) -> str | None:
        """Why `has_gpu` is false, for a skipped row; None when it is true."""
        if self.has_gpu:
            return None
        if self.gpus:
            return f"CUDA_VISIBLE_DEVICES hides all {len(self.gpus)} GPUs"
        reason = self.cuda.nvml_error or "the NVIDIA driver reports no GPU"
        if self.cuda.pci_gpus is None:
            return reason
        return f"{self.cuda.pci_gpus or 'no'} NVIDIA GPU on the PCI bus; {reason}"

    @property
    def usable_memory_bytes(self) -> int | None:
        """Memory a process may take now: what is available, within the control group's limit."""
        known = [
            size
            for size in (self.memory.available_bytes, self.memory.cgroup_limit_bytes)
            if size is not None
        ]
        return min(known, default=None)
