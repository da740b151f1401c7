"""Starts one worker process for each contestant and hands it rounds.

A worker lives through all rounds of one block size, because importing its store takes longer than
a round. What its libraries print goes to a file, whose end is the reason when a worker ends early.
"""

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from benchmarks.store_against_others.contestants import Contestant
from benchmarks.store_against_others.protocol import Round

LIMIT_S = 600.0  # then the worker is killed: a store may hang
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "LMCACHE_LOG_LEVEL": "ERROR"}  # read when imported


class WorkerError(Exception):
    """A worker ended early; the text is the last line that it printed."""


class Worker:
    """The process of one contestant, a context manager."""

    def __init__(
        self, contestant: Contestant, python: Path, log: Path, work: Sequence[str]
    ) -> None:
        """`work` are the options of `protocol.serve` that are the same for all."""
        self._log = log
        receiving, sending = os.pipe()
        command = [
            *(str(python), "-m"),
            f"benchmarks.store_against_others.{contestant.environment}_worker",
            *("--answers", str(sending), "--options", json.dumps(contestant.options), *work),
        ]
        root = Path(__file__).parents[2]
        with log.open("wb") as printed:
            self._process = subprocess.Popen(
                command,
                cwd=root,  # where `benchmarks` is found: `-m` puts it on the path
                env=os.environ | QUIET,
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                pass_fds=[sending],
                text=True,
            )
        os.close(sending)
        self._answers = os.fdopen(receiving, encoding="utf-8")

    def wait_until_ready(self) -> None:
        """Until it has imported its store.

        Raises:
            WorkerError: it ended, or took longer than LIMIT_S.
        """
        self._answer()

    def run_round(self, folder: Path, seed: int) -> Round:
        """One round in an empty folder.

        Raises:
            WorkerError: it ended, or took longer than LIMIT_S.
        """
        assert self._process.stdin is not None
        request = json.dumps({"folder": str(folder), "seed": seed})
        with contextlib.suppress(BrokenPipeError):  # it has ended: so has its side of the answers
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        return msgspec.json.decode(self._answer(), type=Round)

    def _answer(self) -> str:
        timer = threading.Timer(LIMIT_S, self._process.kill)
        timer.start()
        try:
            answer = self._answers.readline()
        finally:
            timer.cancel()
        if not answer:
            raise WorkerError(self._last_words())
        return answer

    def _last_words(self) -> str:
        printed = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        lines = [line.strip() for line in printed if line.strip()]
        return lines[-1] if lines else f"exit status {self._process.wait()}, nothing printed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """It ends when its input does."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, with a request unread
            self._process.stdin.close()
        try:
            self._process.wait(30.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()
