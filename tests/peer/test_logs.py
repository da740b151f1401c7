"""What the log of a peer says to a machine."""

import json
import logging
import shlex

from kvbench.peer.logs import Lines, happened


def line(form: Lines, message: str, *values: object, **extra: object) -> str:
    record = logging.LogRecord("kvbench.peer", logging.WARNING, "", 1, message, values, None)
    for name, value in extra.items():
        setattr(record, name, value)
    return form.format(record)


def test_an_event_has_its_values_as_fields_of_their_types() -> None:
    said = json.loads(
        line(
            Lines("a", as_json=True),
            "peer %s: %d blocks came damaged",
            "b c",
            3,
            **happened("damaged", other="b c", blocks=3),
        )
    )
    assert (said["event"], said["other"], said["blocks"]) == ("damaged", "b c", 3)
    assert (said["peer"], said["level"], said["msg"]) == (
        "a",
        "warning",
        "peer b c: 3 blocks came damaged",
    )


def test_as_text_an_event_is_one_line_of_key_and_value_whatever_is_in_it() -> None:
    text = line(
        Lines("a", as_json=False), "it\nbroke", **happened("dropped", why='said "no"\nand = left')
    )
    assert "\n" not in text
    said = dict(word.split("=", 1) for word in shlex.split(text, posix=False) if "=" in word)
    assert said["event"] == "dropped"
    assert json.loads(text[text.index("why=") + 4 : text.index(" msg=")]) == 'said "no"\nand = left'


def test_a_record_that_says_no_event_has_none() -> None:
    assert "event" not in json.loads(line(Lines("a", as_json=True), "plain"))
