"""The table of which case launches which kernel, held against the suites and the kernels."""

import pytest

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.profile.kernels import launched
from kvbench_kernels.catalogue import variants
from kvbench_suites import OPERATIONS, SUITES

KERNELS = [each.name for each in variants()]


def of(name: str, **params: int | str) -> list[str]:
    (operation,) = (each for each in OPERATIONS if each.name == name)
    return launched(operation.case(params), KERNELS)


def test_a_copy_by_a_kernel_launches_the_copy_kernel_and_one_by_the_engine_none() -> None:
    assert "copy_contiguous" in of("hbm.copy", block_bytes=4096, engine="triton")
    assert of("hbm.copy", block_bytes=4096, engine="memcpy") == []


def test_gather_and_scatter_are_not_mixed_up() -> None:
    sizes = {"block_bytes": 65536, "page_bytes": 4096}
    assert of("hbm.gather", **sizes) == ["gather_pages"]
    assert of("hbm.scatter", **sizes) == ["scatter_pages"]


@pytest.mark.parametrize(
    ("format_", "expected"),
    [
        ("raw", {"gather_pages"}),
        ("fp8-head", {"gather_quantise_fp8"}),
        ("int4-64", {"gather_pages", "quantise_int4"}),
    ],
)
def test_on_the_way_to_host_memory_the_format_decides(format_: str, expected: set[str]) -> None:
    sizes = {"block_bytes": 65536, "page_bytes": 4096, "head_dim": 128}
    names = of("hbm.offload", **sizes, format=format_)
    assert {name.partition(".")[0] for name in names} == expected


def test_every_case_whose_path_is_a_kernel_names_one_and_no_other_does(
    llama: KVGeometry, machine: Machine
) -> None:
    for suite in SUITES:
        for each in suite.build(llama, machine):
            on_the_way = each.operation.name in {"hbm.offload", "hbm.restore"}  # told by no path
            by_kernel = on_the_way or "Triton" in each.operation.path(each.params)
            assert bool(launched(each, KERNELS)) == by_kernel, each.id
