"""The suites that ship: that they can be built for every model, and what their cases say."""

import importlib
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry, load_geometry
from kvbench.geometry.presets import presets
from kvbench.machine import (
    Cpu,
    Cuda,
    Gpu,
    Kvikio,
    Machine,
    Memory,
    NumaNode,
    Storage,
    shell_quoted,
)
from kvbench.measure.body import StepBody, StreamBody
from kvbench.measure.suite import Case, Kind, Operation, Suite
from kvbench.units import GIB, KIB, MIB
from kvbench_suites import OPERATIONS, SUITES, dram, everything, nvme
from kvbench_suites.paged import paged

DRIVE = Storage(
    directory="/data",
    filesystem="ext4",
    device_kind="nvme",
    direct_io=True,
    link_bytes_per_s=7.9e9,
    link_source="PCIe 4 x4",
)
MEMORY = Memory(bandwidth_bytes_per_s=80e9, bandwidth_source="2 channels")
GPU = Gpu(
    cuda_index=0,
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * GIB,
    hbm_bytes_per_s=3.35e12,
    hbm_source="2619 MHz x 5120 bit",
    pcie_bytes_per_s=63e9,
    pcie_source="PCIe 5 x16",
)
USABLE = Kvikio(package="kvikio-cu12", libcuda=True, usable=True)
MACHINES = {
    "nothing known": Machine(),
    "no GPU": Machine(
        cpu=Cpu(affinity_cores=2),
        numa_nodes=[NumaNode(index=0, cpus=[0, 1])],
        memory=MEMORY,
        storage=DRIVE,
        cuda=Cuda(nvml_error="NVML: Driver Not Loaded"),
        kvikio=Kvikio(reason="not installed", fix="pip install 'kvbench[cu12]'"),
    ),
    "one GPU": Machine(
        gpus=[GPU],
        cpu=Cpu(affinity_cores=16),
        numa_nodes=[NumaNode(index=0, cpus=list(range(16)))],
        memory=MEMORY,
        storage=DRIVE,
        kvikio=USABLE,
    ),
    "two nodes and a GPU": Machine(
        gpus=[GPU],
        cpu=Cpu(affinity_cores=8),
        numa_nodes=[
            NumaNode(index=0, cpus=[0, 1, 2, 3]),
            NumaNode(index=1, cpus=[4, 5, 6, 7]),
        ],
        memory=MEMORY,
        storage=DRIVE,
        kvikio=USABLE,
    ),
    "a node without cores": Machine(
        cpu=Cpu(affinity_cores=4),
        numa_nodes=[NumaNode(index=0, cpus=[0, 1, 2, 3]), NumaNode(index=2, cpus=[])],
        memory=Memory(bandwidth_reason="dmidecode needs root"),
        storage=Storage(filesystem="tmpfs", device_kind="memory", link_reason="memory has none"),
    ),
}
# A latent, sliding windows beside full layers, chunks, a recurrent state, an indexer, odd sizes.
UNUSUAL = (
    *("deepseek-v3", "deepseek-v3.2", "gpt-oss-20b", "gemma-3-27b", "llama-4-scout"),
    *("mistral-7b-v0.1", "qwen3-next-80b-a3b"),
)

each_suite = pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
each_machine = pytest.mark.parametrize("name", MACHINES)
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def geometries() -> list[KVGeometry]:
    return [load_geometry(name) for name in presets()]


def every_case(suite: Suite, machine: Machine, geometries: list[KVGeometry]) -> Iterator[Case]:
    for geometry in geometries:
        yield from suite.build(geometry, machine)


def test_the_unusual_models_are_presets() -> None:
    assert set(UNUSUAL) <= set(presets())


# ---------------------------------------------------------------- every suite


@each_suite
@each_machine
def test_a_suite_can_be_built_for_every_model_and_no_two_cases_share_an_id(
    suite: Suite, name: str, geometries: list[KVGeometry]
) -> None:
    for geometry in geometries:
        cases = suite.build(geometry, MACHINES[name])
        ids = [case.id for case in cases]
        assert cases, geometry.name
        assert len(set(ids)) == len(ids), geometry.name
        definitions = {case.definition_hash for case in cases}
        assert len(definitions) == len(cases), geometry.name


@each_suite
@pytest.mark.parametrize("block_size", [1, 64, 128])
def test_a_suite_can_be_built_for_other_types_block_sizes_and_ranks(
    suite: Suite, block_size: int
) -> None:
    built = 0
    for name, dtype, ranks in itertools.product(
        ("llama-3.1-8b", *UNUSUAL), ("fp8", "int8", "int4"), (1, 2, 8)
    ):
        try:
            geometry = load_geometry(
                name, cache_dtype=dtype, block_size=block_size, tensor_parallel=ranks
            )
        except UsageError:
            continue  # a model that cannot be cached so, or not be shared by so many
        cases = suite.build(geometry, MACHINES["one GPU"])
        assert len({case.id for case in cases}) == len(cases), (name, dtype, ranks)
        built += 1
    assert built > 40


@each_suite
def test_an_id_fits_a_line_of_a_terminal_and_a_shell_needs_no_quotes(
    suite: Suite, geometries: list[KVGeometry]
) -> None:
    for machine in MACHINES.values():
        for case in every_case(suite, machine, geometries):
            alone = replace(case, beside=None)
            assert len(alone.id) <= 66, alone.id  # a relayout names two layouts
            assert set(alone.id) <= set(
                "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789./-_"
            ), alone.id
            assert case.id.startswith(f"{case.operation.name}/")
            if case.beside is not None:
                assert case.id == f"{alone.id}+{case.beside.id}"
                assert shell_quoted(case.id) == case.id


def check_what_it_says(case: Case, machine: Machine) -> None:
    unmet = case.operation.unmet(case.params, machine)
    rate, source = case.operation.limit(case.params, machine)
    path = case.operation.path(case.params)
    for text in (unmet, source, path):
        assert text is None or (text.strip() == text != "" and "\n" not in text), case.id
        assert text is None or "None" not in text, case.id
    assert rate is None or rate > 0
    if case.operation.tier == "hbm" and not machine.has_gpu:
        assert rate is None, case.id
        assert unmet is not None, case.id


@each_suite
@pytest.mark.parametrize("name", [name for name in MACHINES if name != "nothing known"])
def test_each_case_says_of_a_machine_what_is_unmet_its_limit_and_its_path(
    suite: Suite, name: str, geometries: list[KVGeometry]
) -> None:
    for case in every_case(suite, MACHINES[name], geometries[::4]):
        check_what_it_says(case, MACHINES[name])


def test_each_case_says_it_of_this_very_machine(machine: Machine, llama: KVGeometry) -> None:
    for case in everything.FULL.build(llama, machine):
        check_what_it_says(case, machine)


@each_suite
def test_the_plan_of_a_suite_has_processes_and_time(suite: Suite) -> None:
    assert suite.question.strip()
    assert suite.plan.processes >= 3
    assert 0 < suite.plan.min_time_s <= suite.plan.time_limit_s


def test_suites_and_operations_have_names_of_their_own() -> None:
    assert len({suite.name for suite in SUITES}) == len(SUITES)
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


# ---------------------------------------------------------------- every operation


@each_operation
def test_the_body_that_an_operation_names_exists_and_is_of_the_kind_it_says(
    operation: Operation,
) -> None:
    module, _, name = operation.body.partition(":")
    body = getattr(importlib.import_module(module), name)()
    assert isinstance(body, StreamBody if operation.stream else StepBody)
    assert isinstance(body, StreamBody) is operation.stream


@each_operation
def test_every_parameter_says_what_it_means_and_its_default_is_allowed(
    operation: Operation,
) -> None:
    for parameter in operation.parameters:
        assert parameter.meaning
        assert parameter.expected
        assert bool(parameter.choices) is (parameter.kind is Kind.CHOICE)
        if parameter.default is not None:
            assert parameter.parse(parameter.default) == parameter.default


@each_operation
def test_every_parameter_that_makes_another_case_shows_in_the_id(
    operation: Operation, geometries: list[KVGeometry]
) -> None:
    # Reports are compared and resumed by id: two cases of one id would be taken for one.
    seen: dict[str, set[tuple[object, ...]]] = {}
    for suite, machine in itertools.product(SUITES, MACHINES.values()):
        for case in every_case(suite, machine, geometries[:3]):
            if case.operation is operation:
                seen.setdefault(case.id, set()).add(tuple(case.params.items()))
    assert seen
    assert {case_id: points for case_id, points in seen.items() if len(points) > 1} == {}


# ---------------------------------------------------------------- what each suite asks


@each_machine
def test_quick_and_ci_look_at_every_tier_and_full_is_all_the_suites_of_one_tier(
    name: str, llama: KVGeometry
) -> None:
    machine = MACHINES[name]

    def cases(suite: Suite) -> set[str]:
        return {case.id for case in suite.build(llama, machine)}

    for suite in (everything.QUICK, everything.CI, everything.FULL):
        tiers = {case.operation.tier for case in suite.build(llama, machine)}
        assert tiers == {"hbm", "dram", "nvme"}
    single = [suite for suite in SUITES if suite.name in {"hbm", "dram", "nvme"}]
    assert cases(everything.FULL) == set().union(*(cases(suite) for suite in single))


@each_machine
def test_quick_has_at_most_two_minutes_of_cases_that_can_run_on_two_cores(
    name: str, geometries: list[KVGeometry]
) -> None:
    plan = everything.QUICK.plan
    for geometry in geometries:
        cases = everything.QUICK.build(geometry, MACHINES[name])
        runnable = [c for c in cases if c.operation.unmet(c.params, MACHINES[name]) is None]
        seconds = len(runnable) * plan.processes * (plan.warmup_s + plan.time_limit_s)
        assert seconds <= 120 * 0.75, "the rest is start-up, data and checks"


def test_block_sizes_on_the_drive_are_whole_sectors_and_hold_the_models_block(
    geometries: list[KVGeometry],
) -> None:
    for geometry in geometries:
        sizes = nvme.block_sizes(geometry)
        assert sorted(set(sizes)) == list(sizes)
        assert {256 * KIB, MIB, 4 * MIB} <= set(sizes)
        assert nvme.whole_sectors(geometry.block_bytes) in sizes
        for suite in (everything.QUICK, everything.CI, nvme.SUITE):
            cases = suite.build(geometry, MACHINES["no GPU"])
            stored = [int(c.params["block_bytes"]) for c in cases if c.operation.tier == "nvme"]
            assert stored
            assert all(size % 4096 == 0 for size in stored)
            assert nvme.whole_sectors(geometry.block_bytes) in stored


@pytest.mark.parametrize(
    ("size_bytes", "padded"), [(1, 4096), (4096, 4096), (4097, 8192), (18432, 20480)]
)
def test_a_block_is_padded_up_to_whole_sectors_and_no_further(size_bytes: int, padded: int) -> None:
    assert nvme.whole_sectors(size_bytes) == padded


def test_the_drive_is_asked_at_every_depth_by_both_engines_in_both_directions(
    llama: KVGeometry,
) -> None:
    cases = nvme.SUITE.build(llama, MACHINES["one GPU"])
    seen = {
        (c.operation.name, c.params["engine"], c.params["memory"], c.params["queue_depth"])
        for c in cases
    }
    engines = (("posix", "host"), ("kvikio", "device"))
    assert seen == {
        (operation, *engine, depth)
        for operation in ("nvme.read", "nvme.write")
        for engine in engines
        for depth in (1, 4, 16, 32)
    }
    durable = [c.id for c in cases if c.params.get("fsync")]
    assert len(durable) == 4
    assert all(case_id.endswith("/fsync") for case_id in durable)


def test_without_a_gpu_kvikio_reads_into_host_memory(llama: KVGeometry) -> None:
    cases = nvme.SUITE.build(llama, MACHINES["no GPU"])
    assert {c.params["memory"] for c in cases if c.params["engine"] == "kvikio"} == {"host"}


def test_host_memory_copies_the_models_block_and_a_range_beyond_any_cache(
    geometries: list[KVGeometry],
) -> None:
    for geometry in geometries:
        cases = dram.SUITE.build(geometry, MACHINES["no GPU"])
        copied = {c.params["block_bytes"] for c in cases if c.operation is dram.COPY}
        assert copied == {geometry.block_bytes, 256 * MIB}


def test_pages_gathered_in_host_memory_make_whole_blocks(geometries: list[KVGeometry]) -> None:
    for geometry in geometries:
        params = paged(geometry)
        assert int(params["block_bytes"]) % int(params["page_bytes"]) == 0
        # A block of several kinds of page is mostly the first; the rest is under a quarter of it.
        assert 0.75 * geometry.block_bytes <= int(params["block_bytes"]) <= geometry.block_bytes


def test_locked_memory_is_pinned_by_cuda_only_where_there_is_a_gpu(llama: KVGeometry) -> None:
    def kinds(name: str) -> set[object]:
        return {case.params["memory"] for case in dram.SUITE.build(llama, MACHINES[name])}

    assert kinds("no GPU") == {"pageable", "locked"}
    assert kinds("one GPU") == {"pageable", "pinned"}
    pinned = dram.COPY.case({"block_bytes": MIB, "threads": 1, "memory": "pinned"})
    assert dram.COPY.unmet(pinned.params, MACHINES["one GPU"]) is None
    assert dram.COPY.unmet(pinned.params, MACHINES["no GPU"]) == (
        "memory is pinned by CUDA, and there is no CUDA device: NVML: Driver Not Loaded"
    )


def test_two_nodes_are_copied_between_in_all_four_ways_and_one_node_in_none(
    llama: KVGeometry,
) -> None:
    def ways(name: str) -> set[tuple[object, object, object]]:
        return {
            (case.params["cpu_node"], case.params["memory_node"], case.params["threads"])
            for case in dram.SUITE.build(llama, MACHINES[name])
            if case.params["cpu_node"] != dram.ANY_NODE
        }

    assert ways("two nodes and a GPU") == {(0, 0, 4), (0, 1, 4), (1, 0, 4), (1, 1, 4)}
    assert ways("one GPU") == set()
    # Memory without cores is reached from the cores there are.
    assert ways("a node without cores") == {(0, 0, 4), (0, 2, 4)}


def test_a_core_or_a_node_that_is_not_there_is_unmet_by_name() -> None:
    machine = MACHINES["two nodes and a GPU"]
    least = {"block_bytes": MIB, "threads": 1}
    for params, reason in (
        ({"threads": 9}, "9 threads need as many cores and this process may use 8"),
        ({"cpu_node": 2}, "there is no NUMA node 2"),
        ({"memory_node": 3}, "there is no NUMA node 3"),
        ({"threads": 8, "cpu_node": 0, "memory_node": 1}, None),
    ):
        case = dram.COPY.case({**least, **params})
        assert dram.COPY.unmet(case.params, machine) == reason


@pytest.mark.parametrize(
    ("machine", "params", "reason"),
    [
        (Machine(), {}, "no directory to measure: name one with --dir"),
        (MACHINES["no GPU"], {}, None),
        (
            MACHINES["a node without cores"],
            {},
            "tmpfs is memory, not a drive: name a directory on one with --dir",
        ),
        (
            MACHINES["no GPU"],
            {"engine": "kvikio", "memory": "device"},
            "no CUDA device: NVML: Driver Not Loaded",
        ),
        (
            MACHINES["no GPU"],
            {"engine": "kvikio"},
            "KvikIO: not installed; pip install 'kvbench[cu12]'",
        ),
        (MACHINES["one GPU"], {"engine": "kvikio", "memory": "device"}, None),
    ],
)
def test_what_a_machine_lacks_for_the_drive_is_said_with_what_to_do(
    machine: Machine, params: dict[str, str], reason: str | None
) -> None:
    case = nvme.READ.case({"block_bytes": MIB, "queue_depth": 1, **params})
    assert nvme.READ.unmet(case.params, machine) == reason


@pytest.mark.parametrize(
    "params",
    [
        {"memory": "device"},
        {"memory": "device", "engine": "posix"},
        {"engine": "kvikio", "fsync": True},
    ],
)
def test_what_no_engine_can_do_is_refused_and_never_skipped(params: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="only engine = "):
        nvme.WRITE.case({"block_bytes": MIB, "queue_depth": 1, **params})


def test_limits_come_from_the_machine_and_a_copy_may_use_half_of_it() -> None:
    machine = MACHINES["no GPU"]
    copy = dram.COPY.case({"block_bytes": MIB, "threads": 1})
    rate, source = dram.COPY.limit(copy.params, machine)
    assert rate == 40e9
    assert source == "2 channels; a copy reads and writes: ÷ 2"
    read = nvme.READ.case({"block_bytes": MIB, "queue_depth": 1})
    assert nvme.READ.limit(read.params, machine) == (7.9e9, "PCIe 4 x4")


def test_a_limit_that_is_not_known_says_how_to_give_it() -> None:
    machine = MACHINES["a node without cores"]
    copy = dram.COPY.case({"block_bytes": MIB, "threads": 1})
    rate, source = dram.COPY.limit(copy.params, machine)
    assert rate is None
    assert source == "dmidecode needs root; if you know it, say --limit dram=20GB/s"
    read = nvme.READ.case({"block_bytes": MIB, "queue_depth": 1})
    rate, source = nvme.READ.limit(read.params, Machine())
    assert rate is None
    assert source == "the link is not known here; if you know it, say --limit nvme=7GB/s"
