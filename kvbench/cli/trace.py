"""`kvbench trace stats` and `generate`: what a trace is like, and a made-up one that is like it.

Measures nothing. `--help` starts without numpy and numba.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kvbench.sim.columns import Columns
    from kvbench.sim.trace.shape import Shape

trace = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Say what a trace of requests is like, and generate one that is like it.",
)

DEFAULT_REQUESTS = 12_000
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="mooncake, bailian, azure, burstgpt, json-log or vllm-log; told by the content if "
        "left out.",
    ),
]
BlockTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a block, of a log with token ids.", show_default="16"),
]


@trace.command("stats")
def stats(
    file: Annotated[Path, typer.Argument(help="The trace.")],
    *,
    capacity: Annotated[
        str | None,
        typer.Option(metavar="BLOCKS,…", help="Where the LRU curve is listed, in blocks."),
    ] = None,
    format_: Format = None,
    block_tokens: BlockTokens = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how long requests are, when they come, what is used again, and what LRU would hit."""
    # Not at the top: --help needs none of it.
    import msgspec

    from kvbench.cli.trace_text import stats_text
    from kvbench.sim.trace import read_columns
    from kvbench.sim.trace.stats import trace_stats

    capacities = _capacities(capacity)
    columns = read_columns(file, format_=format_, block_tokens=block_tokens)
    found, curve = trace_stats(columns, capacities)
    if json:
        text = msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"
        typer.echo(text, nl=False)
        return
    typer.echo(stats_text(found, curve))


@trace.command("generate")
def generate(  # noqa: PLR0913 - each is an option
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="The trace, one JSON line a request.")],
    requests: Annotated[int, typer.Option(min=1, help="How many.")] = DEFAULT_REQUESTS,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same trace.")] = 0,
    like: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A trace to fit to; says how well it fits.")
    ] = None,
    format_: Format = None,
    block_tokens: BlockTokens = None,
    fitted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --like: also keep what was fitted.")
    ] = None,
    shape: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What --fitted kept, instead of a trace.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Stated: requests/s, of all turns.")] = None,
    turns: Annotated[
        float | None, typer.Option(help="Stated: mean turns of a conversation.")
    ] = None,
    first_tokens: Annotated[
        float | None, typer.Option(help="Stated: mean input of a first turn, tokens.")
    ] = None,
    turn_tokens: Annotated[
        float | None, typer.Option(help="Stated: mean new tokens of a later turn.")
    ] = None,
    answer_tokens: Annotated[
        float | None, typer.Option(help="Stated: mean tokens of an answer.")
    ] = None,
    think_s: Annotated[
        float | None, typer.Option(help="Stated: mean seconds from a turn to the next.")
    ] = None,
    shared_tokens: Annotated[
        int | None, typer.Option(help="Stated: tokens of a prefix that all share.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a made-up trace: like a file's, like a shape, as stated, or like Mooncake's."""
    import msgspec

    from kvbench.cli.output import check_output, write_whole
    from kvbench.cli.trace_text import fit_text, made_text
    from kvbench.errors import UsageError
    from kvbench.sim.trace import generated, read_columns, write_trace
    from kvbench.sim.trace.fit import fit_shape
    from kvbench.sim.trace.goodness import goodness_of_fit
    from kvbench.sim.trace.shape import default_shape, encoded, load_shape

    stated = {
        "rate_per_s": rate,
        "turns": turns,
        "first_tokens": first_tokens,
        "turn_tokens": turn_tokens,
        "answer_tokens": answer_tokens,
        "think_s": think_s,
        "shared_tokens": shared_tokens,
    }
    said = {name: value for name, value in stated.items() if value is not None}
    if sum((like is not None, shape is not None, bool(said))) > 1:
        raise UsageError("--like, --shape and stated numbers exclude one another: give one of them")
    if fitted is not None and like is None:
        raise UsageError("--fitted keeps what was fitted: say to what with --like")
    _check_out(out, like, shape)
    check_output(out)
    real: Columns | None = None
    of: Shape
    if like is not None:
        real = read_columns(like, format_=format_, block_tokens=block_tokens)
        of = fit_shape(real, f"fitted to {like.name}")
    elif shape is not None:
        of = load_shape(shape)
    else:
        of = _stated(said) if said else default_shape()
    twin = generated(requests, seed, shape=of, name=out.name)
    fit = None if real is None else goodness_of_fit(real, twin)
    write_trace(twin, out)
    if fitted is not None:
        write_whole(fitted, encoded(of))
    if json:
        summary = {"out": str(out), "requests": requests, "seed": seed, "source": of.source}
        text = msgspec.json.encode({**summary, "goodness_of_fit": fit})
        typer.echo(msgspec.json.format(text, indent=2) + b"\n", nl=False)
        return
    typer.echo(made_text(twin, str(out), of.source))
    if real is not None and fit is not None:
        typer.echo(fit_text(fit, min(requests, real.requests)))


def _capacities(text: str | None) -> list[int]:
    from kvbench.errors import UsageError

    found: list[int] = []
    for part in (text or "").split(",") if text else []:
        if not part.strip().isdecimal() or int(part) < 1:
            raise UsageError(f"--capacity {text!r}: expected blocks, for example 1000,10000")
        found.append(int(part))
    return found


def _check_out(out: Path, like: Path | None, shape: Path | None) -> None:
    """Refuse early, before work: a missing directory, or a file that is read."""
    from kvbench.errors import UsageError

    if not out.parent.is_dir():
        raise UsageError(f"cannot write {out}: there is no directory {out.parent}")
    for read in (like, shape):
        if read is not None and read.resolve() == out.resolve():
            raise UsageError(f"will not overwrite {out}, which is read: name another with -o")


def _stated(said: dict[str, float | int]) -> "Shape":
    import msgspec

    from kvbench.sim.trace.stated import Stated, stated_shape

    return stated_shape(msgspec.convert(said, Stated))
