"""A proxy before a holder that spoils what passes: slows it, holds it up, or turns bits over.

For the suite `peer-faults`. It stands in the holder's process, and what the holder says goes
through it; it knows nothing of the protocol.
"""

import contextlib
import socket
import threading

PASS, HOLD, SLOW, FLIP = "pass", "hold", "slow", "flip"
MODES = (PASS, HOLD, SLOW, FLIP)
PIECE_BYTES = 256 * 1024
SLOW_BYTES = 1024  # of a piece, and how long until the next one
SLOW_S = 0.02
FLIPPED_FROM_BYTES = 16 * 1024  # the middle of a larger piece is payload, not a message


class Proxy:
    """Passes connections on to `endpoint`, as its `mode` says; `endpoint` of its own is its port.

    `hold` is a partition as TCP sees it: nothing arrives, in either direction, and once it is over
    what was sent goes on. A connection can be made meanwhile; nobody answers on it.
    """

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self._holder = (host, int(port))
        self._changed = threading.Condition()
        self._mode = PASS
        self.flipped = 0  # bits so far
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    @property
    def mode(self) -> str:
        """What becomes of what passes."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        if mode not in MODES:
            raise ValueError(f"a proxy of mode {mode!r}: one of {', '.join(MODES)}")
        with self._changed:
            self._mode = mode
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more connections."""
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(self._holder)
            except OSError:
                return
            for one, two, back in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=(one, two, back), daemon=True).start()

    def _pass(self, one: socket.socket, two: socket.socket, back: bool) -> None:
        two.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        piece = bytearray(PIECE_BYTES)
        with contextlib.suppress(OSError):
            while size := one.recv_into(piece):
                self._send(two, memoryview(piece)[:size], back=back)
        for sock in (one, two):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _send(self, two: socket.socket, piece: memoryview, *, back: bool) -> None:
        if back and self._mode == FLIP and len(piece) >= FLIPPED_FROM_BYTES:
            piece[len(piece) // 2] ^= 1
            self.flipped += 1
        while len(piece):
            with self._changed:
                self._changed.wait_for(lambda: self._mode != HOLD)
                if back and self._mode == SLOW:
                    self._changed.wait_for(lambda: self._mode != SLOW, SLOW_S)
            size = SLOW_BYTES if back and self._mode == SLOW else len(piece)
            two.sendall(piece[:size])
            piece = piece[size:]
