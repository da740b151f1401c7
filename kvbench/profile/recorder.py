"""Writes down when wrapped functions began and ended, on which thread.

Wraps from outside: what is not wrapped runs as ever, and without a recorder nothing is wrapped.
Each thread appends to a list of its own, so threads do not wait for each other here. A wrapped
call costs about a microsecond more. Computes nothing.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import ParamSpec, TypeVar

from kvbench.profile.slices import Slice, Track

_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")
_Noted = tuple[str, str, int, int, int, int]  # name, category, start, end, bytes, request


class Recorder:
    """Slices of all threads of this process, until it is closed; also the spans of stores."""

    def __init__(self, process: str) -> None:
        self._process = process
        self._open = True
        self._lock = threading.Lock()
        self._own = threading.local()
        self._notes: list[tuple[Track, list[_Noted]]] = []

    def note(
        self,
        name: str,
        category: str,
        start_ns: int,
        end_ns: int,
        size_bytes: int = 0,
        request: int = 0,
    ) -> None:
        """One slice of the calling thread, or of a request."""
        if self._open:
            self._list().append((name, category, start_ns, end_ns, size_bytes, request))

    def wrapped(
        self,
        function: Callable[_Arguments, _Returned],
        name: str,
        category: str,
        size_bytes: int | None = None,
    ) -> Callable[_Arguments, _Returned]:
        """The function, each call of it a slice.

        A call moves `size_bytes`; if that is None, what it returns if that is a number. A call
        that raises leaves no slice.
        """
        now_ns = time.perf_counter_ns

        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
            start_ns = now_ns()
            result = function(*args, **kwargs)
            end_ns = now_ns()
            moved = size_bytes
            if moved is None:
                moved = result if isinstance(result, int) else 0
            self.note(name, category, start_ns, end_ns, moved)
            return result

        return call

    @contextlib.contextmanager
    def watching(self, owner: type, categories: Mapping[str, str]) -> Generator[None]:
        """Wrap these methods of a class, by name, for all its objects; as they were afterwards."""
        before = {name: vars(owner)[name] for name in categories}
        for name, category in categories.items():
            setattr(owner, name, self.wrapped(before[name], _shown(name), category))
        try:
            yield
        finally:
            for name, method in before.items():
                setattr(owner, name, method)

    def watch_object(self, each: object, categories: Mapping[str, str], size_bytes: int) -> None:
        """Wrap these methods of one object, for good; a step moves `size_bytes`."""
        for name, category in categories.items():
            size = size_bytes if category == "step" else 0
            setattr(each, name, self.wrapped(getattr(each, name), _shown(name), category, size))

    def count(self) -> int:
        """Slices so far."""
        return sum(len(notes) for _, notes in self._notes)

    def close(self) -> None:
        """Record no more."""
        self._open = False

    def taken(self) -> tuple[list[Track], list[Slice]]:
        """What was recorded; a slice's track is its place in the list of tracks."""
        slices = [
            Slice(number, name, category, start_ns, end_ns, size_bytes, request=request)
            for number, (_, notes) in enumerate(self._notes)
            for name, category, start_ns, end_ns, size_bytes, request in list(notes)
        ]
        return [track for track, _ in self._notes], slices

    def _list(self) -> list[_Noted]:
        notes: list[_Noted] | None = getattr(self._own, "notes", None)
        if notes is None:
            notes = self._own.notes = []
            thread = threading.current_thread()
            track = Track(
                process=self._process,
                thread="main" if thread is threading.main_thread() else thread.name,
                pid=os.getpid(),
                tid=threading.get_native_id(),
            )
            with self._lock:
                self._notes.append((track, notes))
        return notes


def _shown(method: str) -> str:
    """What a method is called on a timeline: without the mark of a private one."""
    return method.lstrip("_")
