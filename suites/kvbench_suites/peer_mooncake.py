"""One end of a transfer by Mooncake's engine, in a process and an environment of its own.

`PYTHON peer_mooncake.py FD SIZE_BYTES`: maps the memory of an inherited memfd, registers it, says
where it is as a line of JSON, and then reads for whoever writes lines: a segment, addresses here,
addresses there, and a size. Needs only the package with `mooncake.engine`; nothing of kvbench.
"""

import importlib
import json
import mmap
import os
import signal
import sys
from ctypes import CDLL, addressof, c_char

HOST = "127.0.0.1"
PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    """Serve until standard input ends."""
    CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # with who started it, also standing still
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine talks on standard output

    def say(said: object) -> None:
        out.write(json.dumps(said) + "\n")
        out.flush()

    try:
        mooncake = importlib.import_module("mooncake.engine")
        memory = mmap.mmap(int(sys.argv[1]), int(sys.argv[2]))
        address = addressof(c_char.from_buffer(memory))
        engine = mooncake.TransferEngine()
        status = engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "")
        status = status or engine.register_memory(address, len(memory))
    except (ImportError, OSError, RuntimeError) as error:
        say({"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    if status:
        say({"error": f"the engine does not start: {status}"})
        os._exit(1)
    say({"segment": f"{HOST}:{engine.get_rpc_port()}", "address": address})
    for line in sys.stdin:
        segment, here, there, size = json.loads(line)
        sizes = [size] * len(here)
        say(engine.batch_transfer_sync_read(segment, here, there, sizes))
    os._exit(0)  # its threads do not end by themselves


if __name__ == "__main__":
    main()
