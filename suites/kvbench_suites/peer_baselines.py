"""What blocks between processes are held against: a stream of iperf3, and a central Redis server.

Both are Debian's programs, started on loopback by the body and ended with it; neither keeps
anything. iperf3's bytes are its own and its count is believed; Redis's values are compared as
blocks of a peer are. Only the worker process imports this.
"""

import contextlib
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import IO, ClassVar, cast

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.measure.body import Context, Observed
from kvbench.peer.model import PeerError, Reason
from kvbench_suites.peer import PATHS
from kvbench_suites.peer_bodies import BlockBody
from kvbench_suites.peer_holder import key_of

START_S = 20.0
ANSWER_S = 30
INTERVAL_S = 0.1  # the shortest that iperf3 knows
# [  5]   0.10-0.20   sec   540 MBytes  45262519 Kbits/sec    0   3.12 MBytes
_LINE = re.compile(rb"\]\s+([\d.]+)-([\d.]+)\s+sec\s.*?([\d.]+) Kbits/sec")
BYTES_PER_KBIT = 125
LONGEST_S = 86_400


class Program:
    """A server or client of somebody else, which is killed at the end."""

    def __init__(self, command: list[str]) -> None:
        self._name = command[0]
        if shutil.which("setpriv") is not None:  # of util-linux: it ends with who started it
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said
        )

    @property
    def stdout(self) -> IO[bytes]:
        """What it prints."""
        return cast("IO[bytes]", self.process.stdout)

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Until it is.

        Raises:
            TierUnavailableError: it ended, or takes too long.
        """
        until_s = time.monotonic() + START_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > until_s:
                raise TierUnavailableError(f"{self._name} does not start: {self.words()}")
            time.sleep(0.01)

    def words(self) -> str:
        """The last line of what it complained of."""
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        return lines[-1].decode(errors="replace") if lines else "it says nothing"

    def close(self) -> None:
        """End it; once more is no error."""
        self.process.kill()
        self.process.wait()
        self.stdout.close()
        self._said.close()


def free_port() -> int:
    """A port of loopback that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def connected(port: int) -> socket.socket | None:
    """A connection to a port of loopback; None if nobody listens."""
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
    except OSError:
        return None


class Iperf3:
    """One stream that runs all the time; a step is the next tenth of a second of it."""

    clock: ClassVar[str] = "host"
    _server: Program | None = None
    _client: Program | None = None

    def set_up(self, context: Context) -> None:
        """Start both ends."""
        port = free_port()
        at = ["-p", str(port), "--forceflush"]
        self._server = Program(["iperf3", "-s", "-B", "127.0.0.1", "-1", "-i", "0", *at])
        server = self._server

        def listens() -> bool:
            return b"listening" in server.stdout.readline()

        self._server.wait_for(listens)
        command = ["iperf3", "-c", "127.0.0.1", "-t", str(LONGEST_S), "-i", str(INTERVAL_S)]
        command += ["-f", "k", "-l", str(context.count("write_bytes")), *at]
        self._client = Program(command)
        self.step()

    def step(self) -> int:
        """Wait for the next interval; the bytes that iperf3 says it moved in it.

        Raises:
            PeerError: iperf3 has ended.
        """
        client = self._client
        if client is None:
            raise AssertionError("iperf3 was not started")
        for line in client.stdout:
            found = _LINE.search(line)
            if found:
                seconds = float(found[2]) - float(found[1])
                return round(float(found[3]) * BYTES_PER_KBIT * seconds)
        raise PeerError(f"iperf3 ended: {client.words()}", Reason.UNREACHABLE)

    def verify(self) -> int:
        """Nobody knows what iperf3 sends, so nothing is compared."""
        return 0

    def observed(self) -> Observed:
        """What was started."""
        return Observed(path=PATHS["iperf3"], evidence={"checked": False})

    def tear_down(self) -> None:
        """End both."""
        for program in (self._client, self._server):
            if program is not None:
                program.close()


class RedisGet(BlockBody):
    """Values of a Redis server, got by the batch: all GETs are sent, then the values are read.

    The client is as fast as Python allows: a value is received where it is to stay, by one call,
    and what stands around values by another.
    """

    _server: Program | None = None
    _sock: socket.socket | None = None

    def set_up(self, context: Context) -> None:
        """Start a server that keeps nothing on a drive, and fill it."""
        self.plan_blocks(context)
        self.make_rows()
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--daemonize", "no", "--dir", tempfile.gettempdir()]
        command += ["--maxmemory", "0", "--loglevel", "warning"]
        self._server = Program(command)

        def listens() -> bool:
            self._sock = self._sock or connected(port)
            return self._sock is not None

        self._server.wait_for(listens)
        sock = self._connection
        sock.settimeout(None)  # MSG_WAITALL is for sockets that block
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_S, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        size = self._layout.block_bytes
        self._head = b"$%d\r\n" % size
        self._around = bytearray(2 + len(self._head))  # the end of one value, the head of the next
        row = self._rows[0][0]
        for number in range(self.blocks):
            self._pattern.fill(row, number * size)
            sock.sendall(_command(b"SET", key_of(context.seed, number), row.tobytes()))
            if (said := sock.recv(5, socket.MSG_WAITALL)) != b"+OK\r\n":
                raise TierUnavailableError(f"Redis does not keep a block: {said!r}")
        gets = [
            [
                b"".join(_command(b"GET", key_of(context.seed, number)) for number in numbers)
                for numbers in requests
            ]
            for requests in self._requests
        ]
        self._gets = gets[0]

    def operate(self, lane: int, n: int) -> None:
        """Get a batch, and look whether it came."""
        sock, rows, around = self._connection, self._rows[lane], memoryview(self._around)
        sock.sendall(self._gets[n % len(self._gets)])
        self._receive(sock, around[2:])
        for at, row in enumerate(rows):
            if bytes(around[2:]) != self._head:
                raise CorruptDataError(f"Redis answers {bytes(around[2:])!r} for a value it has")
            self._receive(sock, row.data)
            self._receive(sock, around if at + 1 < len(rows) else around[:2])
        self.check_stamps(self.numbers(lane, n), rows)

    def observed(self) -> Observed:
        """What was started."""
        return Observed(path=PATHS["redis_get"], evidence={"client": "kvbench's own: RESP2"})

    def tear_down(self) -> None:
        """End the server."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.close()
        if self._server is not None:
            self._server.close()

    @property
    def _connection(self) -> socket.socket:
        if self._sock is None:
            raise AssertionError("Redis was not started")
        return self._sock

    @staticmethod
    def _receive(sock: socket.socket, into: memoryview) -> None:
        try:
            size = sock.recv_into(into, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            size = 0
        if size != len(into):
            text = f"Redis sent {size} of {len(into)} bytes in {ANSWER_S} s"
            raise PeerError(text, Reason.UNREACHABLE)


def _command(*words: bytes) -> bytes:
    """As Redis takes it: RESP2, an array of bulk strings."""
    said = [b"*%d\r\n" % len(words)]
    for word in words:
        said += [b"$%d\r\n" % len(word), word, b"\r\n"]
    return b"".join(said)
