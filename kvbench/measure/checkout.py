"""kvbench as it was at a commit, in a virtual environment of its own that is kept for next time.

`git archive` of the commit, `pip install --no-deps` of that into a venv. Dependencies are not
installed again: the venv sees those of this environment, so that a comparison of two commits is
one of their code and of nothing else. A commit that needs other dependencies must have a venv
made by hand, and be a `python:` side. pip builds in isolation and fetches hatchling for it.
A build gets its name when it is complete, under a lock, so what was interrupted is never used.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kvbench.errors import UsageError
from kvbench.measure.result import DIRTY

GIT_TIMEOUT_S = 30.0
COMMIT_TIMEOUT_S = 2.0  # a fact for the report is not worth more
BUILD_TIMEOUT_S = 900.0
SHORT = 12  # digits of a commit: unique in any repository
UNFINISHED = ".building-"


@dataclass(frozen=True, slots=True)
class Source:
    """A commit of a repository of kvbench."""

    repository: Path
    commit: str  # 40 hex digits (64 in a repository by SHA-256)


def resolve(ref: str, text: str) -> Source:
    """The commit that `ref` names in the repository of the working directory.

    `text` is what the user wrote, for errors. The working tree may be dirty: it is not looked at.

    Raises:
        UsageError: no repository, no such commit, or one without kvbench.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None:
        raise UsageError(f"side {text!r}: no git repository here (or no git): go to kvbench's")
    repository = Path(os.fsdecode(top))
    commit = _git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", cwd=repository)
    if commit is None or commit.startswith(b"^"):  # ^REF stands for all but that
        raise UsageError(
            f"side {text!r}: {repository.name} has no commit {ref!r}; `git fetch` may bring it"
        )
    source = Source(repository, commit.decode("ascii"))
    project = _git("show", f"{source.commit}:pyproject.toml", cwd=repository)
    if project is None or _project_name(project) != "kvbench":
        raise UsageError(
            f"side {text!r}: the repository {repository.name} does not hold kvbench at that "
            'commit (pyproject.toml with name = "kvbench"): run this in a clone of kvbench'
        )
    return source


def build(source: Source, sides: Path, text: str, *, check: Callable[[Path], object]) -> Path:
    """The venv of a commit below `sides`, from an earlier run or made now.

    `check` is called with a new venv before it gets its name, and raises if it is not good.

    Raises:
        UsageError: it cannot be built; the line ends with what pip said.
    """
    target = sides / f"{source.commit[:SHORT]}-{_python_tag()}"
    if _is_complete(target):
        return target
    try:
        sides.mkdir(parents=True, exist_ok=True)
        with (sides / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of another run; the kernel frees it when that dies
            if not _is_complete(target):
                _build(source, target, text, check)
    except OSError as error:
        raise UsageError(f"side {text!r}: cannot build in {sides}: {error.strerror}") from None
    return target


def working_commit() -> str | None:
    """HEAD of the repository of the working directory, `-dirty` behind it if tracked files changed.

    None without a repository or git, or if git takes longer than two seconds.
    """
    head = _git("rev-parse", "HEAD", timeout_s=COMMIT_TIMEOUT_S)
    if head is None:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", timeout_s=COMMIT_TIMEOUT_S)
    if changed is None:
        return None
    return head.decode("ascii") + (DIRTY if changed else "")


def in_kvbench() -> bool:
    """Whether the working directory lies in a clone of kvbench, whose commits can be sides."""
    top = _git("rev-parse", "--show-toplevel", timeout_s=COMMIT_TIMEOUT_S)
    if top is None:
        return False
    try:
        project = (Path(os.fsdecode(top)) / "pyproject.toml").read_bytes()
    except OSError:
        return False
    return _project_name(project) == "kvbench"


def _build(source: Source, target: Path, text: str, check: Callable[[Path], object]) -> None:
    for stale in target.parent.glob(f"{UNFINISHED}*"):  # we hold the lock: nobody is building
        shutil.rmtree(stale, ignore_errors=True)
    if target.exists():  # its interpreter is gone
        shutil.rmtree(target)
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=target.parent))
    try:
        venv = unfinished / "venv"
        archive = unfinished / "kvbench.zip"  # pip takes it for a source distribution
        command = ("archive", "--format=zip", "--prefix=kvbench/", "-o", str(archive))
        if _git(*command, source.commit, cwd=source.repository) is None:
            raise UsageError(f"side {text!r}: git archive of {source.commit[:SHORT]} failed")
        _run(text, "venv", "--without-pip", str(venv))
        options = ("--disable-pip-version-check", "--no-input", "--quiet")
        into = ("--python", str(venv / "bin" / "python"))
        _run(text, "pip", *into, *options, "install", "--no-deps", str(archive))
        _share_dependencies(venv)
        check(venv)
        venv.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _share_dependencies(venv: Path) -> None:
    """Let the venv see this environment's packages, after its own.

    Directories that a .pth file names are not searched for .pth files themselves, so an editable
    install of the working tree, which is one, does not come along. Written after pip is done, or
    pip would take this environment's kvbench for one to be replaced.
    """
    (packages,) = venv.glob("lib/python*/site-packages")
    text = "".join(f"{directory}\n" for directory in _package_directories())
    (packages / "shared_dependencies.pth").write_text(text, encoding="utf-8")


def _package_directories() -> list[str]:
    names = {"site-packages", "dist-packages"}
    found = [path for path in sys.path if Path(path).name in names and Path(path).is_dir()]
    return list(dict.fromkeys(found))


def _python_tag() -> str:
    """Interpreter and the environment whose dependencies are shared: another one, another venv."""
    text = "\n".join([sys.base_prefix, *_package_directories()])
    return f"{sys.implementation.cache_tag}-{xxhash.xxh32_hexdigest(text.encode())}"


def _is_complete(target: Path) -> bool:
    return (target / "bin" / "python").exists()  # of a link, what it points to


def _run(text: str, module: str, *words: str) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=BUILD_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"side {text!r}: {module} took over {BUILD_TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise UsageError(f"side {text!r}: {module} failed: {_cause(done.stderr or done.stdout)}")


def _cause(stderr: str) -> str:
    """What pip names first as an error, since its last line only sums up; else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    named = (line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: "))
    return next(named, lines[-1] if lines else "it said nothing")


def _project_name(pyproject: bytes) -> object:
    try:
        return tomllib.loads(pyproject.decode()).get("project", {}).get("name")
    except (ValueError, AttributeError):  # not TOML, not UTF-8, or `project` is no table
        return None


def _git(*words: str, cwd: Path | None = None, timeout_s: float = GIT_TIMEOUT_S) -> bytes | None:
    """What git printed; None when it failed, is missing or took too long."""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            ["git", *words],
            cwd=cwd,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # a look must not disturb a commit
            capture_output=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return None
