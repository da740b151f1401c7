"""Reading /proc, /sys and /etc below a root, where anything may be missing.

Every read gives None (or an empty list) for a file that is absent, unreadable or not of the form
expected: a missing fact is no error. The root is "/" except in tests, which lay out small trees.
Reads nothing outside the root. May import: the standard library.
"""

import re
from dataclasses import dataclass
from pathlib import Path

_INTEGER = re.compile(r"\s*(-?\d+)")


@dataclass(frozen=True, slots=True)
class Tree:
    """A file system root. Paths are given without a leading slash: `text("proc/meminfo")`."""

    root: Path = Path("/")

    def path(self, name: str) -> Path:
        """Where `name` is on the real file system."""
        return self.root / name.lstrip("/")

    def exists(self, name: str) -> bool:
        """Whether `name` is there and may be looked at."""
        try:
            return self.path(name).exists()
        except OSError:  # a parent directory that may not be searched
            return False

    def data(self, name: str) -> bytes | None:
        """The bytes of a file."""
        try:
            return self.path(name).read_bytes()
        except OSError:
            return None

    def text(self, name: str) -> str | None:
        """The text of a file without surrounding blanks; None also when it is empty."""
        data = self.data(name)
        return (data.decode(errors="replace").strip(" \t\n\0") or None) if data else None

    def number(self, name: str) -> int | None:
        """The whole number that a file starts with: 32768 of `"32768 kB"`."""
        match = _INTEGER.match(self.text(name) or "")
        return int(match[1]) if match else None

    def fields(self, name: str) -> dict[str, str]:
        """A file of `key: value` lines; of a key that repeats, the first value."""
        found: dict[str, str] = {}
        for line in (self.text(name) or "").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
        return found

    def names(self, name: str) -> list[str]:
        """The entries of a directory, sorted."""
        try:
            return sorted(entry.name for entry in self.path(name).iterdir())
        except OSError:
            return []

    def resolve(self, name: str) -> str | None:
        """`name` with symbolic links followed, below the root; None when it is not there.

        Links in /sys are relative, so they resolve inside a test's tree as they do on a machine.
        """
        try:
            return str(self.path(name).resolve(strict=True).relative_to(self.root.resolve()))
        except (OSError, ValueError, RuntimeError):  # absent; outside the root; a loop of links
            return None

    def chosen(self, name: str) -> str | None:
        """The word in brackets: `"always [madvise] never"` is `"madvise"`."""
        match = re.search(r"\[([^\]]+)\]", self.text(name) or "")
        return match[1] if match else None


def parse_cpu_list(text: str | None) -> list[int]:
    """The kernel's lists of CPUs: `"0-3,8"` is [0, 1, 2, 3, 8]; nothing or nonsense is []."""
    found: list[int] = []
    for part in (text or "").split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() if dash else True):
            found.extend(range(int(first), int(last or first) + 1))
    return found


def kib_to_bytes(text: str | None) -> int | None:
    """The value of a line such as `MemTotal: 24684092 kB`, in bytes; the kernel's kB is 1024."""
    match = _INTEGER.match(text or "")
    return int(match[1]) * 1024 if match else None
