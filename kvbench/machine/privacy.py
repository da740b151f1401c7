"""Keeping people out of reports: paths without user names."""

import contextlib
import os
import pwd
import shlex
from pathlib import Path, PurePosixPath

_HOMES = ("home", "Users")


def redact_path(path: Path) -> str:
    """An absolute path, a home directory written as ~ and the user's name as <user>.

    `/home/anna/kv` and `/root/kv` are `~/kv`, `/mnt/fast/anna/kv` is `/mnt/fast/<user>/kv`.
    """
    parts = PurePosixPath(os.path.abspath(path)).parts  # noqa: PTH100 - resolve() would follow links
    home = PurePosixPath(os.path.expanduser("~")).parts  # noqa: PTH111 - Path.home() may raise
    if len(home) > 1 and parts[: len(home)] == home:
        parts = ("~", *parts[len(home) :])
    elif len(parts) > 2 and parts[1] in _HOMES:  # noqa: PLR2004 - "/", "home", the user's name
        parts = ("~", *parts[3:])
    elif parts[1:2] == ("root",):
        parts = ("~", *parts[2:])
    names = _user_names()
    return str(PurePosixPath(*("<user>" if part in names else part for part in parts)))


def redact_argument(word: str) -> str:
    """A word of a command line, an absolute path in it redacted: `--dir=/home/anna` or bare."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith("/"):
        return f"{option}{equals}{redact_path(Path(value))}"
    names = _user_names()
    parts = ["<user>" if part in names else part for part in value.split("/")]
    return f"{option}{equals}{'/'.join(parts)}" if len(parts) > 1 else word


def redact_text(text: str) -> str:
    """A sentence with the home directory in it written as ~."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() may raise
    return text.replace(f"{home}/", "~/") if len(home) > 1 else text


def shell_quoted(word: str) -> str:
    """A redacted word for a shell; the ~ of a home stays outside the quotes, where it names one."""
    home = "~/" if word.startswith("~/") else ""
    return home + shlex.quote(word.removeprefix(home))


def _user_names() -> frozenset[str]:
    """The names of this user; root's names nobody."""
    found = {os.environ.get("USER"), os.environ.get("LOGNAME"), os.environ.get("SUDO_USER")}
    with contextlib.suppress(KeyError):  # a container's user may have no entry in /etc/passwd
        found.add(pwd.getpwuid(os.getuid()).pw_name)
    return frozenset(name for name in found if name and name != "root")
