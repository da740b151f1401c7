"""What serving takes, as physical terms: seconds that ideal hardware would need for each part.

A term is a count of bytes or operations over a data sheet's rate, so that what is fitted to it is a
dimensionless inverse efficiency that models and machines can share. Two terms count layers, in
microseconds: what launching costs, and agreeing among ranks. Fits nothing; see `serving`.
"""

import math
from typing import NamedTuple

import msgspec

from kvbench.sim.model.hardware import Hardware
from kvbench.sim.model.shape import Shape

TPOT_TERMS = ("layers", "ranks", "weights", "cache", "compute", "exchange")
TTFT_TERMS = ("layers", "ranks", "compute", "exchange", "ahead", "room")
CHUNK_TOKENS = (
    8192  # of a prefill that engines take at a time: the default of vLLM and TensorRT-LLM
)
KEPT = 0.9  # of a GPU's memory that engines use by default
LAYER_S = 1e-6


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One replica of a model under a closed loop of `concurrency` requests."""

    shape: Shape
    gpu: Hardware
    gpus: int
    replicas: int = 1  # of the attention
    weights: str = "bf16"
    cache_bytes: float = 2.0  # of one cached number
    concurrency: float = 1.0
    input_tokens: float
    output_tokens: float


class Costs(NamedTuple):
    """Seconds of ideal hardware for the parts that terms are made of."""

    weights_s: float  # to read all weights once
    step_weights_s: float  # to read what a decode step of the batch reads
    cache_s: float  # to read the caches of the batch
    token_s: float  # of arithmetic for one token
    prefill_s: float  # of arithmetic for one input
    exchange_s: float  # for one token between ranks
    running: float  # requests in the batch: what the memory holds, at most the concurrency


def costs(of: Setting) -> Costs:
    """The parts of a setting."""
    shape, gpus = of.shape, of.gpus
    stored = shape.weight_bytes(of.weights)
    common = stored.attention * of.replicas + stored.dense + stored.output
    cache = shape.cached(of.input_tokens + of.output_tokens / 2) * of.cache_bytes
    ranks = of.replicas if shape.latent else min(gpus, shape.kv_heads * of.replicas)
    kept = common + stored.experts + stored.embedding
    room = ranks * max(0.0, KEPT * of.gpu.hbm_bytes - kept / gpus)
    running = max(1.0, min(of.concurrency, room / cache))
    read = common + stored.experts * shape.experts_read(running)
    speed = gpus * of.gpu.flops(of.weights)
    token_s = 2 * shape.active_parameters / speed
    scores = 2 * shape.layers * shape.heads * shape.attention_dim * of.input_tokens**2
    # Two reductions a layer, of a ring: each rank sends (n - 1)/n of the activations, twice
    sent = 2 * shape.layers * shape.hidden * 2.0 * (gpus - 1) / gpus / of.replicas
    return Costs(
        weights_s=(common + stored.experts) / gpus / of.gpu.hbm_bytes_per_s,
        step_weights_s=read / gpus / of.gpu.hbm_bytes_per_s,
        cache_s=cache * running / ranks / of.gpu.hbm_bytes_per_s,
        token_s=token_s,
        prefill_s=token_s * of.input_tokens + scores / (gpus * of.gpu.bf16_flops),
        exchange_s=sent / of.gpu.peer_bytes_per_s,
        running=running,
    )


def tpot_terms(of: Setting) -> tuple[float, ...]:
    """One decode step as `TPOT_TERMS`: with it goes a share of the others' prefill."""
    cost = costs(of)
    layers = of.shape.layers * LAYER_S
    others = (cost.running - 1) / of.output_tokens  # inputs that are prefilled for each step
    chunks = math.ceil(of.input_tokens / CHUNK_TOKENS)
    prefill = max(2 * cost.prefill_s, chunks * cost.weights_s) * others
    tokens = cost.running + others * of.input_tokens
    return (
        layers,
        layers * math.log2(of.gpus),
        cost.step_weights_s,
        cost.cache_s,
        cost.token_s * cost.running + prefill,
        cost.exchange_s * tokens,
    )


def ttft_terms(of: Setting, tpot_s: float) -> tuple[float, ...]:
    """The time to the first token as `TTFT_TERMS`; who does not fit in memory waits for others.

    Requests of like lengths end, and begin, together: each waits for half of the others.
    """
    cost = costs(of)
    layers = of.shape.layers * LAYER_S
    chunks = math.ceil(of.input_tokens / CHUNK_TOKENS)
    waiting = max(0.0, of.concurrency - cost.running) / cost.running
    return (
        layers,
        layers * math.log2(of.gpus),
        max(cost.prefill_s, chunks * cost.weights_s),
        cost.exchange_s * of.input_tokens,
        (cost.running - 1) / 2 * cost.prefill_s,
        waiting * of.output_tokens * tpot_s,
    )
