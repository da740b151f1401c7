"""What a user may write into peer.toml, and what he is told when it is wrong."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from kvbench.errors import UsageError
from kvbench.keys import Namespace
from kvbench.peer.config import (
    ClusterSection,
    CostSection,
    DataSection,
    FetchSection,
    LogSection,
    MetricsSection,
    NamespaceSection,
    PeerConfig,
    ServeSection,
    StoreSection,
    TlsSection,
    load_config,
)
from kvbench.store.block import Layout

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "peer.toml"
LEAST = """
[store]
block = "64KiB"
parts = 4
dram = "8MiB"
[[namespace]]
digest = "{digest}"
""".format(digest="61" * 32)
SECTIONS: dict[str, type[msgspec.Struct]] = {
    "store": StoreSection,
    "namespace": NamespaceSection,
    "cluster": ClusterSection,
    "tls": TlsSection,
    "data": DataSection,
    "fetch": FetchSection,
    "serve": ServeSection,
    "cost": CostSection,
    "metrics": MetricsSection,
    "log": LogSection,
}


def load(tmp_path: Path, text: str) -> PeerConfig:
    file = tmp_path / "peer.toml"
    file.write_text(text, encoding="utf-8")
    return load_config(file)


def refused(tmp_path: Path, text: str) -> str:
    """The one line that a user is told, without the file."""
    with pytest.raises(UsageError) as told:
        load(tmp_path, text)
    line = str(told.value)
    assert "\n" not in line
    assert line.startswith(f"{tmp_path / 'peer.toml'}: ")
    return line.removeprefix(f"{tmp_path / 'peer.toml'}: ")


def test_the_example_in_the_documents_loads() -> None:
    config = load_config(EXAMPLE)
    assert config.layout() == Layout(2 * 2**20, parts=32)
    assert config.store_config().dram_bytes == 64 * 2**20
    assert [share.tenants for share in config.shares()] == [None]


def test_the_example_names_every_key_and_shows_the_defaults() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    told = load_config(EXAMPLE)
    for name, kind in SECTIONS.items():
        heads = {"tls": "# [tls]", "namespace": "\n[[namespace]]\n"}
        _, _, rest = text.partition(heads.get(name, f"\n[{name}]"))
        section = re.split(r"\n(?:# )?\[", rest)[0]
        for field in msgspec.structs.fields(kind):
            assert re.search(rf"^(?:# )?{field.name} = ", section, re.MULTILINE), field.name
    for name in ("fetch", "serve", "cost", "metrics", "log"):
        assert getattr(told, name) == SECTIONS[name](), name
    assert told.cluster == msgspec.structs.replace(ClusterSection(), listen=told.cluster.listen)
    assert told.data == msgspec.structs.replace(DataSection(), listen=told.data.listen)


def test_two_tables_are_all_that_is_needed(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST)
    assert config.layout() == Layout(65536, parts=4)
    assert config.membership().listen == ("127.0.0.1:0",)
    assert config.listen() == ("127.0.0.1", 0)
    assert config.tls_files() is None
    assert config.metrics_listen() is None
    assert config.fetch_options().recompute_s_per_block is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[fetch]\ndeadlin_s = 1", "unknown key 'fetch.deadlin_s': did you mean 'deadline_s'?"),
        ("[fetchs]\nkeep = 'never'", "unknown key 'fetchs': did you mean 'fetch'?"),
        ("tenant = ['a']", "unknown key 'namespace[0].tenant': did you mean 'tenants'?"),
        ("[cluster]\njoins = []", "unknown key 'cluster.joins': did you mean 'join'?"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_one_is_named(
    tmp_path: Path, more: str, said: str
) -> None:
    assert refused(tmp_path, LEAST + more) == said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[fetch]\nin_flight = 'lots'", "key 'fetch.in_flight': 'lots' is not a size"),
        ("[fetch]\nin_flight = 0", "[fetch] in_flight_bytes is 0: it has to be more than 0"),
        ("[serve]\nlent = -1", "key 'serve.lent' = -1: expected a size"),
        ("[fetch]\nbandwidth = '10Gb/s'", "key 'fetch.bandwidth': '10Gb/s' may mean bits"),
        ("[fetch]\nstreams = 'two'", "key 'fetch.streams': Expected `int`, got `str`"),
        ("[fetch]\ndeadline_s = true", "key 'fetch.deadline_s': Expected `float`, got `bool`"),
        ("[fetch]\nkeep = 'maybe'", "key 'fetch.keep': Invalid enum value 'maybe'"),
        ("[fetch]\nhedge_s = -1", "[fetch] hedge_s is -1.0: it has to be more than 0"),
        ("[serve]\nconnections = 0", "[serve] connections is 0: it is positive"),
        ("[serve]\ndrain_s = -1", "key 'serve.drain_s' = -1.0: expected 0 or more"),
        ("[serve]\nask = '63KiB'", "key 'serve.ask' = 64512: a block has 65536 bytes"),
        ("[data]\ntransports = ['tcp', 'udp']", "key 'data.transports[1]': Invalid enum value"),
        ("[data]\nnixl_port = 65536", "key 'data.nixl_port' = 65536: expected 0 to 65535"),
        ("[data]\ntransports = []", "key 'data.transports': expected a list that names each"),
        ("[data]\ntransports = ['tcp', 'tcp']", "key 'data.transports': expected a list that"),
        ("[data]\nlisten = '7400'", "key 'data.listen' = '7400': expected host:port"),
        ("[data]\nlisten = '127.0.0.1:99999'", "key 'data.listen' = '127.0.0.1:99999'"),
        ("[data]\nlisten = '0.0.0.0:7400'", "key 'data.listen' = '0.0.0.0:7400' is every address"),
        ("[metrics]\nlisten = 'x'", "key 'metrics.listen' = 'x': expected host:port"),
        (
            "[metrics]\nlisten = '0.0.0.0:9464'",
            "key 'metrics.listen' = '0.0.0.0:9464': metrics are plain HTTP",
        ),
        ("[metrics]\nlisten = '10.1.2.3:1'", "key 'metrics.listen' = '10.1.2.3:1': metrics are"),
        ("[cluster]\nlease_s = 0.01", "[cluster] lease_s is 0.01"),
        ("[cluster]\njoin = ['nowhere']", "[cluster] 'nowhere' is no endpoint"),
        ("[cluster]\nlisten = ['10.0.0.1:7447']", "[cluster] tcp/10.0.0.1:7447: beyond loopback"),
        ("[tls]\nca = 'ca.pem'", "[tls] needs either 'folder', or 'ca', 'cert' and 'key'"),
        ("[tls]\nfolder = 3", "key 'tls.folder': expected a path, got 3"),
        ("[cost]\nrecompute_tokens_per_s = 0", "[fetch] key 'cost.recompute_tokens_per_s'"),
        (
            "[cost]\nrecompute_tokens_per_s = 1\nrecompute_s_per_block = 1",
            "[fetch] [cost] has 'recompute_s_per_block' and 'recompute_tokens_per_s': give one",
        ),
        ("[log]\nlevel = 'loud'", "key 'log.level': Invalid enum value 'loud'"),
        ("model = 'x'", "namespace[0] has 'digest' and fields of a namespace: give one of both"),
        ("[fetch", "not TOML"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_and_key(tmp_path: Path, more: str, said: str) -> None:
    if said == "not TOML":
        (tmp_path / "peer.toml").write_text(LEAST + more, encoding="utf-8")
        with pytest.raises(UsageError, match=r"peer.toml is not TOML"):
            load_config(tmp_path / "peer.toml")
        return
    assert refused(tmp_path, LEAST + more).startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEAST.replace('block = "64KiB"', ""), "[store] needs either 'block', a size, or 'model'"),
        (LEAST.replace('dram = "8MiB"', ""), "[store] has no tier: give 'dram' a size"),
        (LEAST.replace("parts = 4", "parts = 0"), "key 'store.parts' = 0: expected 1 to 384"),
        (LEAST.replace("parts = 4", "parts = 3"), "a block of 65536 bytes cannot be cut into 3"),
        (LEAST.replace("61" * 32, "61"), "key 'namespace[0].digest': expected 64 digits in hex"),
        (LEAST.replace("[[namespace]]", "[namespace]"), "key 'namespace': Expected `array`"),
        (LEAST.partition("[[")[0] + "namespace = []", "unknown key 'store.namespace'"),
        (LEAST.partition("[[")[0], "Object missing required field `namespace`"),
        ("namespace = []\n" + LEAST.partition("[[")[0], "expected at least one [[namespace]]"),
        ("", "Object missing required field `store`"),
    ],
)
def test_what_is_needed_and_missing_is_said(tmp_path: Path, text: str, said: str) -> None:
    assert refused(tmp_path, text).startswith(said)


def test_several_namespaces_have_to_name_tenants_of_their_own(tmp_path: Path) -> None:
    second = f"[[namespace]]\ndigest = '{'62' * 32}'\n"
    a, b, both = "tenants = ['a']\n", "tenants = ['b']\n", "tenants = ['b', 'a']\n"
    said = "namespace[0] and namespace[1] both have tenant 'a': a tenant is of one namespace"
    assert refused(tmp_path, LEAST + a + second + both) == said
    for text, at in ((second, 0), (a + second, 1), ("\n" + second + b, 0)):
        assert refused(tmp_path, LEAST + text).startswith(f"namespace[{at}] is for all tenants")
    shares = load(tmp_path, LEAST + a + second + b).shares()
    assert [share.tenants for share in shares] == [frozenset("a"), frozenset("b")]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*missing.toml: No such file"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "large").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UsageError, match="larger than 1048576 bytes"):
        load_config(tmp_path / "large")


def test_sizes_and_rates_take_units_or_plain_numbers(tmp_path: Path) -> None:
    more = "[fetch]\nin_flight = '1GiB'\nbandwidth = '400MB/s'\npull = 1048576\n"
    options = load(tmp_path, LEAST + more).fetch_options()
    assert (options.in_flight_bytes, options.bytes_per_s) == (2**30, 4e8)
    assert options.most_pull_bytes == 2**20


def test_a_model_gives_the_size_of_a_block(tmp_path: Path) -> None:
    text = LEAST.replace('block = "64KiB"', 'model = "llama-3.1-8b"\nblock_tokens = 16')
    # 2 (K and V) x 32 layers x 8 heads x 128 x 2 bytes x 16 tokens
    assert load(tmp_path, text.replace("8MiB", "64MiB")).layout() == Layout(2 * 2**20, parts=4)
    assert refused(tmp_path, text.replace("llama-3.1-8b", "lama")).startswith("'lama'")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    text = LEAST.replace("dram", "directories = ['kv', '/abs']\nnvme = '1GiB'\ndram")
    config = load(tmp_path, text + "[tls]\nfolder = 'certs'")
    assert config.store.directories == (tmp_path / "kv", Path("/abs"))
    files = config.tls_files()
    assert files is not None
    assert files.cert == tmp_path / "certs" / "cert.pem"


def test_fields_of_a_namespace_give_the_digest_that_the_engine_has(tmp_path: Path) -> None:
    table = {
        "model": "m",
        "revision": "r",
        "geometry": "g",
        "cache_dtype": "bf16",
        "layout": "NHD",
        "block_tokens": 16,
        "layers": (0, 32),
        "heads": (0, 8),
    }
    lines = "\n".join(
        f"{key} = {list(v) if isinstance(v, tuple) else v!r}" for key, v in table.items()
    )
    assert tomllib.loads(lines)["layers"] == [0, 32]
    (tmp_path / "salt").write_bytes(b"secret")
    text = LEAST.replace(f'digest = "{"61" * 32}"', lines + "\ntenants = ['a', 'b']")
    plain = Namespace(**table)  # type: ignore[arg-type]
    salted = Namespace(**table, salt=b"secret")  # type: ignore[arg-type]
    (share,) = load(tmp_path, text).shares()
    assert (share.digest, share.tenants) == (plain.digest, frozenset(("a", "b")))
    (share,) = load(tmp_path, text + "\nsalt_file = 'salt'").shares()
    assert share.digest == salted.digest
    assert "missing" in refused(tmp_path, text + "\nsalt_file = 'missing'")
    assert refused(tmp_path, text.replace("'m'", "''")).startswith("namespace[0]: namespace: model")


def test_what_is_advertised_is_what_others_are_told(tmp_path: Path) -> None:
    more = "[cluster]\ninsecure = true\n[data]\nlisten = '0.0.0.0:0'\nadvertise = '{}'\n"
    for told, tcp, nixl in (
        ("10.0.0.7", "10.0.0.7:4711", "10.0.0.7:12"),
        ("a.example:9", "a.example:9", "a.example:12"),
    ):
        config = load(tmp_path, LEAST + more.format(told))
        assert config.advertised("tcp", "0.0.0.0:4711") == tcp
        assert config.advertised("nixl", "0.0.0.0:12") == nixl
        assert config.advertised("shm", "kvbench-1") == "kvbench-1"
    assert load(tmp_path, LEAST).advertised("tcp", "127.0.0.1:4711") == "127.0.0.1:4711"


def test_metrics_are_served_beyond_loopback_if_the_user_says_insecure(tmp_path: Path) -> None:
    more = "[cluster]\ninsecure = true\n[metrics]\nlisten = '0.0.0.0:9464'"
    assert load(tmp_path, LEAST + more).metrics_listen() == ("0.0.0.0", 9464)
    for local in ("127.0.0.1", "[::1]", "localhost"):
        assert load(tmp_path, LEAST + f"[metrics]\nlisten = '{local}:1'").metrics_listen()


def test_128_peers_with_two_connections_each_can_be_served(tmp_path: Path) -> None:
    config = load(tmp_path, LEAST)
    assert config.listener_limits().connections >= 128 * config.fetch.streams


def test_tokens_a_second_say_what_a_block_costs(tmp_path: Path) -> None:
    text = LEAST.replace("parts = 4", "parts = 4\nblock_tokens = 32")
    config = load(tmp_path, text + "[cost]\nrecompute_tokens_per_s = 8000")
    assert config.fetch_options().recompute_s_per_block == pytest.approx(0.004)
