"""Holders that run already: those that Ray started on other nodes, and those with certificates.

Ray's own local cluster: two node processes on this machine, the second one at an address of its
own, so that its holders are where another machine's would be.
"""

import gc
import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import pytest

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import Row
from kvbench.measure.runner import Setting
from kvbench.measure.suite import Value
from kvbench.peer.certs import make_ca, make_certificate
from kvbench_suites.peer import GET
from kvbench_suites.peer_bodies import Get
from kvbench_suites.peer_holder import Order, Said
from kvbench_suites.peer_processes import HolderProcess, peers_of, running
from kvbench_suites.peer_ray import LOOPBACK, Node, host_for, spread
from tests.conftest import measure
from tests.suites.test_peer_bodies import BLOCK_BYTES, SIZES, context_of, is_gone

MISSING = "needs the extra ray: pip install 'kvbench[ray]'"
ROOT = Path(__file__).parents[2]
OTHER = "127.0.0.2"
BLOCKS = 32
GONE_S = 30.0
HERE = Node("a", "10.0.0.1")
CALLED = "from kvbench_suites.peer_ray import main; main()"
GOOD = ("--address", "127.0.0.1:1", "--block-bytes", "64KiB", "--blocks", "8", "-o", "peers")
quiet = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def certificate(folder: Path, name: str = "member") -> Path:
    """A folder with a certificate, of an authority of its own."""
    authority, member = folder / f"{name}-authority", folder / name
    make_ca(authority)
    make_certificate(member, ca=authority, hosts=[OTHER])
    return member


# ---------------------------------------------------------------- started by Ray


class Driver:
    """The command, with its standard input open."""

    def __init__(self, address: str, out: Path, *more: str) -> None:
        self.out = out
        self.errors = out.with_suffix(".errors")
        command = [sys.executable, "-m", "kvbench_suites.peer_ray", "--address", address]
        command += ["--holders", "2", "--block-bytes", str(BLOCK_BYTES), "--blocks", str(BLOCKS)]
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, "--seed", "99", "-o", str(out), *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def line(self) -> str:
        """The next that it says; empty at its end."""
        return cast("IO[str]", self.process.stdout).readline()

    def ended(self) -> int:
        """Its exit status."""
        return self.process.wait(GONE_S)

    def said_last(self) -> str:
        """Its last line on standard error; empty without one."""
        return ("", *self.errors.read_text().strip().splitlines())[-1]

    def pids(self) -> list[int]:
        """Of the holders that it named."""
        return [int(each.name.removeprefix("holder:")) for each in peers_of(running(self.out))]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            cast("IO[str]", pipe).close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    library = pytest.importorskip("ray.cluster_utils", reason=MISSING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "suites")]))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Later Rays also end a dead worker's processes: what is tested is that holders end so.
        patch.setenv("RAY_process_group_cleanup_enabled", "false")
        found = library.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        found.add_node(num_cpus=1, node_ip_address=OTHER)
        yield found
        found.shutdown()
    del found
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that Ray leaves open
        gc.collect()


@pytest.fixture
def drive_cluster(cluster: Any, tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def one(*more: str) -> Driver:
        drivers.append(Driver(cluster.address, tmp_path / "peers.jsonl", *more))
        return drivers[-1]

    yield one
    for each in drivers:
        each.close()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def goes(pid: int) -> bool:
    """Whether a process ends, waited for."""
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    readable, _, _ = select.select([watched], [], [], GONE_S)
    os.close(watched)
    return bool(readable)


def row_of(setting: Setting, file: Path, **params: Value) -> Row:
    row = measure(GET.case({"peers": str(file), **SIZES, **params}), setting)
    assert row.bytes_per_s is not None, row.reason
    return row


@quiet
@pytest.mark.parametrize("transport", ["tcp", "tcp+tls"])
def test_blocks_of_holders_that_ray_started_on_another_node_are_measured(
    drive_cluster: Callable[..., Driver], setting: Setting, tmp_path: Path, transport: str
) -> None:
    tls = str(certificate(tmp_path)) if transport == "tcp+tls" else None
    driver = drive_cluster(*(() if tls is None else ("--tls", tls)))
    told = driver.line()
    assert told == f"2 holders on {OTHER}: {driver.out}; Ctrl-C ends them\n", driver.said_last()
    peers = peers_of(running(driver.out))
    assert [each.endpoints["tcp"].split(":")[0] for each in peers] == [OTHER, OTHER]

    row = row_of(setting, driver.out, transport=transport, **({} if tls is None else {"tls": tls}))

    assert row.path_observed == f"{transport}, from dram"
    assert str(tmp_path) not in repr(row.params)  # a report names no path of this machine
    pids = driver.pids()
    if tls is None:
        cast("IO[str]", driver.process.stdin).close()
    else:
        driver.process.send_signal(signal.SIGTERM)
    assert driver.ended() == 0, driver.said_last()
    assert all(is_gone(pid) for pid in pids)


@quiet
def test_a_node_or_an_actor_that_dies_is_said_in_a_line_and_takes_its_holder_along(
    cluster: Any, drive_cluster: Callable[..., Driver]
) -> None:
    third = cluster.add_node(num_cpus=1)
    driver = drive_cluster()
    assert driver.line().startswith("2 holders on "), driver.said_last()
    found = dict(zip(driver.pids(), peers_of(running(driver.out)), strict=True))
    near, far = sorted(found, key=lambda pid: found[pid].endpoints["tcp"].startswith(OTHER))

    os.kill(far, signal.SIGSTOP)  # so it sees nothing end
    os.kill(parent_of(far), signal.SIGKILL)  # its worker
    said = driver.line()
    assert f" on {OTHER} is lost: " in said
    assert said.rstrip().endswith("its worker process has died")
    assert goes(far)
    assert not is_gone(near)
    cluster.remove_node(third, allow_graceful=False)
    assert "is lost: the actor's node was terminated unexpectedly" in driver.line()
    assert goes(near)
    assert driver.ended() == 2
    assert driver.said_last() == "peer_ray: no holder is left"


@quiet
def test_no_holder_outlives_a_driver_that_was_killed(
    drive_cluster: Callable[..., Driver],
) -> None:
    driver = drive_cluster()
    assert driver.line(), driver.said_last()
    pids = driver.pids()
    assert not any(is_gone(pid) for pid in pids)
    os.kill(pids[0], signal.SIGSTOP)  # so it sees nothing end
    driver.process.kill()
    assert all(goes(pid) for pid in pids)


@quiet
def test_a_holder_that_cannot_begin_on_its_node_says_why_in_one_line(
    drive_cluster: Callable[..., Driver], tmp_path: Path
) -> None:
    driver = drive_cluster("--tls", str(tmp_path / "none"))
    assert driver.line() == ""
    assert driver.ended() == 2
    said = driver.said_last()
    assert said.startswith(f"peer_ray: holder 1 on {OTHER}: a holder says: {tmp_path}/none/ca.pem")
    assert not driver.out.exists()


@quiet
def test_a_node_without_kvbench_is_named_with_what_it_lacks(
    cluster: Any, drive_cluster: Callable[..., Driver], tmp_path: Path
) -> None:
    package = tmp_path / "kvbench_suites"
    package.mkdir()
    text = "raise ModuleNotFoundError(\"No module named 'kvbench_suites'\")\n"
    (package / "__init__.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        third = cluster.add_node(num_cpus=1)
    try:
        driver = drive_cluster()
        assert driver.line() == ""
        assert driver.ended() == 2
        assert driver.said_last().endswith("ModuleNotFoundError: No module named 'kvbench_suites'")
    finally:
        cluster.remove_node(third)


# ---------------------------------------------------------------- without a cluster


def test_other_nodes_come_first_and_this_one_only_if_it_is_alone() -> None:
    b, c = Node("b", "10.0.0.2"), Node("c", "10.0.0.3")
    assert spread([HERE, b, c], HERE, 3) == [b, c, b]
    assert spread([HERE], HERE, 2) == [HERE, HERE]


def test_a_holder_on_another_machine_needs_certificates_and_one_on_this_is_for_this_alone() -> None:
    there = Node("b", "10.0.0.2")
    with pytest.raises(UsageError, match=r"10\.0\.0\.2 would listen beyond loopback.*--tls DIR"):
        host_for(there, HERE, tls=False)
    assert host_for(there, HERE, tls=True) == "10.0.0.2"
    assert host_for(Node("b", HERE.address), HERE, tls=False) == LOOPBACK
    assert host_for(Node("b", OTHER), HERE, tls=False) == OTHER


def refused(*arguments: str, before: str = "") -> str:
    """What the command says as it ends with status 2."""
    command = [sys.executable, "-c", f"{before}\n{CALLED}", *arguments]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 2, told.stderr
    assert told.stdout == ""
    assert told.stderr.count("\n") == 1, told.stderr
    return told.stderr


def test_without_ray_it_says_what_to_install() -> None:
    said = refused(*GOOD, before="import sys; sys.modules['ray'] = None")
    assert said.endswith("which is missing: pip install 'kvbench[ray]'\n")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (GOOD[2:], "--address"),
        ((*GOOD, "--block-bytes", "100"), "block_bytes = '100': expected a size"),
        ((*GOOD, "--holders", "17"), "holders = 17: expected a whole number, at least 1"),
        ((*GOOD, "--blocks", "-1"), "--blocks"),
        ((*GOOD, "--tier", "nvme"), "--tier"),
        ((*GOOD, "-o", "/nowhere/peers"), "/nowhere is not a directory"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: tuple[str, ...], word: str) -> None:
    assert word in refused(*arguments)


def test_without_a_cluster_at_that_address_it_says_so_in_one_line() -> None:
    pytest.importorskip("ray", reason=MISSING)
    assert "--address 127.0.0.1:1: cannot join that cluster: " in refused(*GOOD)
    said = refused(*GOOD, "--address", "ray://127.0.0.1:1")
    assert "--address ray://127.0.0.1:1: expected HOST:PORT, or auto" in said


# ---------------------------------------------------------------- with certificates


@pytest.fixture
def named(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A file that names a holder that was started by hand."""
    holders: list[HolderProcess] = []

    def one(**order: Any) -> Path:
        order = {"block_bytes": BLOCK_BYTES, "blocks": 16, "seed": 99, **order}
        holders.append(HolderProcess(Order(**order)))
        file = tmp_path / "holders"
        file.write_bytes(msgspec.json.encode(Said(ready=holders[-1].ready)))
        return file

    yield one
    for each in holders:
        each.close()


@pytest.mark.parametrize(("transport", "how"), [("tcp+tls", "tcp"), ("nixl", "nixl")])
def test_running_holders_are_asked_with_the_readers_own_certificate(
    named: Callable[..., Path], setting: Setting, tmp_path: Path, transport: str, how: str
) -> None:
    reason = GET.case({"transport": transport, **SIZES}).unmet(Machine())
    if reason is not None:
        pytest.skip(reason)
    tls = str(certificate(tmp_path))
    file = named(tls=tls, how=how)
    row = row_of(setting, file, transport=transport, tls=tls)
    assert row.path_observed is not None
    assert row.path_observed.startswith(transport)


def test_a_certificate_of_another_authority_gets_no_block(
    named: Callable[..., Path], llama: KVGeometry, tmp_path: Path
) -> None:
    file = named(tls=str(certificate(tmp_path)))
    stranger = str(certificate(tmp_path, "stranger"))
    params: dict[str, Value] = {"peers": str(file), "tls": stranger, "transport": "tcp+tls"}
    body = Get()
    try:
        body.set_up(context_of(GET, llama, tmp_path, **params, **SIZES))
        with pytest.raises(Exception, match="did not come from a peer that has it"):
            body.operate(0, 0)
    finally:
        body.tear_down()


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"peers": "file", "transport": "tcp+tls"}, "of running holders needs tls"),
        ({"tls": "dir", "transport": "tcp+tls"}, "tls is for running holders"),
        ({"peers": "file", "tls": "dir"}, "transport = 'tcp' uses no certificates"),
    ],
)
def test_certificates_that_do_not_fit_the_case_are_refused(
    params: dict[str, Value], word: str
) -> None:
    with pytest.raises(UsageError, match=word):
        GET.case({**SIZES, **params})


@pytest.mark.parametrize(
    ("order", "word"),
    [
        ({"block_bytes": 4096}, "the holders' blocks are of 4096 bytes"),
        ({"blocks": 7}, "the holders have 7 blocks, and requests in flight take 8"),
    ],
)
def test_running_holders_that_do_not_have_what_the_case_asks_for_are_refused(
    named: Callable[..., Path],
    llama: KVGeometry,
    tmp_path: Path,
    order: dict[str, int],
    word: str,
) -> None:
    context = context_of(GET, llama, tmp_path, peers=str(named(**order)), **SIZES)
    body = Get()
    try:
        with pytest.raises(TierUnavailableError, match=word):
            body.set_up(context)
    finally:
        body.tear_down()
