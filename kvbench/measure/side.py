"""One side of `kvbench ab`: which interpreter, with which environment, measures it.

`env:A=1 B='x y'` is this interpreter with variables added (`env:` alone changes nothing),
`python:/path/to/venv/bin/python` is another environment's, `git:REF` is kvbench as it was at a
commit of the repository of the working directory (`kvbench.measure.checkout` builds it). Every
side is started once before anything is measured, so that a wrong one costs no time.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from kvbench.errors import UsageError
from kvbench.machine import redact_argument
from kvbench.measure.checkout import build, resolve

FORMS = ("env:", "python:", "git:")
PROBE_TIMEOUT_S = 60.0  # an import on a cold network file system
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PROBE = """\
import json, kvbench
import kvbench.measure.worker
print(json.dumps({"version": kvbench.__version__, "file": kvbench.__file__}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """How the workers of one side are started."""

    name: str  # as the user wrote it
    python: str
    environ: Mapping[str, str] = field(default_factory=dict[str, str])  # added to this one's
    commit: str | None = None  # what `git:` built
    version: str | None = None  # of the kvbench that its interpreter imports
    file: str | None = None  # where that lies


class _Found(msgspec.Struct, frozen=True):
    version: str
    file: str


def parse_side(text: str, *, cache: Path | None = None) -> Side:
    """The side that a user's words mean, after it was started once.

    Args:
        text: `env:…`, `python:…` or `git:…`.
        cache: where `kvbench/sides` of built commits lies; $XDG_CACHE_HOME or ~/.cache.

    Raises:
        UsageError: none of the three forms, or a side that cannot be started.
    """
    form, colon, rest = text.partition(":")
    if form + colon == "env:":
        side = Side(name=text, python=sys.executable, environ=_variables(text, rest))
    elif form + colon == "python:":
        side = Side(name=text, python=_interpreter(text, rest))
    elif form + colon == "git:":
        return _built(text, rest, cache or _cache())
    else:
        raise UsageError(
            f"side {text!r}: expected env:VAR=value …, python:/path/to/venv/bin/python or git:REF"
        )
    return _probed(side)[0]


def redact_side(text: str) -> str:
    """A side's name for a report: absolute paths in it without home and user."""
    form, colon, rest = text.partition(":")
    if form + colon != "env:":
        return f"{form}{colon}{redact_argument(rest)}"
    shown: list[str] = []
    for name, value in _variables(text, rest).items():
        parts = (redact_argument(part) for part in value.split(":"))  # as in LD_LIBRARY_PATH
        shown.append(f"{name}={shlex.quote(':'.join(parts)) if value else ''}")
    return "env:" + " ".join(shown)


def worker_environ(side: Side | None) -> dict[str, str]:
    """The variables that a side's interpreter is started with.

    PYTHONSAFEPATH keeps the working directory off the module path: in a checkout, `python -m`
    would otherwise find the working tree's kvbench before the side's own.
    """
    return {**os.environ, "PYTHONSAFEPATH": "1", **(side.environ if side else {})}


def _variables(text: str, rest: str) -> dict[str, str]:
    try:
        words = shlex.split(rest)
    except ValueError as error:
        raise UsageError(f"side {text!r}: {error}; quote as in a shell") from None
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not _NAME.fullmatch(name) or "\0" in value:
            raise UsageError(f"side {text!r}: {word!r} is not VAR=value")
        found[name] = value
    return found


def _interpreter(text: str, rest: str) -> str:
    path = Path(rest).expanduser().absolute()  # not resolved: a venv's is a link out of it
    if not rest or not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError(
            f"side {text!r}: no interpreter there; name one, such as python:venv/bin/python"
        )
    return str(path)


def _built(text: str, ref: str, cache: Path) -> Side:
    source = resolve(ref, text)

    def side_of(root: Path) -> Side:
        python = str(root / "bin" / "python")
        side, file = _probed(Side(name=text, python=python, commit=source.commit))
        if not Path(file).resolve().is_relative_to(root.resolve()):
            raise UsageError(
                f"side {text!r}: its interpreter imports kvbench from {file}, not from the build "
                "of that commit: unset PYTHONPATH"
            )
        return side

    return side_of(build(source, cache / "kvbench" / "sides", text, check=side_of))


def _probed(side: Side) -> tuple[Side, str]:
    """The side with its kvbench's version, and the file that it was imported from."""
    try:
        found = subprocess.run(
            [side.python, "-c", _PROBE],
            env=worker_environ(side),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"side {side.name!r}: importing kvbench took over {PROBE_TIMEOUT_S:.0f} s"
        ) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"side {side.name!r}: {side.python} does not start: {why}") from None
    if found.returncode != 0:
        said = next((line for line in reversed(found.stderr.splitlines()) if line.strip()), "")
        raise UsageError(
            f"side {side.name!r}: {side.python} cannot import kvbench"
            f" ({said.strip() or f'exit status {found.returncode}'}): {_remedy(side)}"
        )
    try:
        answer = msgspec.json.decode(found.stdout.strip().splitlines()[-1], type=_Found)
    except (msgspec.MsgspecError, IndexError):
        raise UsageError(f"side {side.name!r}: {side.python} is no Python with kvbench") from None
    return (
        Side(
            name=side.name,
            python=side.python,
            environ=side.environ,
            commit=side.commit,
            version=answer.version,
            file=answer.file,
        ),
        answer.file,
    )


def _remedy(side: Side) -> str:
    if side.commit is not None:
        return "that commit needs a venv of its own; make one and use python:"
    if side.environ:
        return "does it start without these variables?"
    return f"`{side.python} -m pip install kvbench` installs it there"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    return Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()
