"""What a peer is told: peer.toml, checked key by key, and the settings that come of it.

Every error is one line with the file and the key; a key that nobody knows names the nearest one.
Paths are relative to the file. Opens no store, no socket, no connection: `kvbench.peer.service`
does. An annotated example: docs/examples/peer.toml.

May import: kvbench.errors, kvbench.geometry, kvbench.keys, kvbench.units, kvbench.peer,
kvbench.store. msgspec.
"""

import difflib
import re
import tomllib
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar, cast

import msgspec

from kvbench.errors import KvbenchError, UsageError
from kvbench.keys import Namespace
from kvbench.peer.certs import TlsFiles
from kvbench.peer.cluster import MembershipConfig, loopback
from kvbench.peer.holder import HolderLimits
from kvbench.peer.limits import FetchOptions
from kvbench.peer.listener import ListenerLimits
from kvbench.peer.shares import DIGEST_BYTES, Share, check_apart
from kvbench.store.block import MOST_PARTS, Layout
from kvbench.store.config import StoreConfig
from kvbench.store.options import Moving
from kvbench.units import GIB, parse_bytes, parse_rate

Transports = Literal["shm", "nixl", "tcp"]
# Keys whose value may be a text with a unit, wherever they stand.
SIZES = frozenset(
    ("block", "dram", "nvme", "min_free", "in_flight", "pull", "lent", "ask", "staging")
)
RATES = frozenset(("bandwidth",))
MOST_FILE_BYTES = 2**20
MOST_SALT_BYTES = 4096
_AT = re.compile(r"(.*) - at `\$\.?(.*)`", re.DOTALL)
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/]+):(\d{1,5})")

T = TypeVar("T")


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Any table of the file."""


class StoreSection(_Section, frozen=True, kw_only=True):
    """The store: the shape of its blocks, of a model or in bytes, and its tiers.

    With `model`, a block is `block_tokens` tokens of one rank of it.
    """

    block: int | None = None  # bytes
    model: str | None = None  # a preset, or the path of a config.json
    kv_dtype: str = "bf16"
    block_tokens: int = 16
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    parts: int = 1
    dram: int = 0  # bytes
    numa_node: int | None = None
    directories: tuple[Path, ...] = ()
    nvme: int | None = None  # bytes
    engine: str = "posix"
    min_free: int = GIB  # bytes
    require_drives: bool = False


class NamespaceSection(_Section, frozen=True, kw_only=True):
    """A namespace: its digest in hex, or the fields of `kvbench.keys.Namespace`.

    `salt_file` holds the tenant's salt. `tenants`: whose blocks others may read; None: all.
    The tenant ties a block to its namespace: several have to name different ones.
    """

    digest: str | None = None
    model: str = ""
    revision: str = ""
    geometry: str = ""
    cache_dtype: str = ""
    layout: str = ""
    block_tokens: int = 0
    layers: tuple[int, int] = (0, 0)
    heads: tuple[int, int] = (0, 0)
    group: str = "0"
    salt_file: Path | None = None
    tenants: tuple[str, ...] | None = None


class ClusterSection(_Section, frozen=True, kw_only=True):
    """How peers find each other: see `kvbench.peer.cluster.MembershipConfig`."""

    name: str = "default"
    listen: tuple[str, ...] = ("127.0.0.1:0",)
    join: tuple[str, ...] = ()
    lease_s: float = 2.0
    multicast: bool = False
    insecure: bool = False  # listen beyond loopback without TLS


class TlsSection(_Section, frozen=True, kw_only=True):
    """The cluster's credential: a folder with ca.pem, cert.pem and key.pem, or the three files."""

    folder: Path | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class DataSection(_Section, frozen=True, kw_only=True):
    """How blocks travel. `advertise`: where others reach `listen`, as host or host:port."""

    listen: str = "127.0.0.1:0"
    advertise: str | None = None
    nixl_port: int = 0  # of the same host, if NIXL is one of:
    transports: tuple[Transports, ...] = ("shm", "tcp")  # in order of preference


class FetchSection(_Section, frozen=True, kw_only=True):
    """Asking others: see `kvbench.peer.limits.FetchOptions`."""

    keep: Moving = "second_touch"  # which fetched blocks the own store takes
    deadline_s: float = 2.0
    hedge_s: float | None = None
    streams: int = 2
    threads: int = 32
    in_flight: int = 2**28  # bytes
    pull: int = 2**24  # bytes of one pull
    bandwidth: float | None = None  # bytes/s; None: as fast as it goes
    probe_s: float = 0.5
    pause_s: float = 1.0
    most_pause_s: float = 30.0


class ServeSection(_Section, frozen=True, kw_only=True):
    """Being asked: see `kvbench.peer.holder.HolderLimits` and `.listener.ListenerLimits`."""

    lent: int = 2**30  # bytes
    ask: int = 2**28  # bytes of one request
    staging: int = 2**26  # bytes
    loan_s: float = 30.0
    connections: int = 512  # 128 peers have 2 each; one costs a thread and about 30 KiB
    strangers: int = 64  # connections that have proven nothing yet
    handshake_s: float = 5.0
    idle_s: float = 120.0
    drain_s: float = 10.0  # the longest that leaving waits for what is being sent


class CostSection(_Section, frozen=True, kw_only=True):
    """When fetching is worth it. Without either cost of recomputing it always is."""

    recompute_s_per_block: float | None = None
    recompute_tokens_per_s: float | None = None
    latency_s: float = 0.001  # of a path that nothing is known of yet
    bandwidth: float = 1e9  # bytes/s, likewise


class MetricsSection(_Section, frozen=True, kw_only=True):
    """Where Prometheus scrapes; None: nowhere."""

    listen: str | None = None


class LogSection(_Section, frozen=True, kw_only=True):
    """The log of `kvbench peer serve` on standard error."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


class HostPort(NamedTuple):
    """Where something listens."""

    host: str
    port: int


class PeerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of it. Each method gives the settings of one part, and raises UsageError for the user."""

    name: str = ""  # for people; empty: host:pid
    store: StoreSection
    namespace: tuple[NamespaceSection, ...]
    cluster: ClusterSection = ClusterSection()
    tls: TlsSection | None = None
    data: DataSection = DataSection()
    fetch: FetchSection = FetchSection()
    serve: ServeSection = ServeSection()
    cost: CostSection = CostSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()

    def layout(self) -> Layout:
        """The shape of its blocks."""
        store = self.store
        if (store.block is None) == (store.model is None):
            raise UsageError("[store] needs either 'block', a size, or 'model'")
        if not 1 <= store.parts <= MOST_PARTS:
            raise UsageError(f"key 'store.parts' = {store.parts}: expected 1 to {MOST_PARTS}")
        if store.block is not None:
            return Layout(store.block, store.parts)
        from kvbench.geometry import load_geometry  # noqa: PLC0415  reads presets; few need it

        geometry = load_geometry(
            cast("str", store.model),
            cache_dtype=store.kv_dtype,
            block_size=store.block_tokens,
            tensor_parallel=store.tensor_parallel,
            pipeline_parallel=store.pipeline_parallel,
        )
        return Layout(geometry.block_bytes, store.parts)

    def store_config(self) -> StoreConfig:
        """What `kvbench.store.config.open_store` takes."""
        store = self.store
        if not store.dram and not store.directories:
            raise UsageError("[store] has no tier: give 'dram' a size, or 'directories', or both")
        return StoreConfig(
            layout=self.layout(),
            namespace=self.shares()[0].digest,
            dram_bytes=store.dram,
            numa_node=store.numa_node,
            directories=store.directories,
            nvme_bytes=store.nvme,
            engine=store.engine,
            min_free_bytes=store.min_free,
            require_drives=store.require_drives,
        )

    def shares(self) -> list[Share]:
        """The namespaces that others may read; the first is that of the own keys and drives."""
        if not self.namespace:
            raise UsageError("expected at least one [[namespace]]: nothing else is served")
        shares = [_share(f"namespace[{at}]", each) for at, each in enumerate(self.namespace)]
        check_apart(shares, "namespace")
        return shares

    def tls_files(self) -> TlsFiles | None:
        """The credential, if there is one."""
        tls = self.tls
        if tls is None:
            return None
        files = (tls.ca, tls.cert, tls.key)
        if tls.folder is not None and not any(files):
            return TlsFiles.of(tls.folder)
        if tls.folder is not None or not all(files):
            raise UsageError("[tls] needs either 'folder', or 'ca', 'cert' and 'key'")
        return TlsFiles(*cast("tuple[Path, Path, Path]", files))

    def membership(self) -> MembershipConfig:
        """How the others are found."""
        cluster = self.cluster
        return MembershipConfig(
            cluster=cluster.name,
            listen=cluster.listen,
            join=cluster.join,
            lease_s=cluster.lease_s,
            multicast=cluster.multicast,
            tls=self.tls_files(),
            insecure=cluster.insecure,
        )

    def listen(self) -> HostPort:
        """Where blocks are served by TCP."""
        return _host_port("data.listen", self.data.listen)

    def advertised(self, how: str, endpoint: str) -> str:
        """Where others are told to come by a transport that listens at `endpoint`."""
        if how == "shm":
            return endpoint
        told, (host, port) = self.data.advertise, _host_port("data.listen", endpoint)
        if told is None:
            if host in {"0.0.0.0", "::"}:
                raise UsageError(
                    f"key 'data.listen' = {self.data.listen!r} is every address of this machine: "
                    "say by 'data.advertise' which of them others are to come to"
                )
            return endpoint
        if _HOST_PORT.fullmatch(told) is None:
            return f"{told}:{port}"
        return told if how == "tcp" else f"{told.rpartition(':')[0]}:{port}"

    def fetch_options(self) -> FetchOptions:
        """How others are asked."""
        fetch, cost = self.fetch, self.cost
        return FetchOptions(
            deadline_s=fetch.deadline_s,
            hedge_s=fetch.hedge_s,
            streams=fetch.streams,
            threads=fetch.threads,
            in_flight_bytes=fetch.in_flight,
            most_pull_bytes=fetch.pull,
            bytes_per_s=fetch.bandwidth,
            probe_s=fetch.probe_s,
            pause_s=fetch.pause_s,
            most_pause_s=fetch.most_pause_s,
            recompute_s_per_block=self._recompute_s(),
            expected_latency_s=cost.latency_s,
            expected_bytes_per_s=cost.bandwidth,
        )

    def holder_limits(self) -> HolderLimits:
        """What others may have at a time."""
        serve = self.serve
        return HolderLimits(
            lent_bytes=serve.lent,
            ask_bytes=serve.ask,
            staging_bytes=serve.staging,
            loan_s=serve.loan_s,
        )

    def listener_limits(self) -> ListenerLimits:
        """Who may connect, and for how long."""
        serve = self.serve
        return ListenerLimits(
            connections=serve.connections,
            unproven=serve.strangers,
            handshake_s=serve.handshake_s,
            idle_s=serve.idle_s,
        )

    def metrics_listen(self) -> HostPort | None:
        """Where metrics are served."""
        listen = self.metrics.listen
        if listen is None:
            return None
        where = _host_port("metrics.listen", listen)
        if not loopback(where.host) and not self.cluster.insecure:
            raise UsageError(
                f"key 'metrics.listen' = {listen!r}: metrics are plain HTTP, which anybody who "
                "reaches it can read. Listen on 127.0.0.1, or say cluster.insecure = true"
            )
        return where

    def check(self) -> None:
        """Raise for whatever any of the others would."""
        for section, get in (
            ("", self.store_config),
            ("", self.tls_files),
            ("[cluster] ", self.membership),
            ("", self.listen),
            ("", self._check_data),
            ("[fetch] ", self.fetch_options),
            ("[serve] ", self.holder_limits),
            ("[serve] ", self.listener_limits),
            ("", self.metrics_listen),
        ):
            try:
                get()
            except KvbenchError as error:
                raise UsageError(f"{section}{error}") from None

    def _check_data(self) -> None:
        data = self.data
        if not data.transports or len(set(data.transports)) < len(data.transports):
            raise UsageError("key 'data.transports': expected a list that names each once")
        ask, block_bytes = self.serve.ask, self.layout().block_bytes
        if 0 < ask < block_bytes:  # what is not positive the limits refuse
            raise UsageError(
                f"key 'serve.ask' = {ask}: a block has {block_bytes} bytes, and none would be "
                "served: give at least that"
            )
        if self.serve.drain_s < 0:
            raise UsageError(f"key 'serve.drain_s' = {self.serve.drain_s}: expected 0 or more")
        if not 0 <= data.nixl_port < 2**16:
            raise UsageError(f"key 'data.nixl_port' = {data.nixl_port}: expected 0 to 65535")
        self.advertised("tcp", data.listen)

    def _recompute_s(self) -> float | None:
        cost, tokens = self.cost, self.store.block_tokens
        if cost.recompute_tokens_per_s is None:
            return cost.recompute_s_per_block
        if cost.recompute_s_per_block is not None:
            raise UsageError(
                "[cost] has 'recompute_s_per_block' and 'recompute_tokens_per_s': give one"
            )
        if cost.recompute_tokens_per_s <= 0:
            raise UsageError("key 'cost.recompute_tokens_per_s': expected more than 0")
        return tokens / cost.recompute_tokens_per_s


def load_config(path: Path) -> PeerConfig:
    """The configuration in a file.

    Raises:
        UsageError: the file cannot be read or is not TOML, a key is unknown, or a value cannot be.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MOST_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MOST_FILE_BYTES} bytes: is it a configuration?")
    try:
        document = tomllib.loads(data.decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from None
    try:
        config = _convert(_read(document, PeerConfig, ""), path.parent)
        config.check()
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return config


def _convert(document: object, folder: Path) -> PeerConfig:
    def hook(kind: type, value: object) -> object:
        if kind is Path and isinstance(value, str) and value:
            return folder / Path(value).expanduser()
        raise ValueError(f"expected a path, got {value!r}")

    try:
        config = msgspec.convert(document, PeerConfig, dec_hook=hook)
    except msgspec.ValidationError as error:
        found = _AT.fullmatch(str(error))
        if found is None:
            raise UsageError(str(error)) from None
        raise UsageError(f"key {found[2]!r}: {found[1]}") from None
    model = config.store.model
    if model is not None and (folder / model).exists():  # a preset's name is no path
        store = msgspec.structs.replace(config.store, model=str(folder / model))
        return msgspec.structs.replace(config, store=store)
    return config


def _read(table: dict[str, object], kind: type[msgspec.Struct], at: str) -> dict[str, object]:
    """A table with every key known, and texts of sizes and rates as numbers."""
    types = typing.get_type_hints(kind)
    read: dict[str, object] = {}
    for key, value in table.items():
        where = f"{at}.{key}" if at else key
        if key not in types:
            near = difflib.get_close_matches(key, types, n=1, cutoff=0.0)
            raise UsageError(f"unknown key {where!r}: did you mean {near[0]!r}?")
        read[key] = _value(value, key, types[key], where)
    return read


def _value(value: object, key: str, annotation: object, where: str) -> object:
    inner = _struct_in(annotation)
    if inner is not None and isinstance(value, dict):
        return _read(cast("dict[str, object]", value), inner, where)
    if inner is not None and isinstance(value, list):
        return [
            _value(each, key, inner, f"{where}[{at}]")
            for at, each in enumerate(cast("list[object]", value))
        ]
    if key in SIZES:
        size = _with_unit(value, where, parse_bytes)
        if isinstance(size, int) and size < 0:
            raise UsageError(f"key {where!r} = {size}: expected a size such as '8GiB'")
        return size
    return _with_unit(value, where, parse_rate) if key in RATES else value


def _with_unit(value: object, where: str, parse: Callable[[str], float]) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse(value)
    except UsageError as error:
        raise UsageError(f"key {where!r}: {error}") from None


def _struct_in(annotation: object) -> type[msgspec.Struct] | None:
    """The table that a type is, or has in it."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    inner: Sequence[object] = typing.get_args(annotation)
    return next((found for each in inner if (found := _struct_in(each)) is not None), None)


def _share(where: str, section: NamespaceSection) -> Share:
    tenants = None if section.tenants is None else frozenset(section.tenants)
    fields = ("model", "revision", "geometry", "cache_dtype", "layout")
    given = any(getattr(section, name) for name in (*fields, "block_tokens", "salt_file"))
    if section.digest is not None:
        if given:
            raise UsageError(f"{where} has 'digest' and fields of a namespace: give one of both")
        try:
            digest = bytes.fromhex(section.digest)
        except ValueError:
            digest = b""
        if len(digest) != DIGEST_BYTES:
            raise UsageError(f"key '{where}.digest': expected {2 * DIGEST_BYTES} digits in hex")
        return Share(digest, tenants)
    try:
        namespace = Namespace(
            **{name: getattr(section, name) for name in fields},
            block_tokens=section.block_tokens,
            layers=section.layers,
            heads=section.heads,
            group=section.group,
            salt=b"" if section.salt_file is None else _salt(section.salt_file),
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    return Share(namespace.digest, tenants)


def _salt(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            salt = file.read(MOST_SALT_BYTES + 1)
    except OSError as error:
        raise UsageError(f"key 'salt_file': cannot read {path}: {error.strerror}") from None
    if not 0 < len(salt) <= MOST_SALT_BYTES:
        raise UsageError(f"key 'salt_file': {path} has to hold 1 to {MOST_SALT_BYTES} bytes")
    return salt


def _host_port(key: str, text: str) -> HostPort:
    found = _HOST_PORT.fullmatch(text)
    if found is None or int(found[2]) >= 2**16:
        raise UsageError(f"key {key!r} = {text!r}: expected host:port, such as 127.0.0.1:7400")
    return HostPort(found[1].strip("[]"), int(found[2]))
