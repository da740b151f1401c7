"""Functions that are wrapped do what they did, and leave a slice."""

import threading
import time
from typing import get_args

import pytest

from kvbench.profile import slices
from kvbench.profile.recorder import Recorder
from kvbench.store import spans


class Drive:
    def read(self, size_bytes: int) -> int:
        time.sleep(0.002)
        return size_bytes

    def sync(self) -> None:
        raise OSError("no such drive")


def test_a_wrapped_function_returns_what_it_returns_and_its_time_is_kept() -> None:
    recorder = Recorder("p")
    before_ns = time.perf_counter_ns()
    assert recorder.wrapped(Drive().read, "read", "io")(4096) == 4096
    after_ns = time.perf_counter_ns()
    (track,), (found,) = recorder.taken()
    assert (found.name, found.category, found.size_bytes) == ("read", "io", 4096)
    assert before_ns <= found.start_ns <= found.end_ns - 2_000_000
    assert found.end_ns <= after_ns
    assert (track.process, track.thread) == ("p", "main")


def test_what_a_wrapped_function_raises_arrives_and_leaves_no_slice() -> None:
    recorder = Recorder("p")
    with pytest.raises(OSError, match="no such drive"):
        recorder.wrapped(Drive().sync, "sync", "io")()
    assert recorder.count() == 0


def test_each_thread_has_a_track_of_its_own_under_its_name_and_number() -> None:
    recorder = Recorder("p")
    read = recorder.wrapped(Drive().read, "read", "io")
    numbers: dict[str, int] = {}

    def work() -> None:
        for _ in range(3):
            read(1)
        numbers[threading.current_thread().name] = threading.get_native_id()

    threads = [threading.Thread(target=work, name=f"lane-{n}") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracks, slices = recorder.taken()
    assert {track.thread: track.tid for track in tracks} == numbers
    assert recorder.count() == len(slices) == 12
    for number in range(4):
        assert sum(each.track == number for each in slices) == 3


def test_methods_of_a_class_are_wrapped_only_inside_the_context() -> None:
    recorder = Recorder("p")
    plain = Drive.read
    drive = Drive()
    with recorder.watching(Drive, {"read": "io"}):
        assert drive.read(7) == 7
    assert Drive.read is plain
    drive.read(7)
    (found,) = recorder.taken()[1]
    assert (found.name, found.size_bytes) == ("read", 7)


def test_methods_of_one_object_are_wrapped_without_the_mark_of_a_private_one() -> None:
    class Body:
        def _operate(self, lane: int, n: int) -> None:
            pass

        def _move(self) -> None:
            pass

        def go(self) -> None:
            self._operate(0, 0)
            self._move()

    recorder = Recorder("p")
    body = Body()
    recorder.watch_object(body, {"_operate": "step", "_move": "copy"}, 512)
    body.go()
    Body().go()
    found = [(each.name, each.category, each.size_bytes) for each in recorder.taken()[1]]
    assert found == [("operate", "step", 512), ("move", "copy", 0)]


def test_a_closed_recorder_keeps_what_it_has_and_takes_no_more() -> None:
    recorder = Recorder("p")
    read = recorder.wrapped(Drive().read, "read", "io")
    read(1)
    recorder.close()
    assert read(2) == 2
    assert recorder.count() == 1


def test_a_store_can_note_its_requests_and_its_workers_time() -> None:
    recorder = Recorder("p")
    listener: spans.Spans = recorder
    listener.note("get", spans.REQUEST, 5, 90, 4096, 17)
    listener.note("read", spans.IO, 20, 80, 4096)
    listener.note("lookup", spans.REQUEST, 1, 2)
    (track,), found = recorder.taken()
    assert track.tid == threading.get_native_id()
    told = [(one.name, one.category, one.start_ns, one.end_ns, one.size_bytes) for one in found]
    assert told == [
        ("get", "request", 5, 90, 4096),
        ("read", "io", 20, 80, 4096),
        ("lookup", "request", 1, 2, 0),
    ]
    assert [one.request for one in found] == [17, 0, 0]


def test_the_words_that_a_store_may_use_are_those_that_the_summary_knows() -> None:
    words = set(get_args(spans.Category))
    assert words == {spans.IO, spans.COPY, spans.PYTHON, spans.WAIT, spans.REQUEST}
    assert words < set(slices.CATEGORIES)
    assert spans.REQUEST == slices.REQUEST
