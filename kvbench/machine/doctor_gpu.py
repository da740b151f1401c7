"""Checks of the GPUs, the driver and KvikIO. Pure functions of the machine record."""

from kvbench.machine.check import Check, Status
from kvbench.machine.record import Gpu, Machine
from kvbench.units import format_bytes, format_rate

# Below this share of its maximum an SM clock is not held at the top: GPU Boost steps are finer.
_HELD_CLOCK = 0.95


def gpu(machine: Machine) -> Check:
    """A GPU that CUDA sees, with its driver."""
    if machine.has_gpu:
        names = [f"{one.name} ({_size(one.memory_bytes)})" for one in machine.visible_gpus]
        listed = ", ".join(
            f"{names.count(name)} x {name}" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        )
        versions = f"driver {machine.cuda.driver_version}, CUDA {machine.cuda.cuda_driver_version}"
        return Check(name="GPU", status=Status.PRESENT, seen=f"{listed}, {versions}")
    fix, is_command = _driver_fix(machine)
    return Check(
        name="GPU",
        status=Status.MISSING,
        seen=machine.gpu_reason or "none",
        cost="HBM and GPU copies are not measured: their rows are skipped with this reason",
        fix=fix,
        fix_is_command=is_command,
    )


def gpu_link(machine: Machine) -> Check | None:
    """PCIe links as wide and fast as GPU and slot allow."""
    gpus = machine.visible_gpus
    known = [one for one in gpus if one.pcie_generation and one.pcie_width]
    if not gpus:
        return None
    if not known:
        return Check(
            name="GPU link",
            status=Status.UNKNOWN,
            seen="NVML names no PCIe link",
            cost="host-to-GPU rows have no limit beside them",
        )
    seen = "; ".join(
        f"GPU {one.index}: PCIe {one.pcie_generation} x{one.pcie_width}"
        + (f", {format_rate(one.pcie_bytes_per_s)} a direction" if one.pcie_bytes_per_s else "")
        for one in known
    )
    narrow = [one for one in known if (one.pcie_width or 0) < (one.pcie_width_max or 0)]
    slow = [one for one in known if (one.pcie_generation or 0) < (one.pcie_generation_max or 0)]
    if narrow:
        worst = narrow[0]
        return Check(
            name="GPU link",
            status=Status.DEGRADED,
            seen=f"{seen} (GPU {worst.index} can do x{worst.pcie_width_max})",
            cost="copies between host and GPU stop at the narrower link; so does GPUDirect",
            fix=f"reseat GPU {worst.index} or use a slot with {worst.pcie_width_max} lanes "
            "of its own, and look for bifurcation in the firmware setup",
            fix_is_command=False,
        )
    if slow:
        worst = slow[0]
        idle = worst.performance_state not in {0, None}
        return Check(
            name="GPU link",
            status=Status.DEGRADED,
            seen=f"{seen} (GPU {worst.index} can do generation {worst.pcie_generation_max})",
            cost="usual while the GPU is idle: it speeds up with the first copy"
            if idle
            else "copies between host and GPU stop at the slower link",
            fix="nvidia-smi --format=csv "
            "--query-gpu=pstate,pcie.link.gen.current,pcie.link.gen.max",
        )
    return Check(name="GPU link", status=Status.PRESENT, seen=seen)


def gpu_throttling(machine: Machine) -> Check | None:
    """Nothing holds the clocks back."""
    gpus = machine.visible_gpus
    held = [one for one in gpus if one.throttle_reasons]
    if not gpus:
        return None
    if not held:
        return Check(name="GPU throttling", status=Status.PRESENT, seen="none now")
    return Check(
        name="GPU throttling",
        status=Status.DEGRADED,
        seen="; ".join(f"GPU {one.index}: {', '.join(one.throttle_reasons)}" for one in held),
        cost="HBM and copy rates vary with temperature and power, not with what is measured",
        fix=f"nvidia-smi -q -d PERFORMANCE,POWER,TEMPERATURE -i {held[0].index}",
    )


def gpu_clocks(machine: Machine) -> Check | None:
    """SM clocks held at their maximum, so that a first kernel runs like the hundredth."""
    loose = [
        one
        for one in machine.visible_gpus
        if one.sm_clock_hz and one.sm_clock_max_hz and not _held(one)
    ]
    clocked = [one for one in machine.visible_gpus if one.sm_clock_hz and one.sm_clock_max_hz]
    if not clocked:
        return None
    worst = min(clocked, key=lambda one: one.sm_clock_hz or 0)
    seen = (
        f"GPU {worst.index}: {_mhz(worst.sm_clock_hz)} now, {_mhz(worst.sm_clock_max_hz)} at most"
    )
    if not loose:
        return Check(name="GPU clocks", status=Status.PRESENT, seen=seen)
    return Check(
        name="GPU clocks",
        status=Status.DEGRADED,
        seen=f"{seen}: not locked",
        cost="short copies and kernels start at a low clock: more warm-up, wider intervals",
        fix=f"sudo nvidia-smi -pm 1 && sudo nvidia-smi -i {worst.index} "
        f"-lgc {(worst.sm_clock_max_hz or 0) // 1_000_000}  # undo: sudo nvidia-smi -rgc",
    )


def gpu_sharing(machine: Machine) -> Check | None:
    """The GPUs belong to this measurement alone, and whole."""
    gpus = machine.visible_gpus
    if not gpus:
        return None
    busy = [one for one in gpus if one.other_processes]
    sliced = [one for one in gpus if one.mig]
    if busy:
        return Check(
            name="GPU sharing",
            status=Status.DEGRADED,
            seen="; ".join(
                f"GPU {one.index}: {one.other_processes} other processes" for one in busy
            ),
            cost="they take bandwidth and memory from what is measured",
            fix="nvidia-smi --query-compute-apps=pid,name,used_memory --format=csv",
        )
    if sliced:
        return Check(
            name="GPU sharing",
            status=Status.DEGRADED,
            seen=f"MIG is on for GPU {', '.join(str(one.index) for one in sliced)}",
            cost="an instance has a share of memory and bandwidth: limits here are the whole GPU's",
            fix=f"sudo nvidia-smi -i {sliced[0].index} -mig 0",
        )
    return Check(name="GPU sharing", status=Status.PRESENT, seen="no other process, MIG off")


def kvikio(machine: Machine) -> Check:
    """KvikIO, by which GPUDirect Storage is reached."""
    found = machine.kvikio
    if found.usable:
        return Check(
            name="KvikIO",
            status=Status.PRESENT,
            seen=f"{found.package} {found.version}, libcuda for CUDA "
            f"{found.libcuda_version or 'unknown'}",
        )
    return Check(
        name="KvikIO",
        status=Status.MISSING,
        seen=found.reason or "not usable",
        cost="rows of the kvikio engine are skipped; the posix engine is measured all the same",
        fix=found.fix,
        fix_is_command=bool(found.fix and found.fix.startswith("pip ")),
    )


def _driver_fix(machine: Machine) -> tuple[str, bool]:
    if machine.gpus:
        return "unset CUDA_VISIBLE_DEVICES", True
    if machine.cuda.pci_gpus == 0:
        return "run kvbench on a machine with an NVIDIA GPU", False
    if machine.os.container:
        return "start the container with its GPUs: docker run --gpus all ...", False
    distribution = machine.os.distribution or ""
    if "Ubuntu" in distribution:
        return "sudo ubuntu-drivers install --gpgpu && sudo reboot", True
    if "Debian" in distribution:
        return "sudo apt-get install nvidia-driver firmware-misc-nonfree && sudo reboot", True
    return "install the NVIDIA driver of your distribution, then restart", False


def _held(one: Gpu) -> bool:
    return (one.sm_clock_hz or 0) >= _HELD_CLOCK * (one.sm_clock_max_hz or 0)


def _size(value_bytes: int | None) -> str:
    return format_bytes(value_bytes) if value_bytes else "size unknown"


def _mhz(hertz: int | None) -> str:
    return f"{(hertz or 0) / 1e6:.0f} MHz"
