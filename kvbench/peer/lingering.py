"""Closing a connection whose other end is cut off must not hold up the thread that closes it.

Zenoh gives its TCP sockets a linger of 10 s, which is not to be configured: `close` then blocks a
thread of its receiver for so long, and with it what that thread alone may run next (a partition of
eight peers into halves was seen after 32 s with Zenoh's usual two threads, and after 12 s now and
then with 32 of them). Without linger the kernel sends what is left by itself.
"""

import os
import socket
import stat
import struct

_FILES = "/proc/self/fd"
_OFF = struct.pack("ii", 0, 0)  # struct linger: l_onoff, l_linger
_IPV6 = 4  # in an address of four parts, which only IPv6 has


def close_at_once(here: str, there: str) -> bool:
    """Take the linger from this process's TCP connection between two addresses, "host:port" each.

    False: there is none, or this system does not list a process's files.
    """
    try:
        # The newest first: it is most often the one
        files = sorted((int(each.name) for each in os.scandir(_FILES)), reverse=True)
    except OSError:
        return False
    return any(_taken(file, here, there) for file in files)


def _taken(file: int, here: str, there: str) -> bool:
    try:
        # Nothing else may be opened again and closed: that would give up locks on a file.
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            return False
        with _same(file) as same:
            if same.type != socket.SOCK_STREAM or same.family not in (
                socket.AF_INET,
                socket.AF_INET6,
            ):
                return False
            if (_text(same.getsockname()), _text(same.getpeername())) != (here, there):
                return False
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _OFF)
    except OSError:  # closed meanwhile, or not connected
        return False
    return True


def _same(file: int) -> socket.socket:
    """Another name of the socket, which stays open when this one is closed."""
    duplicate = os.dup(file)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:  # the number is another file's by now
        os.close(duplicate)
        raise


def _text(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    return f"[{address[0]}]:{address[1]}" if len(address) == _IPV6 else f"{address[0]}:{address[1]}"
