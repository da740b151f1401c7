"""Serving instances share KV blocks directly: see docs/peer.md."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from kvbench.peer.config import PeerConfig
    from kvbench.peer.service import PeerService


def connect(config: "PeerConfig | Path | str") -> "PeerService":
    """A peer that has started: `connect("peer.toml").store`; see `kvbench.peer.service.connect`."""
    # Not at the top: every module of this package would bring all the others.
    from kvbench.peer import service  # noqa: PLC0415

    return service.connect(config)
