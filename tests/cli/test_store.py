"""`kvbench store inspect`, `verify` and `compact`, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from kvbench.cli.store import store
from kvbench.errors import UsageError
from kvbench.store.drives import capacity_for
from kvbench.store.identity import DATA
from kvbench.store.records import HEADER_BYTES
from tests.store.on_drives import LAYOUT, NAMESPACE, blocks, fill, flip, key_of, opened

APP = typer.Typer()
APP.add_typer(store, name="store")
SLOTS = 12


def run(*arguments: object) -> Result:
    words = ["store", *map(str, arguments)]
    return CliRunner().invoke(APP, words, env={"COLUMNS": "100"})


def whole(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with its exit status and its one line of error."""
    words = [sys.executable, "-m", "kvbench", "store", *map(str, arguments)]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with blocks in its even slots, one quarantined slot, closed."""
    made = opened(tmp_path / "store", slots=SLOTS)
    fill(made, range(0, SLOTS, 2))
    made.quarantine([1], "bit rot")
    made.close()
    return tmp_path / "store"


def damage(folder: Path, slot: int) -> None:
    made = opened(folder, slots=None)
    _, offset = made.drives.place(slot)
    made.close()
    flip(folder / DATA, offset + HEADER_BYTES + 10)


def test_inspect_shows_what_is_there(folder: Path) -> None:
    said = run("inspect", folder)
    assert said.exit_code == 0
    lines = {line[:16].strip(): line[16:].strip() for line in said.stdout.splitlines()}
    assert lines["block"] == "16 KiB in 4 parts"
    assert lines["namespace"] == NAMESPACE.hex()
    assert lines["capacity"] == "248 KiB, 12 slots"
    assert lines["blocks"] == "6"
    assert lines["quarantined"] == "1"
    assert lines["slot"] == "1: 'bit rot'"
    assert lines["written"] == "120 KiB"
    assert lines["closed cleanly"] == "yes"
    assert "'t0': 2" in said.stdout
    assert "in use" not in lines


def test_inspect_as_json_can_be_read_by_a_program(folder: Path) -> None:
    said = json.loads(run("inspect", folder, "--format", "json").stdout)
    assert said["blocks"] == 6
    assert said["tenants"] == {"t0": 2, "t1": 2, "t2": 2}
    assert said["quarantined"] == {"1": "bit rot"}
    assert said["capacity_bytes"] == capacity_for(SLOTS, LAYOUT)
    assert said["in_use_by"] is None


def test_a_store_in_use_can_be_inspected_and_nothing_else(folder: Path) -> None:
    made = opened(folder, slots=None)
    said = run("inspect", folder)
    assert said.exit_code == 0
    first = said.stdout.splitlines()[0]
    assert first.startswith(f"in use            {folder} is in use by process {os.getpid()} on ")
    assert first.endswith(": a moment's view, as of its last commit")
    assert "closed cleanly    it is open\n" in said.stdout
    assert (
        "is in use by" in json.loads(run("inspect", folder, "--format", "json").stdout)["in_use_by"]
    )
    for command in ("verify", "compact"):
        refused = whole(command, folder)
        assert refused.returncode == 2
        assert refused.stdout == ""
        assert refused.stderr.startswith(f"kvbench: {folder} is in use by process {os.getpid()} ")
        assert refused.stderr.count("\n") == 1
    made.close()


def test_verify_ends_with_0_if_all_is_well_and_with_3_and_a_list_if_not(folder: Path) -> None:
    said = whole("verify", folder)
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout == ("6 records checked, 0 damaged; 1 slots in quarantine, 0 released\n")
    damage(folder, 4)
    damage(folder, 8)
    said = whole("verify", folder)
    assert (said.returncode, said.stderr) == (3, "")
    lines = said.stdout.splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [
        ["slot", str(slot), key_of(slot).hex()] for slot in (4, 8)
    ]
    assert lines[2].startswith("6 records checked, 2 damaged; ")


def test_a_long_list_of_damage_is_cut_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvbench.cli.store.LISTED", 2)
    for slot in (0, 2, 4, 6):
        damage(folder, slot)
    said = run("verify", folder)
    assert said.exit_code == 3
    assert said.stdout.count("slot ") == 2
    assert "and 2 more" in said.stdout


def test_release_gives_a_quarantined_slot_back(folder: Path) -> None:
    said = run("verify", folder, "--release")
    assert "0 slots in quarantine, 1 released" in said.stdout
    made = opened(folder, slots=None)
    assert made.recover().quarantined == []
    made.close()


def test_compact_makes_a_store_smaller_and_keeps_its_blocks(folder: Path) -> None:
    said = run("compact", folder, "--to", "170KiB")
    assert said.exit_code == 0
    assert said.stdout == "248 KiB before, 168 KiB after; 2 blocks moved, 0 damaged ones dropped\n"
    assert (folder / DATA).stat().st_size == capacity_for(8, LAYOUT)
    made = opened(folder, slots=8)
    assert sorted(blocks(made).values()) == sorted(key_of(slot) for slot in range(0, SLOTS, 2))
    made.close()
    assert run("compact", folder).exit_code == 0
    assert (folder / DATA).stat().st_size == capacity_for(7, LAYOUT), "one is in quarantine"


def test_compact_ends_with_3_if_damaged_blocks_had_to_be_dropped(folder: Path) -> None:
    damage(folder, 10)
    said = run("compact", folder)
    assert said.exit_code == 3
    assert key_of(10).hex() in said.stdout
    assert "1 damaged ones dropped" in said.stdout


@pytest.mark.parametrize("command", ["inspect", "verify", "compact"])
def test_bad_input_is_one_line_and_status_2(command: str, tmp_path: Path) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("no directory")
    for given, said in (
        ((tmp_path / "missing",), "is not a directory"),
        ((file,), "is not a directory"),
        ((empty,), "holds no store: there is no blocks.kvb in it"),
        ((), "Missing argument"),
    ):
        refused = whole(command, *given)
        assert refused.returncode == 2
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert "Traceback" not in refused.stderr


def test_wrong_options_are_usage_errors(folder: Path) -> None:
    refused = run("inspect", folder, "--format", "xml").exception
    assert isinstance(refused, UsageError)
    assert str(refused) == "--format 'xml': expected one of table, json"
    for size, said in (("much", "'much' is not a size"), ("1KiB", "6 blocks need")):
        ended = whole("compact", folder, "--to", size)
        assert ended.returncode == 2
        assert said in ended.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_directory_that_may_not_be_read_is_one_line(folder: Path) -> None:
    (folder / DATA).chmod(0o600)
    for each in (folder, *folder.parents[:3]):
        each.chmod(0o755)
    code = (
        "import os, sys; from kvbench.cli import main; import kvbench.store.maintenance; "
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); "
        f"sys.argv = ['kvbench', 'store', 'inspect', {str(folder)!r}]; main()"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=100
    )
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "Permission denied" in said.stderr


def test_help_says_what_the_exit_status_means() -> None:
    assert "3 some are damaged" in " ".join(run("verify", "--help").stdout.split())
    assert "damaged records were dropped" in " ".join(run("compact", "--help").stdout.split())
