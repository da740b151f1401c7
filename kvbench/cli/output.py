"""Where a command's result goes: standard output, or a file that is replaced whole."""

import contextlib
import os
import re
from pathlib import Path

import typer

from kvbench.errors import UsageError

HEAD_BYTES = 4096  # the schema is the first thing that a file of ours says
MEASURED = re.compile(rb'"schema"\s*:\s*"kvbench\.(report|noise)/')


def emit(text: str, out: Path | None) -> None:
    """Write text as UTF-8, whatever the locale is.

    Raises:
        UsageError: the file cannot be written; what stood there is as it was.
    """
    if out is None:
        typer.echo(text.encode(), nl=False)
        return
    write_whole(out, text.encode())


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file: a reader sees the old one or the new one, never half.

    Raises:
        UsageError: it cannot be written; what stood there is as it was.
    """
    target = path.resolve()  # of a link, what it points to
    if target.exists() and not target.is_file():
        target.write_bytes(data)  # /dev/stdout, a pipe: there is nothing to replace
        return
    temporary = target.with_name(f".{os.getpid()}.kvbench.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    except BaseException:  # interrupted
        temporary.unlink(missing_ok=True)
        raise


def check_replaceable(path: Path, schema: str) -> None:
    """Refuse to write over something that is not of this schema, before anything is measured.

    Raises:
        UsageError: a directory or somebody else's file stands there, or its directory is missing.
    """
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no directory {path.parent}")
    if not path.exists():
        return
    if not path.is_file():
        raise UsageError(f"cannot write {path}: it is no regular file; name another with -o")
    with path.open("rb") as file:
        start = file.read(200)
    if f'"{schema}"'.encode() not in start:
        raise UsageError(f"will not overwrite {path}: it is no {schema}; name another with -o")


def check_output(path: Path) -> None:
    """Refuse to put text where a report or a noise floor stands: those were measured.

    Raises:
        UsageError: one of them is there.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(HEAD_BYTES)
    if MEASURED.search(start):
        raise UsageError(f"will not overwrite {path}, which was measured: name another with -o")
