"""Models known by name: the config facts in `kvbench/data/models.json`, and finding one.

A preset is the part of a published `config.json` that decides the cache, so that presets and
files go through one parser. Nothing is downloaded.
"""

import difflib
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from kvbench.errors import UsageError
from kvbench.geometry.fields import Fields


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """One model: the repositories whose config has these facts, and where they were read."""

    repositories: list[str]
    source: str
    config: dict[str, Any]

    def fields(self, name: str) -> Fields:
        """The config, for the parser."""
        return Fields(values=self.config, label=f"preset {name}")


@cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    data = files("kvbench.data").joinpath("models.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, Preset])


def find_preset(text: str) -> str:
    """The name of the preset that `text` means, upper and lower case being the same.

    `text` is a preset's name, a repository (`org/model`), or either part of both that fits only
    one preset.

    Raises:
        UsageError: no preset fits, or more than one; the message lists the nearest.
    """
    wanted = text.strip().lower()
    if wanted in presets():
        return wanted
    known = {name: {r.lower() for r in preset.repositories} for name, preset in presets().items()}
    matches = [name for name, repositories in known.items() if wanted in repositories]
    if not matches:
        # The same model under another organisation, such as a quantised copy.
        model = wanted.rpartition("/")[2]
        matches = [
            name
            for name, repositories in known.items()
            if model == name or model in {r.rpartition("/")[2] for r in repositories}
        ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"{text!r} fits {' and '.join(matches)}: name one of them")
    raise UsageError(f"{text!r} is neither a file, a directory nor a known model: {_near(wanted)}")


def _near(wanted: str) -> str:
    model = wanted.rpartition("/")[2]
    near = [name for name in presets() if model and name.startswith(model)]
    near = near or difflib.get_close_matches(model, list(presets()), n=3, cutoff=0.45)
    if near:
        return f"did you mean {', '.join(near)}? Or give a path to its config.json"
    return f"give a path to its config.json, or one of {', '.join(presets())}"
