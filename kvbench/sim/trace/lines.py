"""A file's lines with their numbers, in bounded memory: a line of a gigabyte is refused unread.

Knows no format.
"""

from collections.abc import Iterator
from pathlib import Path

from kvbench.errors import UsageError

# Two million token ids fit; a longer line is no request, and reading it whole could take all memory
MOST_LINE_BYTES = 16 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_SEEN_BYTES = 40  # of a wrong line, in an error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, stripped, with its number from 1.

    Raises:
        UsageError: the file cannot be read, or a line is longer than MOST_LINE_BYTES.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_LINE_BYTES + 1):
                number += 1
                if len(line) > MOST_LINE_BYTES:
                    raise wrong_line(
                        path,
                        number,
                        f"longer than {MOST_LINE_BYTES} bytes, the most that a request may take",
                    )
                if number == 1 and line.startswith(_BOM):
                    line = line[len(_BOM) :]
                if stripped := line.strip():
                    yield number, stripped
    except OSError as error:
        raise UsageError(f"cannot read trace {path}: {error.strerror}") from None


def wrong_line(path: Path, number: int, what: str) -> UsageError:
    """The error that names file and line."""
    return UsageError(f"{path} line {number}: {what}")


def seen(line: bytes) -> str:
    """How a wrong line begins, quoted."""
    return repr(line[:_SEEN_BYTES].decode(errors="replace"))
