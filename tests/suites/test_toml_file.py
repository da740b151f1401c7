import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry, load_geometry
from kvbench.machine import Machine
from kvbench.measure.suite import Plan, Suite
from kvbench.units import KIB, MIB
from kvbench_suites import OPERATIONS, SUITES, find_suite
from kvbench_suites.toml_file import load_suite

READ = '[[case]]\noperation = "nvme.read"\n'
ONE = f'{READ}block_bytes = "256KiB"\nqueue_depth = 1\n'

Load = Callable[[str], Suite]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


@pytest.fixture
def load(path: Path) -> Load:
    def from_text(text: str) -> Suite:
        path.write_text(text, encoding="utf-8")
        return load_suite(path, OPERATIONS)

    return from_text


def ids(suite: Suite, geometry: KVGeometry) -> list[str]:
    return [case.id for case in suite.build(geometry, Machine())]


# ---------------------------------------------------------------- what a file can say


def test_a_file_with_one_case_is_a_suite_named_after_it(load: Load, llama: KVGeometry) -> None:
    suite = load(ONE)
    assert suite.name == "mine"
    assert suite.question == "the cases of mine.toml"
    assert suite.plan == Plan()
    assert ids(suite, llama) == ["nvme.read/posix/256KiB/qd1/random"]


def test_a_file_can_set_its_name_its_question_and_how_much_is_measured(load: Load) -> None:
    suite = load(
        'name = "deep"\nquestion = "Does it keep up?"\nprocesses = 5\ntime_limit = 2.5\n'
        f'warmup = 1\ntarget = 0.01\ndata = "2GB"\n{ONE}'
    )
    assert (suite.name, suite.question) == ("deep", "Does it keep up?")
    assert suite.plan == Plan(
        processes=5,
        time_limit_s=2.5,
        warmup_s=1.0,
        target_half_width=0.01,
        data_bytes=2 * 10**9,
    )


def test_lists_are_swept_and_the_last_one_varies_fastest(load: Load, llama: KVGeometry) -> None:
    suite = load(
        f'{READ}order = ["sequential", "random"]\nblock_bytes = ["256KiB", "1MiB"]\n'
        "queue_depth = [1, 16]\n"
    )
    assert ids(suite, llama) == [
        "nvme.read/posix/256KiB/qd1/sequential",
        "nvme.read/posix/256KiB/qd16/sequential",
        "nvme.read/posix/1MiB/qd1/sequential",
        "nvme.read/posix/1MiB/qd16/sequential",
        "nvme.read/posix/256KiB/qd1/random",
        "nvme.read/posix/256KiB/qd16/random",
        "nvme.read/posix/1MiB/qd1/random",
        "nvme.read/posix/1MiB/qd16/random",
    ]


def test_cases_come_in_the_order_of_the_file(load: Load, llama: KVGeometry) -> None:
    suite = load(
        '[[case]]\noperation = "dram.copy"\nblock_bytes = "1MiB"\nthreads = [2, 1]\n' + ONE
    )
    assert ids(suite, llama) == [
        "dram.copy/pageable/1MiB/t2",
        "dram.copy/pageable/1MiB/t1",
        "nvme.read/posix/256KiB/qd1/random",
    ]


def test_block_layer_and_page_are_the_sizes_of_whichever_model_is_measured(
    load: Load, llama: KVGeometry
) -> None:
    suite = load(
        '[[case]]\noperation = "dram.copy"\nblock_bytes = ["block", "layer", "page", 12345]\n'
        "threads = 1\n"
    )
    for geometry in (llama, load_geometry("deepseek-v3"), load_geometry("qwen2.5-7b")):
        found = [case.params["block_bytes"] for case in suite.build(geometry, Machine())]
        wanted = [geometry.block_bytes, geometry.layer_block_bytes, geometry.page_bytes, 12345]
        assert found == list(dict.fromkeys(wanted))


def test_a_models_size_is_padded_to_whole_sectors_where_the_drive_needs_it(load: Load) -> None:
    odd = load_geometry("deepseek-v3")  # 18,432 B a layer, four and a half sectors
    assert odd.layer_block_bytes % 4096
    assert odd.block_bytes % 4096
    suite = load(f'{READ}block_bytes = ["block", "layer"]\nqueue_depth = 1\n')
    found = [int(case.params["block_bytes"]) for case in suite.build(odd, Machine())]
    for size, bare in zip(found, (odd.block_bytes, odd.layer_block_bytes), strict=True):
        assert size % 4096 == 0
        assert 0 < size - bare < 4096


def test_each_case_can_have_a_time_limit_of_its_own(load: Load, llama: KVGeometry) -> None:
    suite = load(f"{ONE}time_limit = 0.5\n{ONE.replace('1', '16')}")
    first, second = suite.build(llama, Machine())
    assert (first.time_limit_s, second.time_limit_s) == (0.5, None)
    assert "time_limit" not in first.params


def test_a_case_that_is_named_twice_is_measured_once(load: Load, llama: KVGeometry) -> None:
    suite = load(f'{ONE}{READ}block_bytes = ["256KiB", 262144]\nqueue_depth = [1, 1, 4]\n')
    assert ids(suite, llama) == [
        "nvme.read/posix/256KiB/qd1/random",
        "nvme.read/posix/256KiB/qd4/random",
    ]


def test_sizes_that_print_alike_are_still_two_cases(load: Load, llama: KVGeometry) -> None:
    sizes = (256 * MIB, 256 * MIB + 4 * KIB)
    suite = load(f"{READ}block_bytes = [{sizes[0]}, {sizes[1]}]\nqueue_depth = 1\n")
    found = suite.build(llama, Machine())
    assert [case.params["block_bytes"] for case in found] == list(sizes)


def test_a_path_that_ends_in_toml_is_found_as_a_suite(path: Path, llama: KVGeometry) -> None:
    path.write_text(ONE, encoding="utf-8")
    assert ids(find_suite(str(path)), llama) == ["nvme.read/posix/256KiB/qd1/random"]


def test_every_shipped_suite_is_found_by_its_name_and_any_other_name_lists_them() -> None:
    for suite in SUITES:
        assert find_suite(suite.name) is suite
    with pytest.raises(UsageError) as raised:
        find_suite("quik")
    names = ", ".join(suite.name for suite in SUITES)
    assert str(raised.value) == (
        f"no suite named 'quik'; there are: {names}, or a path ending in .toml"
    )


def test_a_case_can_be_measured_beside_another_one_and_both_are_swept(
    load: Load, llama: KVGeometry
) -> None:
    suite = load(
        f'{READ}block_bytes = "256KiB"\nqueue_depth = [1, 4]\ntime_limit = 2\n'
        'beside = { operation = "dram.copy", block_bytes = ["block", "1MiB"], threads = 1 }\n'
    )
    cases = suite.build(llama, Machine())
    assert [case.id for case in cases] == [
        f"nvme.read/posix/256KiB/qd{depth}/random+dram.copy/pageable/{size}/t1"
        for depth in (1, 4)
        for size in ("2MiB", "1MiB")
    ]
    assert {case.time_limit_s for case in cases} == {2.0}
    load_case = cases[0].beside
    assert load_case is not None
    assert load_case.params["block_bytes"] == llama.block_bytes
    assert "beside" not in cases[0].params


def test_a_load_can_be_a_table_of_its_own(load: Load, llama: KVGeometry) -> None:
    suite = load(f'{ONE}[case.beside]\noperation = "dram.copy"\nblock_bytes = 4096\nthreads = 1\n')
    assert ids(suite, llama) == [
        "nvme.read/posix/256KiB/qd1/random+dram.copy/pageable/4KiB/t1",
    ]


# ---------------------------------------------------------------- mistakes seen when it is read

SIZES = "expected a size such as 256KiB, at least 4096, a multiple of 4096"
MODEL = "or block, layer, page: the model's"
DEPTHS = "expected a whole number, at least 1, at most 1024"
NUMBER = "expected a number above 0, at most 86400"
SHARE = "expected a number above 0, at most 1"
NAMES = "expected one of " + ", ".join(operation.name for operation in OPERATIONS)
TOP = "allowed are: name, question, case, processes, time_limit, warmup, data, target"
KEYS = "allowed are: block_bytes, queue_depth, engine, memory, order"
DATA = "expected a size such as 256KiB, at least 1048576"
PROCESSES = "expected a whole number, at least 1, at most 1000"
NO_CASE = "key 'case': expected at least one [[case]] table"


def read(block_bytes: str = '"256KiB"', queue_depth: str = "1", more: str = "") -> str:
    return f"{READ}block_bytes = {block_bytes}\nqueue_depth = {queue_depth}\n{more}"


MISTAKES: dict[str, tuple[str, str]] = {
    # the file
    "broken TOML": ("[[case", " is not TOML: "),
    "a key twice": (f"{ONE}queue_depth = 2\n", " is not TOML: "),
    "empty": ("", f": {NO_CASE}"),
    "no case": ('name = "x"', f": {NO_CASE}"),
    "no case in the list": ("case = []", f": {NO_CASE}"),
    "one table where a list is meant": (ONE.replace("[[case]]", "[case]"), f": {NO_CASE}"),
    "a case that is no table": ("case = [1]", ": case 1: expected a table [[case]]"),
    "a second case that is none": (
        'case = [{operation = "nvme.read", block_bytes = "block", queue_depth = 1}, "x"]',
        ": case 2: expected a table [[case]]",
    ),
    # keys at the top
    "unknown key": (f"nam = 1\n{ONE}", f": unknown key 'nam'; {TOP}"),
    "name that is no text": (f"name = 3\n{ONE}", ": key 'name' = 3: expected text"),
    "empty name": (f'name = ""\n{ONE}', ": key 'name' = '': expected text"),
    "question that is no text": (f"question = []\n{ONE}", ": key 'question' = []: expected text"),
    "processes as text": (f'processes = "3"\n{ONE}', f": key processes = '3': {PROCESSES}"),
    "no processes": (f"processes = 0\n{ONE}", f": key processes = 0: {PROCESSES}"),
    "processes without end": (f"processes = 5000\n{ONE}", f": key processes = 5000: {PROCESSES}"),
    "processes in part": (f"processes = 1.5\n{ONE}", f": key processes = 1.5: {PROCESSES}"),
    "processes true": (f"processes = true\n{ONE}", f": key processes = True: {PROCESSES}"),
    "time as text": (f'time_limit = "2s"\n{ONE}', f": key 'time_limit' = '2s': {NUMBER}"),
    "no time": (f"time_limit = 0\n{ONE}", f": key 'time_limit' = 0: {NUMBER}"),
    "endless time": (f"time_limit = inf\n{ONE}", f": key 'time_limit' = inf: {NUMBER}"),
    "no number": (f"warmup = nan\n{ONE}", f": key 'warmup' = nan: {NUMBER}"),
    "time before now": (f"warmup = -1\n{ONE}", f": key 'warmup' = -1: {NUMBER}"),
    "target true": (f"target = true\n{ONE}", f": key 'target' = True: {SHARE}"),
    "data that is no size": (f'data = "much"\n{ONE}', f": key data = 'much': {DATA}"),
    "data in a list": (f'data = ["1GiB"]\n{ONE}', f": key data = ['1GiB']: {DATA}"),
    "hardly any data": (f"data = 4096\n{ONE}", f": key data = 4096: {DATA}"),
    # a case
    "no operation": ("[[case]]\nqueue_depth = 1\n", f": case 1: key 'operation' = None: {NAMES}"),
    "unknown operation": (
        '[[case]]\noperation = "nvme.raed"\n',
        f": case 1: key 'operation' = 'nvme.raed': {NAMES}",
    ),
    "operations in a list": (
        '[[case]]\noperation = ["nvme.read"]\n',
        f": case 1: key 'operation' = ['nvme.read']: {NAMES}",
    ),
    "unknown parameter": (
        read(more="depth = 4\n"),
        f": case 1 (nvme.read): unknown key 'depth'; {KEYS}",
    ),
    "a parameter of another operation": (
        read(more="fsync = true\n"),
        f": case 1 (nvme.read): unknown key 'fsync'; {KEYS}",
    ),
    "size that is none": (
        read(block_bytes='"12 parsecs"'),
        f": case 1: key block_bytes = '12 parsecs': {SIZES}, {MODEL}",
    ),
    "a word that is no model's size": (
        read(block_bytes='"token"'),
        f": case 1: key block_bytes = 'token': {SIZES}, {MODEL}",
    ),
    "size that O_DIRECT cannot move": (
        read(block_bytes='"5KiB"'),
        f": case 1: key block_bytes = '5KiB': {SIZES}, {MODEL}",
    ),
    "size in a list in a list": (
        read(block_bytes='[["block"]]'),
        f": case 1: key block_bytes = ['block']: {SIZES}, {MODEL}",
    ),
    "size in a table": (
        read(block_bytes="{from = 1}"),
        f": case 1: key block_bytes = {{'from': 1}}: {SIZES}, {MODEL}",
    ),
    "number as text": (read(queue_depth='"16"'), f": case 1: key queue_depth = '16': {DEPTHS}"),
    "number with a point": (read(queue_depth="1.0"), f": case 1: key queue_depth = 1.0: {DEPTHS}"),
    "out of bounds": (read(queue_depth="[1, 4096]"), f": case 1: key queue_depth = 4096: {DEPTHS}"),
    "a model's size for a count": (
        read(queue_depth='"block"'),
        f": case 1: key queue_depth = 'block': {DEPTHS}",
    ),
    "nothing to sweep": (
        read(queue_depth="[]"),
        ": case 1: key 'queue_depth' is an empty list: give it a value",
    ),
    "unknown choice": (
        read(more='order = "shuffled"\n'),
        ": case 1: key order = 'shuffled': expected one of sequential, random",
    ),
    "flag as text": (
        read(more='fsync = "yes"\n').replace("nvme.read", "nvme.write"),
        ": case 1: key fsync = 'yes': expected true or false",
    ),
    "time limit of a case": (
        read(more="time_limit = -1\n"),
        f": case 1: key 'time_limit' = -1: {NUMBER}",
    ),
    "a load that is no table": (
        read(more='beside = "dram.copy"\n'),
        ': case 1: beside: expected a table { operation = "dram.copy", … }',
    ),
    "a load without an operation": (
        read(more="beside = { threads = 1 }\n"),
        f": case 1: beside: key 'operation' = None: {NAMES}",
    ),
    "a load of an unknown operation": (
        read(more='beside = { operation = "dram.cpy" }\n'),
        f": case 1: beside: key 'operation' = 'dram.cpy': {NAMES}",
    ),
    "an unknown parameter of a load": (
        read(more='beside = { operation = "nvme.write", fsyn = true }\n'),
        f": case 1: beside (nvme.write): unknown key 'fsyn'; {KEYS}, fsync",
    ),
    "a wrong parameter of a load": (
        read(more='beside = { operation = "nvme.write", queue_depth = 0 }\n'),
        f": case 1: beside: key queue_depth = 0: {DEPTHS}",
    ),
    "a time limit of a load": (
        read(more='beside = { operation = "nvme.write", time_limit = 1 }\n'),
        f": case 1: beside (nvme.write): unknown key 'time_limit'; {KEYS}, fsync",
    ),
    "a load of a load": (
        read(more='beside = { operation = "nvme.write", beside = {} }\n'),
        f": case 1: beside (nvme.write): unknown key 'beside'; {KEYS}, fsync",
    ),
    "a mistake in the second case": (
        ONE + read(queue_depth="0"),
        f": case 2: key queue_depth = 0: {DEPTHS}",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_the_file_the_key_and_what_is_allowed_there(
    load: Load, path: Path, mistake: str
) -> None:
    text, said = MISTAKES[mistake]
    with pytest.raises(UsageError) as raised:
        load(text)
    message = str(raised.value)
    assert message.startswith(f"{path}{said}"), message
    assert message == f"{path}{said}" or said.endswith(": "), "nothing that is not expected here"
    assert "\n" not in message


def test_a_file_that_is_not_utf_8_is_refused(path: Path) -> None:
    path.write_bytes('name = "größe"\n'.encode("latin-1") + ONE.encode())
    with pytest.raises(UsageError, match="is not TOML: 'utf-8' codec"):
        load_suite(path, OPERATIONS)


def test_a_file_that_cannot_be_read_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        find_suite(str(tmp_path / "missing.toml"))
    assert (
        str(raised.value) == f"cannot read suite {tmp_path}/missing.toml: No such file or directory"
    )
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"cannot read suite .*: Is a directory"):
        find_suite(str(tmp_path / "folder.toml"))


# ---------------------------------------------------------------- mistakes that need the model


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            f'{READ}block_bytes = "block"\n',
            "case 1: nvme.read needs queue_depth: a whole number, at least 1, at most 1024",
        ),
        (
            read(more='memory = "device"\n'),
            "case 1: nvme.read: memory = 'device': only engine = 'kvikio' reaches device memory",
        ),
        (
            '[[case]]\noperation = "dram.gather"\nblock_bytes = "block"\npage_bytes = 3000\n'
            "threads = 1\n",
            "case 1: dram.gather: block_bytes = 2097152 is no multiple of page_bytes = 3000",
        ),
        (
            read(more='beside = { operation = "dram.copy", block_bytes = "block" }\n'),
            "case 1: beside: dram.copy needs threads: a whole number, at least 1",
        ),
        (
            read(
                more='beside = { operation = "nvme.read", block_bytes = 4096, queue_depth = 1 }\n'
            ),
            "case 1: nvme.read beside nvme.read: both would use one data file and the same "
            "counters of the drive; name another operation as load",
        ),
        (
            read(
                queue_depth=f"[{', '.join(map(str, range(1, 1001)))}]",
                more='beside = { operation = "dram.copy", block_bytes = "block", '
                "threads = [1, 2, 3, 4, 5, 6] }\n",
            ),
            "case 1: 6000 combinations, at most 5000: sweep less",
        ),
        (
            f"{READ}block_bytes = 4096\nqueue_depth = [{', '.join(map(str, range(1, 1001)))}]\n"
            'order = ["random", "sequential"]\nengine = ["posix", "kvikio"]\n'
            'memory = ["host", "device"]\n',
            "case 1: 8000 combinations, at most 5000: sweep less",
        ),
    ],
)
def test_what_only_the_whole_case_shows_is_refused_when_it_is_built(
    load: Load, path: Path, llama: KVGeometry, text: str, said: str
) -> None:
    suite = load(text)
    with pytest.raises(UsageError) as raised:
        suite.build(llama, Machine())
    assert str(raised.value) == f"{path}: {said}"


def test_too_many_cases_in_all_are_refused(load: Load, path: Path, llama: KVGeometry) -> None:
    depths = ", ".join(map(str, range(1, 1001)))
    each = '[[case]]\noperation = "nvme.read"\nblock_bytes = {}\nqueue_depth = [{}]\n'
    suite = load("".join(each.format(4096 * n, depths) for n in range(1, 7)))
    with pytest.raises(UsageError) as raised:
        suite.build(llama, Machine())
    assert str(raised.value) == f"{path}: 6000 cases, at most 5000: sweep less"


def test_a_sweep_of_millions_is_refused_before_it_is_laid_out(
    load: Load, llama: KVGeometry
) -> None:
    many = ", ".join(map(str, range(1, 4001)))
    suite = load(f'[[case]]\noperation = "dram.copy"\nblock_bytes = [{many}]\nthreads = [{many}]\n')
    began_s = time.process_time()
    with pytest.raises(UsageError, match="16000000 combinations"):
        suite.build(llama, Machine())
    assert time.process_time() - began_s < 0.5


def test_exactly_the_most_cases_are_allowed(load: Load, llama: KVGeometry) -> None:
    sizes = ", ".join(str(4096 * n) for n in range(1, 6))
    depths = ", ".join(map(str, range(1, 1001)))
    suite = load(f"{READ}block_bytes = [{sizes}]\nqueue_depth = [{depths}]\n")
    assert len(suite.build(llama, Machine())) == 5000


def test_one_case_with_two_time_limits_is_refused(tmp_path: Path, llama: KVGeometry) -> None:
    path = tmp_path / "twice.toml"
    table = '[[case]]\noperation = "dram.copy"\nblock_bytes = "1MiB"\nthreads = 1\n'
    path.write_text(f"{table}time_limit = 1.0\n{table}time_limit = 2.0\n")
    suite = load_suite(path, OPERATIONS)
    with pytest.raises(UsageError, match="two different time limits"):
        suite.build(llama, Machine())
