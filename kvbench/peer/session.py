"""Zenoh's sessions: how they are opened, and what it says where they are not.

What is declared on one, and when it ends, is for `kvbench.peer.membership` and
`kvbench.peer.introducer`.

May import: kvbench.errors, kvbench.peer.{cluster,model}. zenoh, when one is opened.
"""

import json
import logging
import re
import threading
from typing import TYPE_CHECKING, Any

from kvbench.errors import TierUnavailableError
from kvbench.peer.cluster import Endpoint, MembershipConfig, free_port, zenoh_settings
from kvbench.peer.model import PeerError, Reason

if TYPE_CHECKING:
    from types import ModuleType

_log = logging.getLogger("kvbench.peer")
PORT_TRIES = 5
_OS_ERROR = re.compile(r"([^:\[\] ][^:\[\]]*) \(os error \d+\)")


def zenoh_module() -> "ModuleType":
    """Zenoh.

    Raises:
        TierUnavailableError: it is not installed.
    """
    try:
        import zenoh  # noqa: PLC0415  only where there are peers
    except ImportError as error:
        raise TierUnavailableError(
            "peers find each other by Zenoh, which is not installed: pip install 'kvbench[peer]'"
        ) from error
    return zenoh


def opened(settings: dict[str, object]) -> Any:  # noqa: ANN401  half of its methods have no types
    """A session of Zenoh's with these settings.

    Raises:
        zenoh.ZError: there can be none.
    """
    z = zenoh_module()
    config = z.Config()
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return z.open(config)


def close_within(session: Any, within_s: float) -> None:  # noqa: ANN401  as above
    """Close a session. What it is still connecting to holds that up: then it goes on behind."""
    closed = threading.Event()

    def close() -> None:
        try:
            session.close()
        except zenoh_module().ZError as error:
            _log.warning("a session of Zenoh's ended badly: %s", _of_system(error))
        finally:
            closed.set()

    threading.Thread(target=close, name="kvbench-peer-leaves", daemon=True).start()
    closed.wait(within_s)


def opened_listening(config: MembershipConfig) -> tuple[Any, list[Endpoint]]:
    """A session that listens, and where; a free port that somebody took meanwhile is tried anew.

    Raises:
        PeerError: an endpoint cannot be listened on.
    """
    z = zenoh_module()
    wanted = config.endpoints(config.listen)
    left = PORT_TRIES if any(not each.port for each in wanted) else 1
    while True:
        listen = [each if each.port else free_port(each) for each in wanted]
        left -= 1
        try:
            return opened(zenoh_settings(config, listen)), listen
        except z.ZError as error:
            if not left:
                where = ", ".join(map(str, listen))
                raise PeerError(
                    f"cannot listen on {where}: {_of_system(error)}", Reason.UNREACHABLE
                ) from error


def _of_system(error: Exception) -> str:
    """What the system said, of an error of Zenoh's, which names its own sources around it."""
    text = str(error)
    found = _OS_ERROR.search(text)
    return found[1] if found else text.partition(" at /")[0].splitlines()[0][:200]
