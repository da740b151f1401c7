"""A preset's name or a config file's path becomes a `KVGeometry`.

May import: the rest of this package. Opens one file, no network connection.
"""

from pathlib import Path

from kvbench.errors import UsageError
from kvbench.geometry.dtypes import parse_cache_dtype
from kvbench.geometry.fields import Fields, read_config
from kvbench.geometry.layers import read_layers
from kvbench.geometry.presets import find_preset, presets
from kvbench.geometry.record import CacheDtype, KVGeometry
from kvbench.geometry.shard import Layout, Model, make_geometry

CONFIG_NAME = "config.json"


def load_geometry(
    model: str | Path,
    *,
    cache_dtype: CacheDtype | str = CacheDtype.BF16,
    block_size: int = 16,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
) -> KVGeometry:
    """The KV cache of a model.

    Args:
        model: a preset's name, a repository it answers to, or the path of a Hugging Face
            `config.json` or of a directory that holds one. A preset's name wins over a file of
            the same name: write `./name` for the file.
        cache_dtype: how K and V are stored.
        block_size: tokens in a block.
        tensor_parallel: ranks that share each layer.
        pipeline_parallel: ranks that share the layers.

    Raises:
        UsageError: the model is not known, its config cannot be read or lacks a field, or it
            cannot be divided or stored so.
    """
    layout = Layout(
        cache_dtype=parse_cache_dtype(cache_dtype),
        block_size=block_size,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
    )
    path = _path(model)
    if path is None:
        name = find_preset(str(model))
        return make_geometry(_model(presets()[name].fields(name), name, "preset"), layout)
    return make_geometry(_model(read_config(path), _name(path), path.name), layout)


def _path(model: str | Path) -> Path | None:
    """The config file that `model` names, or None if it is a preset's name."""
    if isinstance(model, str) and model.strip().lower() in presets():
        return None
    path = Path(model)
    try:
        if path.is_dir():
            path /= CONFIG_NAME
            if not path.is_file():
                raise UsageError(f"{path.parent} holds no {CONFIG_NAME}")
        elif not path.exists():
            if isinstance(model, Path) or _looks_like_path(model):
                raise UsageError(f"cannot read {path}: no such file or directory")
            return None
    except (OSError, ValueError) as error:  # a name too long, or with a null byte
        raise UsageError(f"{str(model)[:80]!r} is not a model: {_reason(error)}") from None
    if not path.is_file():
        raise UsageError(f"{path} is not a file: expected a model's {CONFIG_NAME}")
    return path


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _looks_like_path(text: str) -> bool:
    return text.endswith(".json") or text.startswith((".", "/", "~"))


def _name(path: Path) -> str:
    """What the user would call the model: the directory's name, or the file's if it says more.

    Never the path, and not a home directory's name, for reports are shared.
    """
    if path.name != CONFIG_NAME:
        return path.stem
    directory = path.absolute().parent
    return CONFIG_NAME if directory == Path.home() or not directory.name else directory.name


def _model(fields: Fields, name: str, source: str) -> Model:
    text = fields
    if fields.has("text_config") and not fields.has("num_hidden_layers"):
        text = fields.nested("text_config")  # a multimodal model: only its language part caches
        text = text.inheriting("dtype", "torch_dtype", parent=fields)
    model_type = text.text("model_type")
    return Model(
        name=name,
        source=source,
        architecture=model_type,
        attention_heads=text.integer("num_attention_heads"),
        layers=read_layers(model_type, text),
    )
