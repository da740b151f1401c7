"""`kvbench peer`, as a user runs it: processes on loopback, their lines and their exit status."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kvbench.cli import app
from kvbench.errors import UsageError
from kvbench.peer.model import PeerError
from kvbench.peer.service import PeerService
from tests.peer.eventful import eventually
from tests.peer.sidecar import PATIENCE_S, Sidecar, service, sidecar, toml, warm
from tests.store.blocks import keys_of, payload_of, put

pytest.importorskip("zenoh")
KEYS = keys_of(6)
WITHIN = ("--within", str(PATIENCE_S))


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    """A command in this process."""
    return CliRunner().invoke(app, ["peer", *map(str, arguments)], env=env)


def whole(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command as a process, with what `kvbench` makes of errors."""
    return subprocess.run(
        [sys.executable, "-m", "kvbench", "peer", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )


def peers_of(*arguments: str | Path) -> dict[str, dict[str, object]]:
    """What `status --format json` says, by name."""
    said = run("status", "--format", "json", *WITHIN, *arguments)
    assert said.exit_code in {0, 3}, said.output
    return {each["name"]: each for each in json.loads(said.stdout)}


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Sidecar, Sidecar]]:
    """Two sidecars that know each other; the first has KEYS on its drive."""
    drive = warm(tmp_path / "drive", KEYS)
    with (
        sidecar(toml(tmp_path, "a", drive=drive)) as a,
        sidecar(toml(tmp_path, "b", join=[a.join])) as b,
    ):
        yield a, b


def look(tmp_path: Path, join: str) -> Path:
    """A configuration of somebody who only looks."""
    return toml(tmp_path, "look", join=[join])


def know_each_other(config: Path) -> bool:
    """Whether a and b are there, and each says that it knows the other."""
    found = peers_of("--config", config)
    statuses = [each["status"] for each in found.values()]
    return sorted(found) == ["a", "b"] and all(
        isinstance(each, dict) and len(each["peers"]) == 1 for each in statuses
    )


def test_two_sidecars_share_and_say_who_is_there(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    a, b = pair
    config = look(tmp_path, b.join)

    assert eventually(lambda: know_each_other(config), PATIENCE_S)
    assert eventually(lambda: peers_of("--config", config)["a"]["behind"] == 0, PATIENCE_S)
    wide = {"COLUMNS": "160"}
    said = run("status", "--join", a.join, "--cluster", "tests", *WITHIN, env=wide)
    assert said.exit_code == 0
    head, first, second = (line.split() for line in said.stdout.splitlines()[:3])
    assert head == ["peer", "id", "state", "blocks", "held", "others", "behind", "in", "out"]
    assert first[:4] == ["a", a.ready["id"][:8], "up", str(len(KEYS))]
    assert second[:4] == ["b", b.ready["id"][:8], "up", "0"]


def test_get_writes_the_very_blocks_that_were_put(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    out = tmp_path / "blocks"
    config = look(tmp_path, pair[1].join)
    wanted = [KEYS[4], KEYS[1]]
    said = run("get", *(key.hex() for key in wanted), "--config", config, "-o", out, *WITHIN)
    assert said.exit_code == 0, said.output
    assert out.read_bytes() == b"".join(payload_of(key).tobytes() for key in wanted)
    piped = run("get", KEYS[0].hex(), "--config", config, "-o", "-", *WITHIN)
    assert piped.stdout_bytes == payload_of(KEYS[0]).tobytes()


def test_get_of_a_block_that_nobody_has_is_status_4_and_writes_nothing(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    out, absent = tmp_path / "blocks", keys_of(1, prefix=5)[0].hex()
    config = look(tmp_path, pair[0].join)
    said = run("get", KEYS[0].hex(), absent, "--config", config, "-o", out, *WITHIN)
    assert said.exit_code == 4
    assert said.stderr == f"kvbench: block {absent}: no peer is known to have it\n"
    assert not out.exists()


def test_get_takes_more_time_than_the_file_gives_if_it_is_told_to(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    config = toml(tmp_path, "look", join=[pair[0].join], more="[fetch]\ndeadline_s = 1e-6")
    arguments = ("get", KEYS[0].hex(), "--config", config, "-o", "-", *WITHIN)
    assert run(*arguments).exit_code == 4
    said = run(*arguments, "--deadline", "60")
    assert said.stdout_bytes == payload_of(KEYS[0]).tobytes()


def test_get_of_a_damaged_block_is_status_3(tmp_path: Path) -> None:
    with service(toml(tmp_path, "a", transports=["tcp"])) as a:
        put(a.store.store, KEYS)
        damage(a)
        config = toml(tmp_path, "look", join=a.join, transports=["tcp"])
        told = eventually(lambda: a.status().entries == len(KEYS), PATIENCE_S)
        assert told
        said = run("get", KEYS[0].hex(), "--config", config, "-o", "-", *WITHIN)
    assert said.exit_code == 3
    assert said.stdout == ""
    assert said.stderr == f"kvbench: block {KEYS[0].hex()}: peer a: corrupt\n"


def damage(one: PeerService) -> None:
    """A bit of the memory in which KEYS[0] lies."""
    loan = one.store.lend(KEYS[:1])
    (block,) = loan.blocks
    assert block is not None
    assert block.view is not None
    block.view[7] ^= 1
    loan.release()


def test_a_drained_sidecar_ends_with_0_and_the_other_goes_on(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    a, b = pair
    config = look(tmp_path, a.join)
    refused = run("drain", "nobody", "--config", config, *WITHIN).exception
    assert isinstance(refused, UsageError)
    assert str(refused).startswith("no peer 'nobody': there is a (")
    said = run("drain", b.ready["id"][:8], "--config", config, *WITHIN)
    assert said.exit_code == 0, said.output
    assert said.stdout == f"b ({b.ready['id'][:8]}) is draining\n"
    assert b.process.wait(PATIENCE_S) == 0
    assert eventually(lambda: list(peers_of("--config", config)) == ["a"], PATIENCE_S)


def test_signals_end_a_sidecar_as_the_shell_expects(pair: tuple[Sidecar, Sidecar]) -> None:
    a, b = pair
    assert a.end(signal.SIGTERM) == 0
    assert b.end(signal.SIGINT) == 130
    assert "Traceback" not in a.log() + b.log()
    assert b.log().endswith("kvbench: interrupted\n")


def test_a_killed_peer_is_not_there_any_more(pair: tuple[Sidecar, Sidecar], tmp_path: Path) -> None:
    a, b = pair
    config = look(tmp_path, b.join)
    assert eventually(lambda: sorted(peers_of("--config", config)) == ["a", "b"], PATIENCE_S)
    assert a.end(signal.SIGKILL) == -signal.SIGKILL
    assert eventually(lambda: list(peers_of("--config", config)) == ["b"], PATIENCE_S)


def test_a_frozen_peer_is_shown_as_one_that_does_not_answer(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    a, b = pair
    config = look(tmp_path, b.join)
    assert eventually(lambda: know_each_other(config), PATIENCE_S)
    a.process.send_signal(signal.SIGSTOP)
    said = run(
        "status", "--config", config, *WITHIN, env={"COLUMNS": "160"}
    )  # before its lease of 10 s is over
    a.process.send_signal(signal.SIGCONT)
    assert said.exit_code == 3, said.output
    (row,) = (line.split() for line in said.stdout.splitlines() if a.ready["id"][:8] in line)
    assert row == ["a", a.ready["id"][:8], "no", "answer"]
    assert "a: known to b, but not heard of here" in said.stdout


def test_a_narrow_terminal_gets_a_list_and_no_colours(
    pair: tuple[Sidecar, Sidecar], tmp_path: Path
) -> None:
    env = {"COLUMNS": "40", "NO_COLOR": "1", "TERM": "xterm-256color"}
    said = run("status", "--config", look(tmp_path, pair[0].join), *WITHIN, env=env)
    assert said.exit_code == 0, said.output
    assert "\x1b" not in said.stdout
    assert max(map(len, said.stdout.splitlines())) <= 40
    assert ["peer", "a"] in [line.split() for line in said.stdout.splitlines()]


def test_the_log_is_an_object_a_line_if_that_is_wanted(tmp_path: Path) -> None:
    config = toml(tmp_path, "a", join=["127.0.0.1:1"], more="[log]\nformat = 'json'")
    with sidecar(config) as a:
        assert eventually(lambda: "no peer has answered" in a.log(), PATIENCE_S)
        assert a.end(signal.SIGTERM) == 0
        for line in a.log().splitlines():
            assert {"time", "level", "logger", "peer", "msg"} == set(json.loads(line))


def test_with_the_credential_peers_are_seen_and_without_it_nobody_is(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    made = run("certs", "init", ca)
    assert made.exit_code == 0, made.output
    assert made.stdout.splitlines()[0] == str(ca / "ca.pem")
    assert run("certs", "issue", ca, "node-a", "--host", "node-a.example").exit_code == 0
    assert (ca / "node-a" / "key.pem").stat().st_mode & 0o077 == 0
    again = run("certs", "issue", ca, "node-a").exception
    assert isinstance(again, UsageError)
    assert "exists already and is not overwritten; give --force if it may be" in str(again)
    config = toml(tmp_path, "a", more=f"[tls]\nfolder = '{ca / 'node-a'}'")
    with sidecar(config) as a:
        assert a.join.startswith("tls/")
        join = ("--cluster", "tests", "--join", a.join.removeprefix("tls/"))
        assert list(peers_of(*join, "--tls", ca / "node-a")) == ["a"]
        refused = run("status", *join, "--within", "3").exception
        assert isinstance(refused, PeerError)
        assert str(refused).startswith("no peer has answered within 3 s")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve"], "Missing option '--config'"),
        (["serve", "--config", "missing.toml"], "cannot read missing.toml: No such file"),
        (["status"], "no peer to ask: give --join HOST:PORT, or --config FILE"),
        (["status", "--join", "x"], "'x' is no endpoint: give host:port"),
        (["status", "--join", "127.0.0.1:1", "--format", "xml"], "expected one of table, json"),
        (["status", "--join", "127.0.0.1:1", "--within", "0"], "--within"),
        (["status", "--join", "127.0.0.1:1", "--within", "0.3"], "no peer has answered within 0.3"),
        (["drain", "a"], "no peer to ask"),
        (["get", "61", "--config", "a.toml", "-o", "-"], "KEY '61': expected 64 digits in hex"),
        (["certs", "issue", "missing", "a"], "missing/ca.pem does not exist"),
        (["certs", "issue", "missing", "../a"], "NAME '../a': expected the name of a folder"),
    ],
)
def test_wrong_arguments_are_one_line_and_status_2(arguments: list[str], said: str) -> None:
    refused = whole(*arguments)
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_what_stops_a_start_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for more, said in (
            (f"listen = ['127.0.0.1:{port}']", f"tcp/127.0.0.1:{port}: Address already in use"),
            (f"[metrics]\nlisten = '127.0.0.1:{port}'", f"metrics on 127.0.0.1:{port}: Address"),
            ("[fetch]\nkep = 'never'", "unknown key 'fetch.kep': did you mean 'keep'?"),
            ("listen = ['0.0.0.0:0']", "beyond loopback without TLS anybody could join"),
        ):
            ended = whole("serve", "--config", toml(tmp_path, "a", more=more))
            assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
            assert said in ended.stderr.splitlines()[-1]
            assert "Traceback" not in ended.stderr


def test_without_zenoh_the_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['zenoh'] = None; from kvbench.cli import main; "
        f"sys.argv = ['kvbench', 'peer', 'serve', '--config', {str(toml(tmp_path, 'a'))!r}]; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith("pip install 'kvbench[peer]'")
    assert "Traceback" not in ended.stderr


def test_help_needs_neither_zenoh_nor_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('zenoh', 'torch', 'cryptography'): sys.modules[name] = None\n"
        "from kvbench.cli import main; sys.argv = ['kvbench', 'peer', 'get', '--help']; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert "3 one was not what its checksum says" in " ".join(ended.stdout.split())


def test_names_that_a_terminal_would_obey_are_printed_as_text(tmp_path: Path) -> None:
    config = toml(tmp_path, "a")
    config.write_text(config.read_text().replace("name = 'a'", 'name = "\\u001b[31mred"', 1))
    with service(config) as a:
        said = run("status", "--join", a.join[0], "--cluster", "tests", *WITHIN)
    assert said.exit_code == 0, said.output
    assert "\x1b" not in said.stdout
    assert "\\x1b[31mred" in said.stdout
