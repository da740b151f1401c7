"""Many transfers of files in one call: Linux's asynchronous I/O (io_submit), for O_DIRECT.

A worker that reads 64 blocks from 64 places by `preadv` goes 64 times through the interpreter and
has one of them at the drive. Here it hands all of them over and sleeps until the last has come.
The calls are the kernel's own (io_setup(2)), since no library for them comes with Python; structs
and numbers are those of linux/aio_abi.h. Where the kernel has none left to give (fs.aio-max-nr), or
refuses, `Queue.run` is not to be had, and the caller moves one transfer after the other.

May import: nothing of kvbench. The caller keeps the buffers alive, and checks what came.
"""

import ctypes
import errno
import os
import platform
import struct
import threading
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# io_setup, io_destroy, io_submit, io_getevents.
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
_PREADV, _PWRITEV = 7, 8
# data; key, flags; opcode, priority, file; buffers, their number; offset; reserved; flags, eventfd
_IOCB = struct.Struct("<QIIHhIQQqQII")
_EVENT = struct.Struct("<QQqq")  # data, iocb, result, second result
DEPTH = 256  # transfers of one call; more go in turns

_libc = ctypes.CDLL(None, use_errno=True)


class Transfer(NamedTuple):
    """Buffers of uint8, one after the other, and a place in an open file."""

    fd: int
    buffers: Sequence[Bytes]
    offset_bytes: int


class Queue:
    """The kernel's side of one thread's transfers.

    Raises:
        OSError: the kernel has none to give.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self._context = ctypes.c_ulong(0)
        self._syscall = _libc.syscall  # which a module that is being torn down has no more
        numbers = _NUMBERS.get(platform.machine())
        if numbers is None or struct.calcsize("P") != 8:  # noqa: PLR2004  bytes of a pointer
            raise OSError(errno.ENOSYS, f"no numbers of these calls for {platform.machine()}")
        self._setup, self._destroy, self._submit, self._getevents = numbers
        self.depth = depth
        self._events = bytearray(depth * _EVENT.size)
        self._into = (ctypes.c_char * len(self._events)).from_buffer(self._events)
        self._call(self._setup, ctypes.c_ulong(depth), ctypes.byref(self._context))

    def run(self, verb: str, transfers: Sequence[Transfer]) -> list[int]:
        """Do all of them, "read" or "write"; bytes moved by each, or the negative errno."""
        results: list[int] = []
        for at in range(0, len(transfers), self.depth):
            results += self._run(verb, transfers[at : at + self.depth])
        return results

    def close(self) -> None:
        """Give it back; waits for what is under way."""
        if self._context.value:
            self._syscall(ctypes.c_long(self._destroy), self._context)
            self._context.value = 0

    def __del__(self) -> None:
        self.close()

    def _run(self, verb: str, transfers: Sequence[Transfer]) -> list[int]:
        count = len(transfers)
        vectors: array[int] = array("Q")
        for each in transfers:
            for buffer in each.buffers:
                vectors.append(buffer.__array_interface__["data"][0])
                vectors.append(buffer.nbytes)
        blocks = bytearray(count * _IOCB.size)
        address = vectors.buffer_info()[0]
        opcode = _PREADV if verb == "read" else _PWRITEV
        for at, each in enumerate(transfers):
            number = len(each.buffers)
            fields = (at, 0, 0, opcode, 0, each.fd, address, number, each.offset_bytes, 0, 0, 0)
            _IOCB.pack_into(blocks, at * _IOCB.size, *fields)
            address += 16 * number
        first = ctypes.addressof(ctypes.c_char.from_buffer(blocks))
        pointers = array("Q", range(first, first + len(blocks), _IOCB.size))
        results = [-errno.EIO] * count
        self._submit_all(pointers, results)
        return results

    def _submit_all(self, pointers: "array[int]", results: list[int]) -> None:
        """Submit, wait for all that were taken; one that is refused has its errno at once."""
        at, taken, count = 0, 0, len(pointers)
        where = pointers.buffer_info()[0]
        while at < count:
            submitted = self._syscall(
                ctypes.c_long(self._submit),
                self._context,
                ctypes.c_long(count - at),
                ctypes.c_void_p(where + 8 * at),
            )
            if submitted > 0:
                at, taken = at + submitted, taken + submitted
                continue
            number = ctypes.get_errno()
            if number == errno.EAGAIN and taken:  # no room: some have to end first
                taken -= self._reap(taken, results)
                continue
            results[at] = -number
            at += 1
        while taken:
            taken -= self._reap(taken, results)

    def _reap(self, count: int, results: list[int]) -> int:
        """Wait until so many have ended, and note what became of them."""
        try:
            ended = self._call(
                self._getevents,
                self._context,
                ctypes.c_long(count),
                ctypes.c_long(count),
                self._into,
                None,
            )
        except InterruptedError:
            return 0
        for data, _, result, _ in _EVENT.iter_unpack(self._events[: ended * _EVENT.size]):
            results[data] = result
        return ended

    def _call(self, number: int, *arguments: object) -> int:
        answer: int = self._syscall(ctypes.c_long(number), *arguments)
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return answer


_own = threading.local()


def queue() -> Queue | None:
    """This thread's queue; None where there is none."""
    try:
        found: Queue | None = _own.queue
    except AttributeError:
        try:
            found = Queue()
        except OSError:
            found = None
        _own.queue = found
    return found
