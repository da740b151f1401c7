"""The log of a peer as lines that a machine can read: key=value, or one JSON object a line.

Only who owns the process sets it up, as `kvbench peer serve` does; the library only logs. What an
operator would count or be woken by has an `event` and its values as fields (`happened`) beside the
text.

May import nothing of kvbench.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

MOST_MESSAGE = 4096  # characters; what another peer says may be long
HANDLER = "kvbench-peer"
FIELDS = "kvbench_fields"  # the attribute of a record that holds them


def happened(event: str, **values: str | float) -> dict[str, dict[str, str | float]]:
    """What happened in a word, and the values that belong to it: `extra` of a logging call."""
    return {FIELDS: {"event": event, **values}}


class Lines(logging.Formatter):
    """One line for each record, whatever is in it."""

    def __init__(self, peer: str, *, as_json: bool) -> None:
        super().__init__()
        self._peer = peer
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}: {self.formatException(record.exc_info)}"
        said: dict[str, str | float] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "peer": self._peer,
            **getattr(record, FIELDS, {}),
            "msg": text[:MOST_MESSAGE],
        }
        if self._json:
            return json.dumps(said)
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in said.items())


def set_up(peer: str, form: Literal["text", "json"], level: str) -> None:
    """Send what kvbench logs, from this level on, to standard error; once more replaces it."""
    logger = logging.getLogger("kvbench")
    for old in [each for each in logger.handlers if each.name == HANDLER]:
        logger.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.name = HANDLER
    handler.setFormatter(Lines(peer, as_json=form == "json"))
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def _quoted(text: str) -> str:
    plain = text.isascii() and text.isprintable() and not set(text) & set(' "=')
    return text if plain and text else json.dumps(text)
