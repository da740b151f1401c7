"""`kvbench plan`: how large a model's KV cache is, how much of it fits, and whether to load it.

Computes and looks; measures nothing and writes nothing. JSON has base units only.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kvbench.geometry import KVGeometry
    from kvbench.machine import Machine

REQUEST_TOKENS = (1024, 8192, 32_768, 131_072)
MAX_TOKENS = 10**9


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What one sequence of `tokens` tokens keeps."""

    tokens: int
    blocks: int
    bytes: int  # on one rank
    model_bytes: int  # on all ranks, nothing counted twice


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What fits in a tier of this machine. A missing figure is None and `note` says why."""

    tier: str
    space_bytes: int | None
    note: str
    longest_sequence_tokens: int | None  # None with a space: any length fits, all layers windowed
    requests: dict[str, int] | None  # tokens of a request → how many fit


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the command says, as it is printed with --json."""

    formula: str
    model: Any  # KVGeometry; its import is late
    requests: list[Request]
    tiers: list[Room]
    loads: Any = None  # Loads, where a report or hardware was named


def plan(  # noqa: PLR0913  the options of the command are its interface
    model: Annotated[
        str, typer.Option(help="Preset, or the path of a Hugging Face config.json.")
    ] = "llama-3.1-8b",
    *,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TOKENS,
            help="Length of a request in tokens.",
            show_default="1024, 8192, 32768 and 131072",
        ),
    ] = None,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 1,
    pp: Annotated[int, typer.Option(min=1, help="Pipeline-parallel ranks.")] = 1,
    kv_dtype: Annotated[
        str, typer.Option(help="Cache dtype: fp16, bf16, fp8, fp8_ds_mla, int8 or int4.")
    ] = "bf16",
    block_size: Annotated[int, typer.Option(min=1, help="Tokens in a block.")] = 16,
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            help="Directory on the drive whose free space counts.",
            show_default="the current directory",
        ),
    ] = Path(),
    report: Annotated[
        Path | None,
        typer.Option(help="A report: time to load a prefix from its tiers, or to recompute it."),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="The same for named hardware (h100, b200, mi300x, ...); with --report, what it "
            "computes with; mooncake-fast25 or llama2-70b-… are measured times of computing."
        ),
    ] = None,
    weights: Annotated[str, typer.Option(help="Weights: bf16, fp8, fp4 or int4.")] = "bf16",
    drives: Annotated[int, typer.Option(min=1, help="Drives (PM9A3) of named hardware.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """Show a model's KV cache in bytes, and how many tokens fit in each tier of this machine.

    With --report or --hardware also whether a cached prefix is loaded or recomputed faster, from
    which length on, and how both at once would share it.
    """
    # Not at the top: --help needs none of it.
    from kvbench.cli.plan_loads import Asked, make_loads
    from kvbench.cli.report import stdout_console
    from kvbench.geometry import load_geometry
    from kvbench.machine import probe_machine

    geometry = load_geometry(
        model,
        cache_dtype=kv_dtype,
        block_size=block_size,
        tensor_parallel=tp,
        pipeline_parallel=pp,
    )
    lengths = REQUEST_TOKENS if tokens is None else (tokens,)
    machine = probe_machine(directory)
    document = make_document(geometry, machine, lengths)
    asked = Asked(model=model, report=report, hardware=hardware, weights=weights, drives=drives)
    if asked.any:
        loads = make_loads(geometry, machine, asked, lengths)
        document = msgspec.structs.replace(document, loads=loads)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        _print(stdout_console(), geometry, document)


def make_document(geometry: "KVGeometry", machine: "Machine", lengths: tuple[int, ...]) -> Document:
    """The cache of requests of these `lengths`, and what fits on this machine."""
    storage = machine.storage
    gpus = machine.visible_gpus
    hbm = gpus[0].memory_bytes if gpus else None
    drive = "no directory was named"
    if storage is not None:
        drive = f"free in {storage.directory} ({storage.filesystem}, {storage.device_kind})"
    return Document(
        formula=geometry.formula(),
        model=geometry,
        requests=[
            Request(
                tokens=length,
                blocks=geometry.blocks_for(length),
                bytes=geometry.bytes_for(length),
                model_bytes=geometry.model_bytes_for(length),
            )
            for length in lengths
        ],
        tiers=[
            _room(
                geometry,
                "hbm",
                hbm,
                f"all of one {gpus[0].name}, weights not taken off"
                if gpus
                else machine.gpu_reason or "no GPU",
                lengths,
            ),
            _room(geometry, "dram", machine.usable_memory_bytes, "available now", lengths),
            _room(geometry, "nvme", storage.free_bytes if storage else None, drive, lengths),
        ],
    )


def _room(
    geometry: "KVGeometry",
    tier: str,
    space_bytes: int | None,
    note: str,
    lengths: tuple[int, ...],
) -> Room:
    if space_bytes is None:
        return Room(
            tier=tier, space_bytes=None, note=note, longest_sequence_tokens=None, requests=None
        )
    return Room(
        tier=tier,
        space_bytes=space_bytes,
        note=note,
        longest_sequence_tokens=geometry.tokens_in(space_bytes),
        requests={
            str(length): space_bytes // _whole_blocks(geometry, length) for length in lengths
        },
    )


def _whole_blocks(geometry: "KVGeometry", tokens: int) -> int:
    """Bytes that an engine sets aside for a request: its last block is whole too."""
    return geometry.bytes_for(geometry.blocks_for(tokens) * geometry.block_size)


def _print(console: "Console", geometry: "KVGeometry", document: Document) -> None:
    from rich.text import Text

    def line(text: str) -> None:
        # What this terminal cannot show becomes "?", not an error.
        shown = text.encode(console.encoding, "replace").decode(console.encoding)
        console.print(Text(shown), soft_wrap=True)

    line(f"{geometry.name}: {geometry.architecture}, from {geometry.source}")
    line(f"{geometry.cache_dtype}: {geometry.cache_dtype_note}")
    line("")
    for text in document.formula.splitlines():
        line(text)
    console.print(_sizes(geometry, document.requests))
    if _is_split(geometry):
        line(_rank_note(geometry))
    console.print(_rooms(document))
    for room in document.tiers:
        line(f"{room.tier}: {room.note}")
    line("Each tier alone, in whole blocks; tokens are those of one sequence.")
    if _is_split(geometry):
        line("One rank's share is counted; ranks that share a machine share its dram and nvme.")
    if document.loads is not None:
        from kvbench.cli.plan_loads import show_loads

        line("")
        show_loads(console, document.loads, line)


def _is_split(geometry: "KVGeometry") -> bool:
    return geometry.tensor_parallel * geometry.pipeline_parallel > 1


def _rank_note(geometry: "KVGeometry") -> str:
    note = f"One of {geometry.tensor_parallel * geometry.pipeline_parallel} ranks"
    if geometry.pipeline_parallel > 1:
        note += (
            f": pipeline rank {geometry.pipeline_rank} (from 0), which holds most, "
            f"{geometry.rank_layer_count} of {geometry.layer_count} layers"
        )
    return note + "; what several ranks hold copies of counts on each of them."


def _sizes(geometry: "KVGeometry", requests: list[Request]) -> "Table":
    from rich import box
    from rich.table import Table

    from kvbench.units import format_bytes

    def size(value: int) -> str:
        return f"{value:,} B" if value < 1024 else f"{value:,} B ({format_bytes(value)})"  # noqa: PLR2004  1 KiB

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("KV cache")
    table.add_column("whole model", justify="right")
    rows = [("a token", geometry.model_bytes_per_token, geometry.bytes_per_token)]
    if geometry.bytes_per_token != geometry.bytes_per_token_beyond_windows:
        beyond = sum(
            group.count * group.model_bytes_per_token
            for group in geometry.layers
            if group.window_tokens is None
        )
        rows.append(("a token beyond all windows", beyond, geometry.bytes_per_token_beyond_windows))
    if geometry.model_state_bytes:
        rows.append(("state of a sequence", geometry.model_state_bytes, geometry.state_bytes))
    name = f"a block of {geometry.block_size} tokens"
    rows.append((name, geometry.model_block_bytes, geometry.block_bytes))
    for request in requests:
        name = f"{request.tokens:,} tokens ({request.blocks:,} blocks)"
        rows.append((name, request.model_bytes, request.bytes))
    split = _is_split(geometry)
    if split:
        table.add_column("one rank", justify="right")
    for name, whole, rank in rows:
        table.add_row(name, size(whole), *((size(rank),) if split else ()))
    return table


def _rooms(document: Document) -> "Table":
    from rich import box
    from rich.table import Table

    from kvbench.units import format_bytes

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("fits in")
    table.add_column("space", justify="right")
    table.add_column("tokens", justify="right")
    for request in document.requests:
        table.add_column(f"requests of {request.tokens:,}", justify="right")
    for room in document.tiers:
        cells = ["-"] * (2 + len(document.requests))
        if room.space_bytes is not None and room.requests is not None:
            longest = room.longest_sequence_tokens
            cells = [
                format_bytes(room.space_bytes),
                "any length" if longest is None else f"{longest:,}",
                *(f"{count:,}" for count in room.requests.values()),
            ]
        table.add_row(room.tier, *cells)
    return table
