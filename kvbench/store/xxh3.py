"""XXH3-64 of many blocks in one call, copying them on the way: compiled when it is first asked for.

A put has to copy a block and to hash it, and each alone is limited by memory; here every byte is
loaded once. The call holds no lock of the interpreter. Written in LLVM's language, since nothing
else that is installed with a `pip install` gives vectors of the machine's own width, and compiled
by llvmlite in some 0.1 s. Without llvmlite `kernel` is None, and the caller does it in two passes.
Knows addresses only, not arrays; `kvbench.store.copying` is for everybody else.

XXH3 is specified at https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md; this is its
branch for inputs of more than 240 bytes, with seed 0 and the default secret.
"""

import ctypes
import functools
import importlib
import sys
import threading
from enum import IntEnum
from typing import Any

LEAST_BYTES = 241  # shorter inputs are hashed in other ways
STREAM_ALIGNMENT = 64  # what streaming stores need: targets and sizes are multiples of it

# The specification's default secret, its first 192 bytes.
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
PRIME32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
PRIME64 = (
    0x9E3779B185EBCA87,
    0xC2B2AE3D27D4EB4F,
    0x165667B19E3779F9,
    0x85EBCA77C2B2AE63,
    0x27D4EB2F165667C5,
)
PRIME_MX1 = 0x165667919E3779F9
START = (
    *(PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2]),
    *(PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]),
)


class How(IntEnum):
    """What to do besides hashing."""

    HASH = 0  # nothing; targets are ignored
    COPY = 1
    STREAM = 2  # copy past the caches, for what is larger than they are


class Kernel:
    """The compiled code. `engine` owns it."""

    def __init__(self, engine: Any) -> None:  # noqa: ANN401  llvmlite has no types
        self._engine = engine
        u64 = ctypes.c_uint64
        prototype = ctypes.CFUNCTYPE(None, u64, u64, u64, u64, u64, u64)  # lets the interpreter go
        self._digests = [
            prototype(engine.get_function_address(f"digests_{how.name.lower()}")) for how in How
        ]

    def digest(
        self, how: How, sources: int, targets: int, shape: tuple[int, int, int], sums: int
    ) -> None:
        """Hash blocks, each part by itself; `shape` is (blocks, parts, bytes of a part).

        `sources` and `targets` are addresses of arrays of one address (u64) for each block, `sums`
        is the address of u64 [blocks, parts]. The caller vouches for all of it, and that a part
        has LEAST_BYTES.
        """
        self._digests[how](sources, targets, *shape, sums)


def _vector(*values: int) -> str:
    """A constant of eight u64; one value stands for all."""
    eight = values if len(values) > 1 else values * 8
    return "<" + ", ".join(f"i64 {value}" for value in eight) + ">"


# %acc after `count` stripes of 64 bytes, each with its own 64 bytes of the secret, 8 bytes on from
# those before. LLVM makes one instruction of the product of two halves (pmuludq).
_STRIPES = """
define internal <8 x i64> @stripes_{name}(<8 x i64> %start, ptr %source, ptr %target, i64 %count,
                                          ptr %secret) alwaysinline {{
entry:
  br label %loop
loop:
  %n = phi i64 [ 0, %entry ], [ %next, %loop ]
  %acc = phi <8 x i64> [ %start, %entry ], [ %after, %loop ]
  %at = shl i64 %n, 6
  %from = getelementptr i8, ptr %source, i64 %at
  %data = load <8 x i64>, ptr %from, align 1
  {store}
  %along = shl i64 %n, 3
  %where = getelementptr i8, ptr %secret, i64 %along
  %word = load <8 x i64>, ptr %where, align 1
  %key = xor <8 x i64> %data, %word
  %low = and <8 x i64> %key, {low_half}
  %high = lshr <8 x i64> %key, {thirty_two}
  %product = mul <8 x i64> %low, %high
  %swapped = shufflevector <8 x i64> %data, <8 x i64> poison,
    <8 x i32> <i32 1, i32 0, i32 3, i32 2, i32 5, i32 4, i32 7, i32 6>
  %sum = add <8 x i64> %product, %swapped
  %after = add <8 x i64> %acc, %sum
  %next = add i64 %n, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  ret <8 x i64> %after
}}

define internal i64 @digest_{name}(ptr %source, ptr %target, i64 %size) alwaysinline {{
entry:
  %last = sub i64 %size, 1
  %blocks = lshr i64 %last, 10
  %rest = and i64 %last, 1023
  %stripes = lshr i64 %rest, 6
  %bulk = shl i64 %blocks, 10
  %any = icmp ne i64 %blocks, 0
  br i1 %any, label %block, label %tail
block:
  %n = phi i64 [ 0, %entry ], [ %next, %block ]
  %acc = phi <8 x i64> [ {start}, %entry ], [ %scrambled, %block ]
  %at = shl i64 %n, 10
  %from = getelementptr i8, ptr %source, i64 %at
  %to = getelementptr i8, ptr %target, i64 %at
  %full = call <8 x i64> @stripes_{name}(<8 x i64> %acc, ptr %from, ptr %to, i64 16, ptr @secret)
  %shifted = lshr <8 x i64> %full, {forty_seven}
  %mixed = xor <8 x i64> %full, %shifted
  %end = load <8 x i64>, ptr getelementptr (i8, ptr @secret, i64 128), align 1
  %keyed = xor <8 x i64> %mixed, %end
  %scrambled = mul <8 x i64> %keyed, {prime32_1}
  %next = add i64 %n, 1
  %more = icmp ult i64 %next, %blocks
  br i1 %more, label %block, label %tail
tail:
  %whole = phi <8 x i64> [ {start}, %entry ], [ %scrambled, %block ]
  %some = icmp ne i64 %stripes, 0
  br i1 %some, label %partial, label %final
partial:
  %pfrom = getelementptr i8, ptr %source, i64 %bulk
  %pto = getelementptr i8, ptr %target, i64 %bulk
  %part = call <8 x i64> @stripes_{name}(<8 x i64> %whole, ptr %pfrom, ptr %pto, i64 %stripes,
                                         ptr @secret)
  br label %final
final:
  %before = phi <8 x i64> [ %whole, %tail ], [ %part, %partial ]
  %back = sub i64 %size, 64
  %lfrom = getelementptr i8, ptr %source, i64 %back
  %lto = getelementptr i8, ptr %target, i64 %back
  %all = call <8 x i64> @stripes_{name}(<8 x i64> %before, ptr %lfrom, ptr %lto, i64 1,
                                        ptr getelementptr (i8, ptr @secret, i64 121))
  %sum = call i64 @merge(<8 x i64> %all, i64 %size)
  ret i64 %sum
}}

define void @digests_{name}(ptr %sources, ptr %targets, i64 %count, i64 %parts, i64 %size,
                            ptr %sums) {{
entry:
  %inputs = mul i64 %count, %parts
  %any = icmp ne i64 %inputs, 0
  br i1 %any, label %input, label %done
input:
  %n = phi i64 [ 0, %entry ], [ %next, %input ]
  %row = udiv i64 %n, %parts
  %part = urem i64 %n, %parts
  %along = mul i64 %part, %size
  %which = getelementptr i64, ptr %sources, i64 %row
  %whole = load ptr, ptr %which
  %source = getelementptr i8, ptr %whole, i64 %along
  {target}
  %sum = call i64 @digest_{name}(ptr %source, ptr %target, i64 %size)
  %out = getelementptr i64, ptr %sums, i64 %n
  store i64 %sum, ptr %out, align 8
  %next = add i64 %n, 1
  %more = icmp ult i64 %next, %inputs
  br i1 %more, label %input, label %done
done:
  fence seq_cst
  ret void
}}
"""

_MERGE = """
define internal i64 @merge(<8 x i64> %acc, i64 %size) {{
  %word = load <8 x i64>, ptr getelementptr (i8, ptr @secret, i64 11), align 1
  %keyed = xor <8 x i64> %acc, %word
  %sum0 = mul i64 %size, {prime64_1}
{folds}
  %x1 = lshr i64 %sum4, 37
  %x2 = xor i64 %sum4, %x1
  %x3 = mul i64 %x2, {prime_mx1}
  %x4 = lshr i64 %x3, 32
  %x5 = xor i64 %x3, %x4
  ret i64 %x5
}}
"""

_FOLD = """
  %a{i} = extractelement <8 x i64> %keyed, i32 {even}
  %b{i} = extractelement <8 x i64> %keyed, i32 {odd}
  %wa{i} = zext i64 %a{i} to i128
  %wb{i} = zext i64 %b{i} to i128
  %p{i} = mul i128 %wa{i}, %wb{i}
  %l{i} = trunc i128 %p{i} to i64
  %s{i} = lshr i128 %p{i}, 64
  %h{i} = trunc i128 %s{i} to i64
  %f{i} = xor i64 %l{i}, %h{i}
  %sum{after} = add i64 %sum{i}, %f{i}"""

_TARGET = """%whither = getelementptr i64, ptr %targets, i64 %row
  %begin = load ptr, ptr %whither
  %target = getelementptr i8, ptr %begin, i64 %along"""
_STORES = {
    How.HASH: "",
    How.COPY: "store <8 x i64> %data, ptr %to, align 1",
    How.STREAM: "store <8 x i64> %data, ptr %to, align 64, !nontemporal !0",
}
_TO = "%to = getelementptr i8, ptr %target, i64 %at\n  "


def _source() -> str:
    """The whole module, in LLVM's language."""
    names = {
        "start": _vector(*START),
        "low_half": _vector(0xFFFFFFFF),
        "thirty_two": _vector(32),
        "forty_seven": _vector(47),
        "prime32_1": _vector(PRIME32[0]),
    }
    secret = "".join(f"\\{byte:02x}" for byte in SECRET)
    folds = "".join(
        _FOLD.format(i=i, even=2 * i, odd=2 * i + 1, after=i + 1) for i in range(len(START) // 2)
    )
    parts = [
        f'@secret = private constant [{len(SECRET)} x i8] c"{secret}", align 64',
        _MERGE.format(prime64_1=PRIME64[0], prime_mx1=PRIME_MX1, folds=folds),
    ]
    for how, store in _STORES.items():
        parts.append(
            _STRIPES.format(
                name=how.name.lower(),
                store=_TO + store if store else "",
                target=_TARGET if store else "%target = getelementptr i8, ptr null, i64 0",
                **names,
            )
        )
    return "\n".join([*parts, "!0 = !{i32 1}"])


_compiling = threading.Lock()


def kernel() -> Kernel | None:
    """The compiled kernel of this machine; None without llvmlite, or where words are big-endian.

    Who asks while it is being compiled waits.
    """
    if not _compiled.cache_info().currsize:
        with _compiling:
            return _compiled()
    return _compiled()


@functools.cache
def _compiled() -> Kernel | None:
    if sys.byteorder != "little":
        return None
    try:
        llvm: Any = importlib.import_module("llvmlite.binding")
    except ImportError:
        return None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(_source())
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return Kernel(engine)
