"""What a kernel compiles to, for GPUs that need not be here: read from PTX and machine code.

Compiles ahead of time with the assembler that Triton brings, which needs no driver, and reads the
result into a frozen record. Judges nothing (`kvbench_kernels.bars` does), launches nothing, and
measures nothing: bytes in flight and the issue ratio rest on assumed peaks and clocks, so they
rank the variants of one kernel and predict no bandwidth.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.errors import TritonError

from kvbench_kernels.checks import UNIT_BYTES, interpreted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kvbench_kernels.variant import Variant

TRITON_VERSION: str = triton.__version__
WARP_THREADS = 32
MOST_ERROR_CHARACTERS = 200

# Alike on compute capability 8.0, 9.0 and 10.0 (CUDA C++ Programming Guide, technical
# specifications per compute capability). Registers are given out to a warp in units of 256, and to
# four warps at a time, since an SM has four schedulers.
REGISTERS_PER_SM = 65536
REGISTER_UNIT = 256
SCHEDULERS = 4
WARPS_PER_SM = 64
CTAS_PER_SM = 32
# What the system takes of shared memory for every CTA (same guide), and the unit of giving it out.
CTA_SHARED_BYTES = 1024
SHARED_UNIT_BYTES = 128

# Rounding by adding and subtracting 1.5 * 2**23 (to integers) or 1.5 * 2**14 (to 2**-9), as PTX
# writes them, of either sign. Fused into a multiply-add, such a sum rounds once instead of twice.
_MAGIC = re.compile(r"\b0f(?:[4C]B400000|[4C]6C00000)\b", re.IGNORECASE)
_E4M3 = re.compile(r"\bcvt\.rn\.(?:satfinite\.e4m3x2\.\w+|f16x2\.e4m3x2)\b")
_ACCESS = re.compile(r"\b(ld|st)((?:\.[\w:]+)*\.global(?:\.[\w:]+)*)")
_WIDTH = re.compile(r"(?:\.v(\d))?\.[bfsu](\d+)$")
_ASYNC = re.compile(
    r"\bcp\.async\.c[ag]\.shared\.global[.\w:]*\s*\[[^]]*\]\s*,\s*\[[^]]*\]\s*,\s*(0x\w+|\d+)"
)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) .*\bLOCAL:(\d+)")
_LINE = re.compile(
    r"^(?:(?P<label>\.L\w+):|\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<rest>.*))$",
    re.MULTILINE,
)
_TARGET = re.compile(r"`\((\.L\w+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What the estimates assume of a GPU. Nothing here was measured."""

    name: str
    shared_bytes: int  # of an SM; CUDA C++ Programming Guide
    sms: int  # data sheet
    peak_bytes_per_s: float  # of HBM; data sheet
    clock_hz: float  # assumed under load


GPUS: Mapping[int, Gpu] = {
    80: Gpu(
        name="A100 80 GB",
        shared_bytes=164 * 1024,
        sms=108,
        peak_bytes_per_s=2.039e12,
        clock_hz=1.41e9,
    ),
    90: Gpu(
        name="H100 SXM",
        shared_bytes=228 * 1024,
        sms=132,
        peak_bytes_per_s=3.35e12,
        clock_hz=1.755e9,
    ),
    100: Gpu(
        name="B200",
        shared_bytes=228 * 1024,
        sms=148,
        peak_bytes_per_s=8.0e12,
        clock_hz=1.85e9,
    ),
}


class BuildError(Exception):
    """A variant does not compile; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accesses:
    """Global memory instructions of one thread: bytes of an access → how many in the PTX."""

    loads: Mapping[int, int]
    stores: Mapping[int, int]
    bulk_copies: int  # by the tensor memory accelerator; their width is their own affair


@dataclass(frozen=True, slots=True, kw_only=True)
class Static:
    """One build of one variant. Counts are of instructions in the text, not of executions."""

    variant: str
    capability: int
    triton: str
    threads: int  # of a CTA
    accesses: Accesses
    registers: int  # of a thread
    stack_bytes: int
    local_bytes: int
    local_accesses: int  # LDL and STL: what spills look like
    shared_bytes: int  # of a CTA
    instructions: int  # machine code, cold paths included, padding not
    barriers: int
    calls: int
    has_loop: bool
    double_instructions: int  # PTX instructions on f64
    fused_instructions: int  # fma.rn in the PTX
    magic_rounding: bool  # rounds by adding a constant, which a fused multiply-add would spoil
    e4m3_casts: int  # the hardware's own conversions
    ahead_bytes: int  # 16-byte loads of a thread before its first store
    ctas_per_sm: int
    occupancy: float  # share of the threads that an SM can hold
    in_flight_bytes: int  # that an SM can have under way: ahead_bytes of all its threads
    issue_ratio: float | None  # time to issue over time to move; None with a loop or no byte model


def analyse(variant: Variant, capability: int) -> Static:
    """Compile a variant for one architecture as its wrapper launches it, and read the result.

    Pointers are 16-byte aligned, as the wrappers insist; of integers nothing is known. The result
    comes out of Triton's cache where the very same source was compiled before.

    Args:
        variant: What to compile.
        capability: 80, 90 or 100.

    Raises:
        BuildError: it does not compile.
        RuntimeError: this process interprets kernels, so it cannot compile them.
    """
    built = _compile(variant, capability, hinted=True)
    ptx = built.asm["ptx"]
    usage, code = _disassemble(built.asm["cubin"])
    found = _USAGE.search(usage)
    assert found, f"cuobjdump says nothing of registers: {usage!r}"
    registers, stack_bytes, local_bytes = map(int, found.groups())
    instructions, has_loop = _read_code(code)
    accesses = read_accesses(ptx)
    shared_bytes = int(built.metadata.shared)
    ahead_bytes = _ahead_bytes(instructions)
    ctas = ctas_per_sm(variant.num_warps, registers, shared_bytes, GPUS[capability])
    threads = variant.num_warps * WARP_THREADS
    of_cta_bytes = shared_bytes if accesses.bulk_copies else ahead_bytes * threads
    return Static(
        variant=variant.name,
        capability=capability,
        triton=TRITON_VERSION,
        threads=threads,
        accesses=accesses,
        registers=registers,
        stack_bytes=stack_bytes,
        local_bytes=local_bytes,
        local_accesses=_count(instructions, ("LDL", "STL")),
        shared_bytes=shared_bytes,
        instructions=len(instructions),
        barriers=_count(instructions, ("BAR",)),
        calls=_count(instructions, ("CALL",)),
        has_loop=has_loop,
        double_instructions=len(re.findall(r"\.f64\b", ptx)),
        fused_instructions=len(re.findall(r"\bfma\.rn\b", ptx)),
        magic_rounding=bool(_MAGIC.search(ptx)),
        e4m3_casts=len(_E4M3.findall(ptx)),
        ahead_bytes=ahead_bytes,
        ctas_per_sm=ctas,
        occupancy=ctas * variant.num_warps / WARPS_PER_SM,
        in_flight_bytes=of_cta_bytes * ctas,
        issue_ratio=None if has_loop else _issue_ratio(variant, len(instructions), capability),
    )


def accesses_without_hints(variant: Variant, capability: int) -> Accesses:
    """The accesses of a build that knows nothing of any alignment: what wrappers must prevent.

    Neither of the addresses that it is given nor, by `tl.multiple_of`, of those that it reads from
    a table.

    Raises:
        BuildError: it does not compile.
        RuntimeError: this process interprets kernels, so it cannot compile them.
    """
    with _nothing_stated():
        return read_accesses(_compile(variant, capability, hinted=False).asm["ptx"])


def read_accesses(ptx: str) -> Accesses:
    """Count the global loads and stores in PTX by their width.

    Asynchronous copies to shared memory count as loads. Accesses to shared and local memory, and
    to parameters, are left out.

    Raises:
        ValueError: an access has a form that this cannot read; it is not passed over.
    """
    counts: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for operation, suffix in _ACCESS.findall(ptx):
        width = _WIDTH.search(suffix)
        if width is None:
            raise ValueError(f"cannot read the width of {operation}{suffix} in the PTX")
        counts[operation][int(width[2]) // 8 * int(width[1] or 1)] += 1
    counts["ld"].update(int(size_bytes, 0) for size_bytes in _ASYNC.findall(ptx))
    return Accesses(
        loads=dict(sorted(counts["ld"].items(), reverse=True)),
        stores=dict(sorted(counts["st"].items(), reverse=True)),
        bulk_copies=len(re.findall(r"\bcp\.async\.bulk\.(?:tensor|shared|global)", ptx)),
    )


def ctas_per_sm(num_warps: int, registers: int, shared_bytes: int, gpu: Gpu) -> int:
    """CTAs that an SM holds at once, as NVIDIA's occupancy calculator counts them.

    Args:
        num_warps: Of a CTA.
        registers: Of a thread.
        shared_bytes: Of a CTA, without what the system takes.
        gpu: Whose shared memory it is.
    """
    warps = REGISTERS_PER_SM // _rounded_up(registers * WARP_THREADS, REGISTER_UNIT)
    by_registers = warps // SCHEDULERS * SCHEDULERS // num_warps
    by_shared = gpu.shared_bytes // _rounded_up(shared_bytes + CTA_SHARED_BYTES, SHARED_UNIT_BYTES)
    return min(by_registers, by_shared, WARPS_PER_SM // num_warps, CTAS_PER_SM)


def _compile(variant: Variant, capability: int, *, hinted: bool) -> Any:
    if interpreted():
        raise RuntimeError(
            "this process interprets kernels (TRITON_INTERPRET), so it cannot compile them"
        )
    source = _source(variant, hinted=hinted)
    said = io.StringIO()
    try:
        # A failing assembler makes Triton print all of the PTX.
        with contextlib.redirect_stdout(said):
            built = triton.compile(
                source,
                target=GPUTarget("cuda", capability, WARP_THREADS),
                options={"num_warps": variant.num_warps, "enable_fp_fusion": False},
            )
    except (TritonError, RuntimeError) as error:  # RuntimeError: a pass of the compiler failed
        raise BuildError(f"{variant.name} for sm_{capability}: {_one_line(error)}") from error
    if "ptx" not in built.asm:
        raise BuildError("Triton keeps no PTX: unset TRITON_STORE_BINARY_ONLY")
    return built


@contextlib.contextmanager
def _nothing_stated() -> Iterator[None]:
    """Let `tl.multiple_of` say nothing.

    Triton's cache does not know of that, so the builds go to a cache of their own: no launch may
    find them.
    """
    stated = tl.multiple_of
    with knobs.cache.scope():
        knobs.cache.dir = str(Path(knobs.cache.dir) / "kvbench-without-hints")
        tl.multiple_of = _say_nothing
        try:
            yield
        finally:
            tl.multiple_of = stated


@tl.core.builtin
def _say_nothing(input, values, _semantic=None):  # noqa: A002 - the name in Triton's own
    del values, _semantic
    return input


def _source(variant: Variant, *, hinted: bool) -> ASTSource:
    names = variant.kernel.arg_names
    declared = {**variant.types, **variant.constants}
    if set(names) != set(declared):
        wrong = ", ".join(sorted(set(names) ^ set(declared)))
        raise BuildError(
            f"{variant.name} must declare a type or a constant for each argument of its kernel "
            f"and for nothing else, got a difference in {wrong}"
        )
    constants = {(names.index(name),): value for name, value in variant.constants.items()}
    hint = [["tt.divisibility", UNIT_BYTES]]
    aligned = [
        (index,)
        for index, parameter in enumerate(variant.kernel.params)
        if variant.types.get(parameter.name, "").startswith("*")
        and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
    ]
    return ASTSource(
        variant.kernel,
        signature={name: variant.types.get(name, "constexpr") for name in names},
        constexprs=constants,
        attrs=dict.fromkeys(aligned, hint) if hinted else {},
    )


def _one_line(error: Exception) -> str:
    """What went wrong, out of a message that also holds source text, a log and a command."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"ptxas\S*\s.*(?:error|fatal)", line)]
    compiler = [line for line in lines if not line.startswith("Repro command")]
    line = (fatal or compiler[-1:] or [type(error).__name__])[0]
    return line if len(line) <= MOST_ERROR_CHARACTERS else f"{line[: MOST_ERROR_CHARACTERS - 1]}…"


def _disassemble(binary: bytes) -> tuple[str, str]:
    """Resource usage and machine code, as the tools in Triton's wheel print them."""
    tools = (
        (knobs.nvidia.cuobjdump.path, "--dump-resource-usage"),
        (knobs.nvidia.nvdisasm.path, "-c", "-ndf"),  # no data flow: a quarter of its time
    )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "kernel.cubin"
        file.write_bytes(binary)
        usage, code = (
            subprocess.run([*tool, file], capture_output=True, text=True, check=True).stdout
            for tool in tools
        )
    return usage, code


def _read_code(code: str) -> tuple[list[str], bool]:
    """Opcodes in order without the padding at the end, and whether one jumps back."""
    opcodes: list[str] = []
    jumps: list[tuple[int, str]] = []
    labels: dict[str, int] = {}
    for line in _LINE.finditer(code):
        if line["label"]:
            labels[line["label"]] = len(opcodes)
            continue
        target = _TARGET.search(line["rest"])
        if line["opcode"].startswith("BRA") and target:
            jumps.append((len(opcodes), target[1]))
        opcodes.append(line["opcode"])
    while opcodes and opcodes[-1] in {"NOP", "BRA"}:  # a jump to itself, then filling
        opcodes.pop()
    end = len(opcodes)
    return opcodes, any(at < end and labels.get(to, end) <= at for at, to in jumps)


def _count(opcodes: list[str], prefixes: tuple[str, ...]) -> int:
    return sum(opcode.startswith(prefixes) for opcode in opcodes)


def _ahead_bytes(opcodes: list[str]) -> int:
    first_store = next((i for i, op in enumerate(opcodes) if op.startswith("STG")), len(opcodes))
    wide = (op for op in opcodes[:first_store] if op.startswith("LDG") and ".128" in op)
    return UNIT_BYTES * sum(1 for _ in wide)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _issue_ratio(variant: Variant, instructions: int, capability: int) -> float | None:
    """Time to issue all instructions over time to move the payload, on the whole GPU.

    Above 1 the instructions take longer than the bytes. One instruction a scheduler and cycle;
    each warp of a CTA issues every instruction once.
    """
    if variant.payload_load_bytes is None or variant.payload_store_bytes is None:
        return None
    gpu = GPUS[capability]
    issue_s = instructions * variant.num_warps / (gpu.sms * SCHEDULERS * gpu.clock_hz)
    payload_bytes = variant.payload_load_bytes + variant.payload_store_bytes
    return issue_s / (payload_bytes / gpu.peak_bytes_per_s)
