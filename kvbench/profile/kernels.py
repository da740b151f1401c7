"""Which of our Triton kernels a case launches, by the names that `kvbench lint` gives them.

A table by hand: suites hold no kernels, and kernels know no suites. A test holds it against both.
Imports neither torch nor triton.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from kvbench.measure.suite import Case

# Operation → globs over names of kernels, or OPERATION/FAMILY where that decides. FAMILY is what
# the case's format begins with, such as int4.
LAUNCHED: Mapping[str, tuple[str, ...]] = {
    "hbm.copy": ("copy_contiguous*",),
    "hbm.gather": ("gather_pages*",),
    "hbm.scatter": ("scatter_pages*",),
    "hbm.gather_layers": ("gather_layers*",),
    "hbm.scatter_layers": ("scatter_layers*",),
    "hbm.gather_tokens": ("gather_tokens*",),
    "hbm.scatter_tokens": ("scatter_tokens*",),
    "hbm.relayout": ("relayout*",),
    "hbm.quantise": ("quantise_FAMILY*",),
    "hbm.dequantise": ("dequantise_FAMILY*",),
    "hbm.gather_quantise": ("gather_quantise_FAMILY*",),
    "hbm.dequantise_scatter": ("dequantise_scatter_FAMILY*",),
    "hbm.checksum": ("checksum*",),
    "hbm.swap": ("swap_blocks*",),
    "hbm.offload": ("gather_quantise_FAMILY*",),
    "hbm.offload/raw": ("gather_pages*",),
    "hbm.offload/int4": ("gather_pages*", "quantise_int4*"),
    "hbm.restore": ("dequantise_scatter_FAMILY*",),
    "hbm.restore/raw": ("scatter_pages*",),
    "hbm.restore/int4": ("dequantise_int4*", "scatter_pages*"),
}


def launched(case: Case, kernels: Sequence[str]) -> list[str]:
    """The names of those kernels that the case launches.

    Of a kernel with several variants all are named: which of them serves a case is its wrapper's
    affair. None for work of a copy engine, a CPU or a drive.
    """
    if case.params.get("engine", "triton") != "triton":
        return []
    family = str(case.params.get("format", "")).partition("-")[0]
    operation = case.operation.name
    globs = LAUNCHED.get(f"{operation}/{family}") or LAUNCHED.get(operation, ())
    wanted = [glob.replace("FAMILY", family) for glob in globs]
    return [name for name in kernels if any(fnmatchcase(name, glob) for glob in wanted)]
