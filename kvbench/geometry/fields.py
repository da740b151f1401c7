"""Typed access to a config: a missing or wrong field is one clear line naming field and file.

Null and absent are the same, as in transformers. Knows nothing about models.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from kvbench.errors import UsageError

MAX_CONFIG_BYTES = 16 * 2**20  # a config is some KiB; this is a weights file named by mistake
MAX_VALUE = 2**31  # no dimension of a model is near it; keeps sums printable


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields of one config, or of its `text_config`."""

    values: Mapping[str, object]
    label: str  # how errors name the file
    prefix: str = ""  # "text_config." for a nested one

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def error(self, name: str, problem: str) -> UsageError:
        """An error that names the file and the field."""
        return UsageError(f"{self.label}: {self.prefix}{name} {problem}")

    def integer(self, name: str, *, least: int = 1) -> int:
        """A whole number.

        Raises:
            UsageError: it is missing, not a whole number or out of range.
        """
        return self._whole(name, self._required(name, "a whole number"), least)

    def optional_integer(self, name: str, *, least: int = 1) -> int | None:
        """A whole number, or None where the config has none.

        Raises:
            UsageError: it is there and not a whole number, or out of range.
        """
        return self._whole(name, self.values[name], least) if self.has(name) else None

    def flag(self, name: str) -> bool:
        """True or false.

        Raises:
            UsageError: it is missing or neither.
        """
        value = self._required(name, "true or false")
        if not isinstance(value, bool):
            raise self.error(name, f"= {value!r}: expected true or false")
        return value

    def text(self, name: str) -> str:
        """A word.

        Raises:
            UsageError: it is missing or not text.
        """
        value = self._required(name, "text")
        if not isinstance(value, str):
            raise self.error(name, f"= {value!r}: expected text")
        return value

    def texts(self, name: str, length: int | None) -> list[str]:
        """A list of words, of any length if `length` is None.

        Raises:
            UsageError: it is missing, not such a list, or of another length.
        """
        items = self._list(name, length)
        for item in items:
            if not isinstance(item, str):
                raise self.error(name, f"holds {item!r}: expected text")
        return cast("list[str]", items)

    def integers(self, name: str, length: int | None = None) -> list[int]:
        """A list of whole numbers from 0, of any length if `length` is None.

        Raises:
            UsageError: it is missing, not such a list, or of another length.
        """
        return [self._whole(name, item, 0) for item in self._list(name, length)]

    def nested(self, name: str) -> "Fields":
        """The fields of an object inside the config.

        Raises:
            UsageError: it is missing or not an object.
        """
        value = self._required(name, "an object")
        if not isinstance(value, dict):
            raise self.error(name, "is not an object")
        return Fields(
            values=cast("dict[str, object]", value),
            label=self.label,
            prefix=f"{self.prefix}{name}.",
        )

    def inheriting(self, *names: str, parent: "Fields") -> "Fields":
        """These fields, with the `names` that are missing here taken from `parent`."""
        taken = {
            name: parent.values[name] for name in names if parent.has(name) and not self.has(name)
        }
        return Fields(values={**self.values, **taken}, label=self.label, prefix=self.prefix)

    def _required(self, name: str, expected: str) -> object:
        if not self.has(name):
            raise self.error(name, f"is missing: expected {expected}; kvbench guesses nothing")
        return self.values[name]

    def _whole(self, name: str, value: object, least: int) -> int:
        # A bool is an int to Python and never a dimension.
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MAX_VALUE:
            raise self.error(name, f"= {value!r}: expected a whole number, {least} to {MAX_VALUE}")
        return value

    def _list(self, name: str, length: int | None) -> list[object]:
        value = self._required(name, "a list")
        if not isinstance(value, list):
            raise self.error(name, f"= {value!r}: expected a list")
        items = cast("list[object]", value)
        if length is not None and len(items) != length:
            raise self.error(name, f"has {len(items)} entries: expected one for each of {length}")
        return items


def read_config(path: Path) -> Fields:
    """The fields of a config file.

    Raises:
        UsageError: the file cannot be read, is too large, or is not a JSON object.
    """
    try:
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise UsageError(
                f"{path} has {size} bytes: expected a config.json, at most {MAX_CONFIG_BYTES}"
            )
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    try:
        value = cast("object", msgspec.json.decode(data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not a model config: expected a JSON object")
    return Fields(values=cast("dict[str, object]", value), label=str(path))
