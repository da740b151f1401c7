"""Two hand-made reports: a measured one with a row in every state, and one of simulated devices.

Their figures were chosen to exercise the renderers; nothing here was measured.
"""

import msgspec
import pytest

from kvbench.compare.record import Comparison
from kvbench.geometry import load_geometry
from kvbench.machine import Cgroup, Cpu, Cuda, Machine, Memory, Os, Storage
from kvbench.measure.result import Caution, Latency, ProcessResult, Report, Row, State
from tests.reports.comparisons import make_comparison

KIB, MIB, GIB = 2**10, 2**20, 2**30
MEMCPY = "memcpy of 256 MiB on all cores, measured before the run"
COLD = Caution(
    code="cold_unknown",
    message="whether the reads were cold cannot be seen on this filesystem",
    fix="kvbench run quick --dir /mnt/nvme",
)
WIDE = Caution(
    code="wide_interval",
    message="processes differ by more than ±10 %: another load, or too few of them",
    fix="kvbench run … --processes 10",
)
GOVERNOR = Caution(code="governor", message="the CPU governor is powersave")
LLAMA = load_geometry("llama-3.1-8b")
SERVER = Machine(
    cuda=Cuda(nvml_error="no NVIDIA driver"),
    cpu=Cpu(
        model="Intel(R) Xeon(R) Platinum 8481C",
        logical_cores=8,
        affinity_cores=2,
        virtualised=True,
        hypervisor="kvm",
    ),
    memory=Memory(total_bytes=16 * GIB, cgroup_limit_bytes=8 * GIB),
    storage=Storage(
        directory="~/kv",
        filesystem="ext4",
        block_device="nvme0n1p1",
        device_model="Samsung SSD 990 PRO 2TB",
        device_kind="nvme",
        direct_io=True,
    ),
    os=Os(kernel="6.1.0", kvbench_version="0.1.0"),
    cgroup=Cgroup(version=2, cpu_quota_cores=1.5),
    fingerprint="0123456789abcdef",
)


def make_row(case: str, **fields: object) -> Row:
    """A row named like `nvme.read/…`; tier and operation come from the name."""
    tier, operation = case.partition("/")[0].split(".")
    row = Row(id=case, tier=tier, operation=operation, params={}, state=State.OK)
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def measured_row(
    case: str, rate: float, half_width: float | None, limit: tuple[float, str], **fields: object
) -> Row:
    """A row with a figure; the interval is as wide on both sides, and absent for None."""
    row = make_row(case, **fields)
    row.bytes_per_s = rate
    if half_width is not None:
        row.bytes_per_s_low, row.bytes_per_s_high = rate * (1 - half_width), rate * (1 + half_width)
        row.interval_method = "t of log, 3 processes"
    row.limit_bytes_per_s, row.limit_source = limit
    row.limit_fraction = rate / row.limit_bytes_per_s
    row.payload_bytes, row.traffic_bytes = 256 * MIB, 512 * MIB
    return row


def latency(p50: float, p99: float | None) -> Latency:
    return Latency(
        count=4000, effective_count=312.5, mean=p50 * 1.1, p50=p50, p90=p50 * 1.5, p99=p99
    )


def one_process(rate: float) -> ProcessResult:
    return ProcessResult(
        process=0,
        statistic="elapsed",
        bytes_per_s=rate,
        payload_bytes=256 * MIB,
        traffic_bytes=256 * MIB,
        timed_bytes=200 * MIB,
        elapsed_s=200 * MIB / rate,
        sample_bytes_per_s=[rate],
        sample_count=1,
        warmup_samples=0,
        stopped_by="time",
        half_width=None,
        autocorrelation=None,
        slow_fraction=None,
        steady=None,
    )


def dram_rows() -> list[Row]:
    copy, gather = (24.9e9, MEMCPY), (12.45e9, f"half of {MEMCPY}: one core")
    no_latency = {"latency_s": "a step of many operations has no latency of single ones"}
    return [
        measured_row("dram.copy/all-cores", 23.84e9, 0.0061, copy, missing=no_latency),
        measured_row(
            "dram.gather/locked/all-cores",
            18.3e9,
            0.14,
            copy,
            params={"block_bytes": 2 * MIB, "memory": "locked", "spread": True},
            warnings=[WIDE],
            missing=no_latency,
        ),
        measured_row(
            "dram.gather/pageable/1-core",
            9.127e9,
            None,
            gather,
            params={"block_bytes": 64 * KIB, "memory": "pageable", "spread": False},
            missing={
                "bytes_per_s_low": "one process shows no spread between processes",
                **no_latency,
            },
        ),
    ]


def nvme_rows() -> list[Row]:
    link = (7.877e9, "PCIe 4.0 x4 link of nvme0n1")
    block = {"block_bytes": 2 * MIB, "queue_depth": 16}
    few = "312 effective samples, 1000 needed: raise --time-limit"
    return [
        measured_row(
            "nvme.read/posix/2MiB/qd16/random",
            6.514e9,
            0.012,
            link,
            params={**block, "engine": "posix"},
            latency_s=latency(4.91e-3, 7.7e-3),
            device_bytes=256 * MIB,
            path_requested="posix-direct",
            path_observed="posix-direct",
            processes=[one_process(6.514e9)],
            elapsed_s=11.5,
        ),
        measured_row(
            "nvme.read/posix/64KiB/qd1/sequential",
            0.7312e9,
            0.031,
            link,
            params={"block_bytes": 64 * KIB, "queue_depth": 1, "engine": "posix"},
            latency_s=latency(83.4e-6, None),
            missing={"latency_s.p99": few},
            warnings=[COLD],
            path_requested="posix-direct",
            path_observed="posix-direct",
        ),
        measured_row(
            "nvme.read/kvikio/2MiB/qd16/random",
            4.02e9,
            0.058,
            link,
            state=State.DEGRADED,
            reason="asked for gds, the bytes went by posix-bounce",
            reason_code="other_path",
            params={**block, "engine": "kvikio"},
            latency_s=latency(7.9e-3, None),
            missing={"latency_s.p99": few.replace("312", "290")},
            warnings=[COLD, WIDE],
            path_requested="gds",
            path_observed="posix-bounce",
        ),
        measured_row(
            "nvme.read/posix/2MiB/qd32/random",
            31.25e9,  # must not be printed anywhere for people
            0.012,
            link,
            state=State.INVALID,
            reason="measured 397% of the limit (PCIe 4.0 x4 link of nvme0n1): "
            "a cache, a wrong limit or a wrong measurement",
            reason_code="above_limit",
            params={**block, "engine": "posix"},
            latency_s=latency(1.0625e-3, 1.125e-3),
        ),
        make_row(
            "nvme.write/posix/2MiB/qd16/sequential",
            state=State.FAILED,
            params={**block, "engine": "posix"},
            reason="worker 1 of 3 ended: no space left on device",
            reason_code="worker_died",
        ),
        make_row(
            "nvme.write/gds/2MiB/qd16/sequential",
            state=State.SKIPPED,
            reason="kvikio is missing",
        ),
    ]


@pytest.fixture
def measured() -> Report:
    """A row in every state but simulated, and a missing figure of every kind."""
    no_gpu = "no CUDA device: no NVIDIA driver"
    hbm = [f"hbm.copy/{engine}" for engine in ("engine", "triton")]
    hbm += [f"hbm.h2d/{memory}/2MiB" for memory in ("pinned", "pageable", "batched")]
    return Report(
        kvbench_version="0.1.0",
        session_id="5f2c",
        suite="quick",
        command=["kvbench", "run", "quick"],
        started_at="2026-11-25T16:01:07Z",
        finished_at="2026-11-25T16:02:59Z",
        plan={"processes": 3},
        machine=SERVER,
        model=LLAMA,
        warnings=[GOVERNOR],
        rows=[
            *dram_rows(),
            *nvme_rows(),
            *(make_row(case, state=State.SKIPPED, reason=no_gpu) for case in hbm),
        ],
    )


@pytest.fixture
def simulated() -> Report:
    """A report of simulated devices, interrupted before its end."""
    link = (7e9, "profile nvme-gen4")
    return Report(
        kvbench_version="0.1.0",
        session_id="77aa",
        suite="ci",
        command=["kvbench", "run", "ci", "--simulate", "nvme-gen4"],
        started_at="2026-11-25T16:01:07+00:00",
        simulated="nvme-gen4",
        plan={"processes": 3},
        machine=msgspec.structs.replace(SERVER, storage=None),
        model=LLAMA,
        rows=[
            measured_row(
                f"nvme.{verb}/posix/2MiB/qd16",
                rate,
                0.004,
                link,
                state=State.SIMULATED,
                reason="simulated device nvme-gen4",
                params={"block_bytes": 2 * MIB, "queue_depth": 16},
                latency_s=latency(5e-3, 6e-3),
            )
            for verb, rate in (("read", 6.9e9), ("write", 5.2e9))
        ],
    )


@pytest.fixture
def comparison() -> Comparison:
    """Every verdict, and reasons of every kind."""
    return make_comparison(SERVER)
