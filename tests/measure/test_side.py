"""Sides: what the three forms mean, and that workers really run where a side says."""

import os
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kvbench import __version__
from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.checkout import working_commit
from kvbench.measure.result import State
from kvbench.measure.runner import Setting
from kvbench.measure.session import Session
from kvbench.measure.side import Side, parse_side, redact_side
from kvbench.measure.simulated import load_profile
from kvbench.units import MIB
from kvbench_suites.dram import COPY
from tests.conftest import QUICK, measure

ROOT = Path(__file__).parents[2]
CASE = COPY.case({"block_bytes": MIB, "threads": 1})


def simulated(llama: KVGeometry, side: Side) -> Setting:
    profile = load_profile("steady")
    return Setting(geometry=llama, machine=Machine(), plan=QUICK, profile=profile, side=side)


def git(cwd: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *words], cwd=cwd, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def refused(text: str, **options: Path) -> str:
    with pytest.raises(UsageError) as raised:
        parse_side(text, **options)
    said = str(raised.value)
    assert "\n" not in said
    assert said.startswith(f"side {text!r}: ")
    return said.removeprefix(f"side {text!r}: ")


# ---------------------------------------------------------------- env:


def test_env_adds_variables_quoted_as_in_a_shell() -> None:
    side = parse_side("env:KVT_A=1 KVT_B='x y' KVT_C=")
    assert side.environ == {"KVT_A": "1", "KVT_B": "x y", "KVT_C": ""}
    assert (side.python, side.version, side.commit) == (sys.executable, __version__, None)


def test_env_alone_changes_nothing() -> None:
    assert parse_side("env:").environ == {}


def test_the_variables_of_a_side_reach_its_worker_and_only_its(
    llama: KVGeometry, tmp_path: Path
) -> None:
    # Python imports sitecustomize when it starts: the worker itself notes what it was given.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, pathlib\npathlib.Path(os.environ['KVT_OUT']).write_text(os.environ['KVT_A'])\n"
    )
    out = tmp_path / "seen"
    side = parse_side(f"env:PYTHONPATH={tmp_path} KVT_OUT={out} KVT_A='x y'")
    out.unlink()  # written by the probe
    row = measure(CASE, simulated(llama, side))
    assert row.state is State.SIMULATED
    assert out.read_text() == "x y"
    out.unlink()
    measure(CASE, replace(simulated(llama, side), side=None))
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("env:A", "'A' is not VAR=value"),
        ("env:1A=2", "'1A=2' is not VAR=value"),
        ("env:A=1 =2", "'=2' is not VAR=value"),
        ("env:A='1", "No closing quotation; quote as in a shell"),
    ],
)
def test_what_is_no_variable_is_refused(text: str, said: str) -> None:
    assert refused(text) == said


def test_variables_under_which_python_does_not_start_are_refused() -> None:
    said = refused("env:PYTHONHOME=/nonexistent")
    assert "cannot import kvbench" in said
    assert said.endswith("does it start without these variables?")


@pytest.mark.parametrize("text", ["main", "", "venv:x", "Git:main", "/usr/bin/python3"])
def test_an_unknown_form_is_refused_with_the_three_there_are(text: str) -> None:
    assert refused(text) == ("expected env:VAR=value …, python:/path/to/venv/bin/python or git:REF")


# ---------------------------------------------------------------- python:


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a venv that has nothing installed."""
    venv = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    return venv / "bin" / "python"


def test_an_interpreter_without_kvbench_is_refused_with_the_command_that_helps(bare: Path) -> None:
    assert refused(f"python:{bare}") == (
        f"{bare} cannot import kvbench (ModuleNotFoundError: No module named 'kvbench'): "
        f"`{bare} -m pip install kvbench` installs it there"
    )


def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in ("", str(tmp_path), str(tmp_path / "python")):
        assert refused(f"python:{path}") == (
            "no interpreter there; name one, such as python:venv/bin/python"
        )


def test_a_program_that_is_no_python_is_refused() -> None:
    assert refused("python:/bin/true").endswith("/bin/true is no Python with kvbench")


def test_the_interpreter_of_a_venv_stays_that_of_the_venv(monkeypatch: pytest.MonkeyPatch) -> None:
    # It is a link to the interpreter that made the venv; behind the link nothing is installed.
    monkeypatch.chdir(Path(sys.executable).parent)
    side = parse_side(f"python:{Path(sys.executable).name}")
    assert (side.python, side.version) == (sys.executable, __version__)


def test_a_package_of_that_name_in_the_working_directory_is_not_what_is_measured(
    llama: KVGeometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvbench").mkdir()
    (tmp_path / "kvbench" / "__init__.py").write_text("raise ImportError('the working directory')")
    monkeypatch.chdir(tmp_path)
    side = parse_side("env:")
    assert measure(CASE, simulated(llama, side)).state is State.SIMULATED


# ---------------------------------------------------------------- git:


@dataclass(frozen=True)
class Built:
    """A commit of kvbench that differs in two lines, as two runs at once have built it."""

    repository: Path
    cache: Path
    sides: list[Side]

    @property
    def side(self) -> Side:
        return self.sides[0]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree in a repository of its own, one commit, its version and one path changed."""
    if shutil.which("git") is None:
        pytest.skip("no git")
    root = tmp_path_factory.mktemp("repository") / "clone"
    root.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, root)
    for name in ("kvbench", "kernels", "suites", "reports/kvbench_reports"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    change(root / "kvbench" / "__init__.py", f'"{__version__}"', f'"{__version__}+changed"')
    change(root / "kvbench/measure/simulated.py", "Observed(path=PATH)", 'Observed(path="changed")')
    git(root, "init", "-q", "-b", "main")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "changed")
    # The tree is dirty, and what is not committed must not be measured.
    change(root / "kvbench/measure/simulated.py", 'path="changed"', 'path="not committed"')
    return root


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def built(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built once, by two at the same time, where an interrupted build had left its rest."""
    cache = tmp_path_factory.mktemp("cache")
    rest = cache / "kvbench" / "sides" / ".building-rest"
    (rest / "venv" / "bin").mkdir(parents=True)
    sides: list[Side] = []
    failures: list[UsageError] = []

    def build() -> None:
        try:
            sides.append(parse_side("git:main", cache=cache))
        except UsageError as error:
            failures.append(error)

    before = Path.cwd()
    os.chdir(repository)
    try:
        both = [threading.Thread(target=build) for _ in range(2)]
        for each in both:
            each.start()
        for each in both:
            each.join()
    finally:
        os.chdir(before)
    if failures and "hatchling" in str(failures[0]) and "CI" not in os.environ:
        pytest.skip("pip reaches no index to fetch hatchling from")
    assert not failures
    return Built(repository, cache, sides)


def test_a_commit_is_built_and_its_code_is_what_is_measured(
    llama: KVGeometry, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # where another kvbench lies in the working directory
    assert built.side.version == f"{__version__}+changed"
    assert built.side.commit == git(built.repository, "rev-parse", "main")
    row = measure(CASE, simulated(llama, built.side))
    assert (row.state, row.path_observed) == (State.SIMULATED, "changed")
    assert row.bytes_per_s == pytest.approx(MIB / (1e-6 + MIB / 50e9), rel=1e-3)


def test_the_built_interpreter_is_a_side_by_itself(llama: KVGeometry, built: Built) -> None:
    side = parse_side(f"python:{built.side.python}")
    assert side.version == f"{__version__}+changed"
    assert measure(CASE, simulated(llama, side)).path_observed == "changed"


def test_two_runs_at_once_build_a_commit_once_and_leave_nothing_unfinished(built: Built) -> None:
    assert built.sides[0] == built.sides[1]
    commit = built.side.commit
    assert commit is not None
    (directory,) = (p for p in (built.cache / "kvbench" / "sides").iterdir() if p.is_dir())
    assert re.fullmatch(f"{commit[:12]}-cpython-3\\d\\d-[0-9a-f]{{8}}", directory.name)


def test_a_built_commit_is_used_again_without_pip(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.repository)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    again = parse_side("git:HEAD", cache=built.cache)
    assert (again.python, again.commit) == (built.side.python, built.side.commit)


def test_a_module_path_that_shadows_the_built_commit_is_refused(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(built.repository)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert refused("git:main", cache=built.cache).endswith("unset PYTHONPATH")


def test_a_build_that_fails_says_pips_reason_in_one_line_and_leaves_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    said = refused("git:main", cache=tmp_path)
    assert said.startswith("pip failed: Could not find a version that satisfies")
    assert "hatchling" in said
    assert [path.name for path in (tmp_path / "kvbench" / "sides").iterdir()] == ["lock"]


@pytest.mark.parametrize("ref", ["nope", "", "-q", "--all", "^main", "main:pyproject.toml"])
def test_a_ref_that_names_no_commit_is_refused(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str
) -> None:
    monkeypatch.chdir(repository / "kvbench")
    assert refused(f"git:{ref}", cache=tmp_path) == (
        f"clone has no commit {ref!r}; `git fetch` may bring it"
    )


def test_git_outside_of_a_repository_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused("git:main").startswith("no git repository here")


@pytest.mark.parametrize("project", [None, '[project]\nname = "other"\n', "project = 1\n", "[["])
def test_a_repository_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml" if project else tmp_path / "README").write_text(project or "")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "x")
    assert "does not hold kvbench" in refused("git:HEAD")


# ---------------------------------------------------------------- in a report


def test_a_report_names_its_side_and_the_sides_own_version_and_commit(
    llama: KVGeometry, built: Built
) -> None:
    command = ("ab", "env:", "git:main")
    report = Session("mine", [CASE], simulated(llama, built.side), command).report
    assert report.side == "git:main"
    assert report.kvbench_version == f"{__version__}+changed"
    assert report.commit == built.side.commit


def test_a_sides_name_in_a_report_names_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    monkeypatch.setenv("USER", "anna")
    assert redact_side("python:/home/anna/venv/bin/python") == "python:~/venv/bin/python"
    assert redact_side("git:anna/faster") == "git:<user>/faster"
    assert redact_side("env:A=1 L='/opt/x:/home/anna/lib' E=") == "env:A=1 L='/opt/x:~/lib' E="


def test_the_commit_of_the_working_directory_is_told_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert working_commit() is None
    git(tmp_path, "init", "-q")
    assert working_commit() is None, "no commit yet"
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "x")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "report.json").write_text("untracked")
    assert working_commit() == head
    (tmp_path / "file").write_text("2")
    assert working_commit() == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert working_commit() is None, "no git"


def test_a_git_that_hangs_costs_two_seconds_and_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 30\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("kvbench.measure.checkout.COMMIT_TIMEOUT_S", 0.2)
    assert working_commit() is None
