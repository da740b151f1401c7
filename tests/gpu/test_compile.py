"""What the kernels compile to, for GPUs that need not be here: the width of each memory access.

Triton drops from 16-byte to 4-byte accesses without a word when it cannot see an alignment. The
PTX shows it, so this is checked for every architecture on any machine.
"""

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvbench_kernels import copy, gather

CAPABILITIES = (80, 90, 100)
THREADS = 128  # 4 warps
WORDS = "*i32"


class Build(NamedTuple):
    """A kernel, the types of its run-time arguments, and the narrow loads that it may have."""

    kernel: Any
    types: dict[str, str]
    tile_words: int
    narrow_loads: dict[int, int]  # bytes → count: one id a program


def page_types(source: str, target: str, ids: str, length: str) -> dict[str, str]:
    lengths = dict.fromkeys(("page_units", "stride_units", "row_stride_units"), length)
    return {source: WORDS, "ids": ids, target: WORDS, **lengths}


BUILDS = {
    "copy": Build(
        copy.copy_words, {"src": WORDS, "dst": WORDS, "units": "i32"}, copy.TILE_WORDS, {}
    ),
    "copy of 32 GiB and more": Build(
        copy.copy_words, {"src": WORDS, "dst": WORDS, "units": "i64"}, copy.TILE_WORDS, {}
    ),
    "gather": Build(
        gather.gather_words,
        page_types("cache", "out", "*i32", "i32"),
        gather.TILE_WORDS,
        {4: 1},
    ),
    "gather by int64 ids": Build(
        gather.gather_words,
        page_types("cache", "out", "*i64", "i32"),
        gather.TILE_WORDS,
        {8: 1},
    ),
    "scatter": Build(
        gather.scatter_words,
        page_types("rows", "cache", "*i32", "i32"),
        gather.TILE_WORDS,
        {4: 1},
    ),
    "scatter by int64 ids": Build(
        gather.scatter_words,
        page_types("rows", "cache", "*i64", "i32"),
        gather.TILE_WORDS,
        {8: 1},
    ),
}


def compile_kernel(build: Build, capability: int, unaligned: str = "") -> dict[str, Any]:
    """PTX and binary as the wrapper's launch gets them: pointers aligned, numbers unknown."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], int] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, name in enumerate(build.kernel.arg_names):
        signature[name] = build.types.get(name, "constexpr")
        if name not in build.types:
            constants[(index,)] = build.tile_words
        elif signature[name].startswith("*") and name != unaligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(build.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": THREADS // 32, "enable_fp_fusion": False}
    target = GPUTarget("cuda", capability, 32)
    return dict(triton.compile(source, target=target, options=options).asm)


def access_bytes(ptx: str, operation: str) -> Counter[int]:
    """Bytes of each global access of one thread → how many there are."""
    found: Counter[int] = Counter()
    for suffix in re.findall(rf"\b{operation}\.global([.\w]*)", ptx):
        width = re.fullmatch(r"(?:\.\D\w*)*?(?:\.v(\d))?\.[bfsu](\d+)", suffix)
        assert width, f"{operation}.global{suffix} is not an access that this test can read"
        found[int(width[2]) // 8 * int(width[1] or 1)] += 1
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", BUILDS)
def test_every_payload_access_is_16_bytes_wide(name: str, capability: int) -> None:
    build = BUILDS[name]
    ptx = compile_kernel(build, capability)["ptx"]

    wide = build.tile_words * 4 // 16 // THREADS  # of one thread, for its share of the tile
    assert access_bytes(ptx, "ld") == {16: wide, **build.narrow_loads}
    assert access_bytes(ptx, "st") == {16: wide}
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", BUILDS)
def test_nothing_is_kept_in_local_memory(name: str, capability: int, tmp_path: Path) -> None:
    built = compile_kernel(BUILDS[name], capability)
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(built["cubin"])
    # Registers are given out after the PTX, so spills show in the binary only. The tool comes
    # with Triton.
    tool = knobs.nvidia.cuobjdump.path
    usage = subprocess.run(
        [tool, "--dump-resource-usage", binary], capture_output=True, text=True, check=True
    ).stdout

    assert ".local" not in built["ptx"]
    used = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert used, usage
    assert (used[2], used[3]) == ("0", "0"), usage
    assert int(used[1]) <= 32, "32 registers a thread leave room for all 2048 threads of an SM"


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_this_test_would_see_narrow_accesses(capability: int) -> None:
    # The very kernel, with an address whose alignment is not known: what the wrappers refuse.
    ptx = compile_kernel(BUILDS["copy"], capability, unaligned="src")["ptx"]

    assert access_bytes(ptx, "ld") == {4: copy.TILE_WORDS // THREADS}
