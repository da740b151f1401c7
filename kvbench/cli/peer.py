"""`kvbench peer`: share blocks with other machines, look who is there, fetch, leave, certificates.

Loads no torch. What other peers say of themselves is printed without what a terminal would obey.
"""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kvbench.peer.client import Got
    from kvbench.peer.cluster import MembershipConfig
    from kvbench.peer.config import PeerConfig
    from kvbench.peer.service import PeerService
    from kvbench.peer.view import Seen

peer = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Share KV blocks with other machines, without a server between them.",
)
certs = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The credential of a cluster: an authority, and a certificate for each peer.",
)
peer.add_typer(certs, name="certs")

MISSING, CORRUPT = 4, 3  # as NothingMeasuredError, and as damaged records of a store
LONGEST_S = 3600.0
WIDEST = 10_000  # columns of a table that nothing holds back
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Where the cluster is, and the credential."),
]
Join = Annotated[
    list[str] | None,
    typer.Option("--join", metavar="HOST:PORT", help="Any peer's endpoint; more than once."),
]
Cluster = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its name.", show_default="default")
]
Tls = Annotated[
    Path | None, typer.Option("--tls", metavar="DIR", help="ca.pem, cert.pem and key.pem.")
]
Within = Annotated[
    float, typer.Option("--within", min=0.1, max=LONGEST_S, help="Seconds to find peers in.")
]


@peer.command("serve")
def serve(
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="A peer.toml.")],
) -> None:
    """Serve a store's blocks to other peers, until Ctrl-C, SIGTERM or `kvbench peer drain`.

    One line on standard output says that it is ready, and where; the log is on standard error.
    It leaves by draining: the others are told, what is being sent is finished. Exit status: 0
    after SIGTERM or drain, 130 after Ctrl-C.
    """
    from kvbench.errors import InterruptedRunError
    from kvbench.peer import logs
    from kvbench.peer.config import load_config
    from kvbench.peer.service import PeerService

    told = load_config(config)
    logs.set_up(told.name or config.stem, told.log.format, told.log.level)
    try:
        with PeerService(told) as service:
            typer.echo(_ready(service))
            sys.stdout.flush()
            service.wait()
    except InterruptedRunError as error:
        if error.number != signal.SIGTERM:  # which is how a daemon is asked to end
            raise


@peer.command("status")
def status(
    *,
    config: ConfigFile = None,
    join: Join = None,
    cluster: Cluster = None,
    tls: Tls = None,
    within_s: Within = 5.0,
    format_: Annotated[
        str, typer.Option("--format", help="table or json.", metavar="FORMAT")
    ] = "table",
) -> None:
    """Show who is there, what they hold, what went in and out, and whom they leave alone.

    Exit status: 0 all have answered, 3 some peer has not, be it one that only others know.
    """
    import msgspec

    from kvbench.errors import UsageError
    from kvbench.peer.client import Onlooker

    if format_ not in {"table", "json"}:
        raise UsageError(f"--format {format_!r}: expected one of table, json")
    with Onlooker(_membership(config, join, cluster, tls)) as onlooker:
        found = onlooker.survey(within_s)
        if not found:
            raise _nobody(within_s)
    if format_ == "json":
        typer.echo(msgspec.json.format(msgspec.json.encode(found)))
    else:
        _show(found)
    if any(each.error is not None for each in found):
        raise typer.Exit(CORRUPT)


@peer.command("get")
def get(
    keys: Annotated[list[str], typer.Argument(metavar="KEY...", help="64 digits in hex each.")],
    *,
    config: Annotated[Path, typer.Option("--config", metavar="FILE", help="A peer.toml.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="Where to; - is standard output.")
    ],
    join: Join = None,
    within_s: Within = 5.0,
    deadline_s: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            min=0.001,
            max=LONGEST_S,
            help="Seconds for 64 blocks at a time.",
            show_default="fetch.deadline_s of the file",
        ),
    ] = None,
) -> None:
    """Fetch blocks from peers, check them, and write them one after the other.

    Nothing is written unless all have come. Exit status: 0 all are there, 3 one was not what its
    checksum says, 4 one did not come: no peer has it, or not in time.
    """
    import numpy as np

    from kvbench.cli.output import write_whole
    from kvbench.peer.client import PeerClient
    from kvbench.store.block import Status

    wanted = [_key(each) for each in keys]
    client = PeerClient(_client_config(config, join, deadline_s))
    rows = np.empty((len(wanted), client.layout.block_bytes), np.uint8)
    try:
        client.start(within_s)
        found = client.get(wanted, list(rows), deadline_s=deadline_s)
    finally:
        client.close()
    for key, got in zip(wanted, found, strict=True):
        if got.status is not Status.OK:
            typer.echo(f"kvbench: block {key.hex()}: {_plain(_why(got))}", err=True)
            raise typer.Exit(CORRUPT if got.status is Status.CORRUPT else MISSING)
    if str(out) == "-":
        sys.stdout.buffer.write(rows.data)
    else:
        write_whole(out, rows.tobytes())


@peer.command("drain")
def drain(
    name: Annotated[str, typer.Argument(metavar="NAME|ID", help="Of the peer; see status.")],
    *,
    config: ConfigFile = None,
    join: Join = None,
    cluster: Cluster = None,
    tls: Tls = None,
    within_s: Within = 5.0,
) -> None:
    """Ask a peer to leave: others ask it no more, it finishes what it is sending, and ends."""
    from kvbench.peer.client import Onlooker

    with Onlooker(_membership(config, join, cluster, tls)) as onlooker:
        found = onlooker.find(name, within_s)
        onlooker.drain(found)
    typer.echo(f"{_plain(found.name)} ({found.id.hex()[:8]}) is draining")


@certs.command("init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Keep it where no peer runs.")],
    *,
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 3650,
    force: Annotated[bool, typer.Option("--force", help="Overwrite one that is there.")] = False,
) -> None:
    """Make the authority of a cluster: ca.pem, and ca-key.pem, which can make members."""
    from kvbench.peer.certs import make_ca

    cert, key = make_ca(folder, days=days, force=force)
    typer.echo(f"{cert}\n{key}  (secret: whoever has it can let others in)")


@certs.command("issue")
def issue(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of the authority.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the peer; a folder in DIR.")],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or address at which others reach it; more than once."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 365,
    force: Annotated[bool, typer.Option("--force", help="Overwrite one that is there.")] = False,
) -> None:
    """Make a peer's ca.pem, cert.pem and key.pem in DIR/NAME; they go where it runs.

    The certificate is good for localhost and every --host: others refuse it anywhere else.
    """
    from kvbench.errors import UsageError
    from kvbench.peer.certs import make_certificate

    if not name or "/" in name or name in {".", ".."}:
        raise UsageError(f"NAME {name!r}: expected the name of a folder in {folder}")
    files = make_certificate(folder / name, ca=folder, hosts=host or (), days=days, force=force)
    typer.echo(f"{files.ca}\n{files.cert}\n{files.key}  (secret)")


def _ready(service: "PeerService") -> str:
    me = service.me
    words = {
        "name": me.name,
        "id": me.id.hex(),
        "cluster": service.config.cluster.name,
        "join": ",".join(service.join),
        **{how: where for how, where in me.endpoints.items() if how != "control"},
    }
    if service.metrics is not None:
        words["metrics"] = service.metrics
    return " ".join(("ready", *(f"{key}={_plain(value)}" for key, value in words.items())))


def _membership(
    config: Path | None, join: list[str] | None, cluster: str | None, tls: Path | None
) -> "MembershipConfig":
    """Where to look, of a file or of options."""
    from dataclasses import replace

    from kvbench.errors import UsageError
    from kvbench.peer.certs import TlsFiles
    from kvbench.peer.client import joins
    from kvbench.peer.cluster import MembershipConfig
    from kvbench.peer.config import load_config

    if config is not None:
        if cluster is not None or tls is not None:
            raise UsageError("--config says what --cluster and --tls do: give one of both")
        told = load_config(config).membership()
        # That its own peer may be reached by others is no concern of who only looks.
        known = replace(told, join=(*(join or ()), *joins(told), *told.join))
        if not known.join and not known.multicast:
            raise UsageError(f"{config} names no peer, and listens on any port: give --join")
        return known
    if not join:
        raise UsageError("no peer to ask: give --join HOST:PORT, or --config FILE")
    files = None if tls is None else TlsFiles.of(tls)
    return MembershipConfig(cluster=cluster or "default", join=join, tls=files)


def _client_config(config: Path, join: list[str] | None, deadline_s: float | None) -> "PeerConfig":
    from msgspec import structs

    from kvbench.peer.config import load_config

    told = load_config(config)
    cluster = structs.replace(told.cluster, join=(*(join or ()), *told.cluster.join))
    fetch = told.fetch
    if deadline_s is not None:
        fetch = structs.replace(fetch, deadline_s=deadline_s)
    return structs.replace(told, cluster=cluster, fetch=fetch)


def _why(got: "Got") -> str:
    from kvbench.peer.model import Reason

    return "no peer is known to have it" if got.why == Reason.NOBODY.value else got.why


def _key(text: str) -> bytes:
    from kvbench.errors import UsageError
    from kvbench.store.block import KEY_BYTES

    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(f"KEY {text[:80]!r}: expected {2 * KEY_BYTES} digits in hex")
    return key


def _nobody(within_s: float) -> Exception:
    from kvbench.peer.model import PeerError, Reason

    return PeerError(
        f"no peer has answered within {within_s:g} s: are they up, of this cluster, and with this "
        "credential?",
        Reason.NOBODY,
    )


def _show(found: "list[Seen]") -> None:
    """A table, and a line for each thing that is not as it should be."""
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    from kvbench.cli.report import stdout_console
    from kvbench.peer.view import HEADS, cells, troubles

    console = stdout_console()
    table = Table(box=None, pad_edge=False)
    for head in HEADS:
        table.add_column(head, overflow="fold")
    for each in found:
        table.add_row(*(Text(_plain(cell)) for cell in cells(each)))
    wide = console.options.update_width(WIDEST)
    if Measurement.get(console, wide, table).maximum <= console.width:
        console.print(table)
    else:  # a narrow terminal: a line for each thing
        for each in found:
            for head, cell in zip(HEADS, cells(each), strict=True):
                console.print(Text(f"{head:7} {_plain(cell)}"))
    for line in troubles(found):
        console.print(Text(_plain(line)))


def _plain(text: str) -> str:
    """Without what a terminal would obey: names are chosen by others."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
