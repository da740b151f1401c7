"""From a model to bytes: which layers keep what, and how large a token, a block, a request is.

`load_geometry` reads a preset or a Hugging Face `config.json` into a `KVGeometry`. Imports no
torch, opens no network connection, and guesses nothing: a config that does not say is refused.
"""

from kvbench.geometry.load import load_geometry
from kvbench.geometry.presets import Preset, find_preset, presets
from kvbench.geometry.record import (
    CacheDtype,
    KVGeometry,
    LayerGroup,
    LayerKind,
    PageSize,
    StateTensor,
)

__all__ = [
    "CacheDtype",
    "KVGeometry",
    "LayerGroup",
    "LayerKind",
    "PageSize",
    "Preset",
    "StateTensor",
    "find_preset",
    "load_geometry",
    "presets",
]
