"""Calibrations joined into what a `Scenario` is made of, with notes on where each part is from."""

import math

import msgspec

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry, load_geometry
from kvbench.sim.model.compute import Compute
from kvbench.sim.model.tiers import Tiers
from kvbench.sim.model.transfer import quantised
from kvbench.sim.scenario import Decode, Path, Prefill, Tier

BELOW_HBM = ("dram", "nvme")
_MEMORY = "hbm.read"  # the curve that quantising goes by


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """All of it is modelled; `notes` and `outside` belong beside whatever is made of it."""

    prefill: Prefill
    decode: Decode
    reads: dict[str, Path]  # "dram", "nvme" → to the GPUs of a node
    writes: dict[str, Path]
    network: Path | None  # of one node
    kv_bytes_per_token: float  # of the whole model
    stored_bytes_per_token: float
    kernel_bytes_per_s: float  # of quantising or its reverse, in bytes of HBM; infinite: it is free
    layers: int
    hbm_free_bytes: float  # 0: not known
    notes: tuple[str, ...]
    outside: tuple[str, ...]
    kind: str

    def tier(
        self, name: str, capacity_bytes: float, *, block_tokens: int, eviction: str = "lru"
    ) -> Tier:
        """A tier of a node with room for so many bytes.

        Raises:
            UsageError: it has room for blocks, and how fast it is is not known.
        """
        size = self.kv_bytes_per_token if name == "hbm" else self.stored_bytes_per_token
        blocks = int(capacity_bytes // (size * block_tokens))
        if name != "hbm" and blocks and name not in self.reads:
            raise UsageError(f"how fast {name} is is not known: {'; '.join(self.notes)}")
        return Tier(
            name=name,
            capacity_blocks=blocks,
            eviction=eviction,
            read=self.reads.get(name),
            write=self.writes.get(name),
        )


def scenario_parts(
    model: KVGeometry,
    compute: Compute,
    tiers: Tiers,
    *,
    block_tokens: int = 512,
    queue_depth: int = 16,
    stored_dtype: str | None = None,
) -> Parts:
    """What computing and moving take for `model`; below HBM it may be kept in `stored_dtype`.

    Quantising reads all bytes of HBM once and writes what is stored, or the reverse, at the rate
    that memory has. Where that rate is known, its time is added to that of a lone transfer; of
    transfers that share a path it hides behind the others'.

    Raises:
        UsageError: the model has no cache per token, or `stored_dtype` is no dtype of it.
    """
    per_token = float(model.model_bytes_per_token)
    stored = per_token
    if stored_dtype is not None:
        other = load_geometry(model.name, cache_dtype=stored_dtype)
        stored = float(other.model_bytes_per_token)
    block_bytes = max(1, int(stored * block_tokens))
    kernel = _kernel_bytes_per_s(tiers, stored / per_token)
    reads: dict[str, Path] = {}
    writes: dict[str, Path] = {}
    used: list[str] = []
    outside: list[str] = []
    for tier in BELOW_HBM:
        for direction, into in (("read", reads), ("write", writes)):
            name = f"{tier}.{direction}"
            if name not in tiers.curves:
                used.append(f"{name}: {tiers.missing.get(name, 'not known')}")
                continue
            curve = tiers.curve(name)
            depth = curve.most(queue_depth)
            path = curve.path(block_bytes=block_bytes, depth=depth)
            into[tier] = quantised(path, stored_share=stored / per_token, kernel_bytes_per_s=kernel)
            used.append(f"{name}: {curve.source}")
            outside += [f"{name}: {why}" for why in curve.outside(block_bytes, None, depth)]
    if math.isfinite(kernel):
        source = tiers.curve(_MEMORY).source
        used.append(f"quantising to {stored_dtype}: {kernel / 1e9:.4g} GB/s, {source}")
    elif stored != per_token:
        outside.append(
            f"{stored_dtype} below HBM: fewer bytes; how fast HBM is is not known, so the time to "
            "quantise is left out"
        )
    network = None
    if "peer.read" in tiers.curves:
        network = tiers.path("peer.read", block_bytes=block_bytes, queue_depth=queue_depth)
        used.append(f"network: {tiers.curve('peer.read').source}")
    return Parts(
        prefill=compute.prefill,
        decode=msgspec.structs.replace(
            compute.decode, most_context_tokens=int(compute.hbm_free_bytes / per_token)
        ),
        reads=reads,
        writes=writes,
        network=network,
        kv_bytes_per_token=per_token,
        stored_bytes_per_token=stored,
        kernel_bytes_per_s=kernel,
        layers=model.layer_count,
        hbm_free_bytes=compute.hbm_free_bytes,
        notes=(f"computing: {compute.name}, {compute.source}", *used),
        outside=tuple(outside),
        kind=f"{tiers.kind} tiers, modelled computing",
    )


def _kernel_bytes_per_s(tiers: Tiers, share: float) -> float:
    """Of quantising or its reverse, in bytes before quantising: all are moved, and a share more."""
    if share == 1.0 or _MEMORY not in tiers.curves:
        return math.inf
    return 1 / (tiers.curve(_MEMORY).s_per_byte * (1 + share))
