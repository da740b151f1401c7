"""Devices with a known bandwidth, latency and noise, so that the pipeline can be tested on truth.

A simulated body stands where a real one would: worker, sampler, statistics, rows and reports are
the same code. Its time is a fake clock's, so a run takes no longer than its arithmetic.

Noise model (log sd per level, as measured on real machines): every process draws one factor, and
samples inside it follow an AR(1) process, so that samples are no independent replicates here
either.
"""

import math
import zlib
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.clock import FakeClock

_S_TO_NS = 1e9
STEP_BYTES = 64 * 2**20  # a step moves about this much, in whole blocks
PATH = "simulated device"


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One tier: an operation of b bytes takes latency + b / bandwidth when it is alone."""

    bandwidth_bytes_per_s: float
    latency_s: float
    process_sd: float = 0.0  # log sd between processes
    sample_sd: float = 0.0  # log sd inside a process
    autocorrelation: float = 0.0  # lag 1, inside a process
    limit_bytes_per_s: float | None = None  # what the row's limit column says; None: bandwidth

    def __post_init__(self) -> None:
        if not (math.inf > self.bandwidth_bytes_per_s > 0 and math.inf > self.latency_s >= 0):
            raise ValueError("bandwidth_bytes_per_s must be above 0 and latency_s at least 0")
        if not (0 <= self.autocorrelation < 1 and self.process_sd >= 0 and self.sample_sd >= 0):
            raise ValueError("autocorrelation must be in [0, 1) and each sd at least 0")

    def true_bytes_per_s(self, block_bytes: int, queue_depth: int = 1) -> float:
        """What a perfect benchmark would find (Little's law, capped by the bandwidth)."""
        alone_s = self.latency_s + block_bytes / self.bandwidth_bytes_per_s
        return min(self.bandwidth_bytes_per_s, queue_depth * block_bytes / alone_s)


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine made of simulated devices, one a tier."""

    name: str
    devices: dict[str, Device]


def load_profile(name: str) -> Profile:
    """A profile that ships with kvbench, by name, or a TOML file, by path.

    Raises:
        UsageError: neither exists, or the file says something a profile cannot.
    """
    shipped = files("kvbench.data") / "profiles"
    path = Path(name)
    if path.suffix == ".toml":
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read profile {name}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise UsageError(f"profile {name} is not TOML: {error}") from None
    else:
        known = sorted(entry.name.removesuffix(".toml") for entry in shipped.iterdir())
        if name not in known:
            raise UsageError(
                f"no profile named {name!r}; there are: {', '.join(known)}, "
                "or a path ending in .toml"
            )
        text = (shipped / f"{name}.toml").read_text(encoding="utf-8")
    try:
        return msgspec.toml.decode(text, type=Profile)
    except msgspec.MsgspecError as error:
        raise UsageError(f"profile {name}: {error}") from None


class _Noise:
    """Factors on the rate, one after another."""

    def __init__(self, device: Device, seed: tuple[int, ...]) -> None:
        self._generator = np.random.default_rng(seed)
        self._device = device
        self._process = device.process_sd * self._generator.standard_normal()
        self._last = self._generator.standard_normal()

    def next(self) -> float:
        r = self._device.autocorrelation
        self._last = r * self._last + math.sqrt(1 - r * r) * self._generator.standard_normal()
        return math.exp(self._process + self._device.sample_sd * self._last)


class _Simulated:
    clock: ClassVar[str] = "fake"

    def __init__(self, device: Device, fake: FakeClock) -> None:
        self._device = device
        self._fake = fake

    def set_up(self, context: Context) -> None:
        """Draw this process's luck."""
        size = context.params.get("block_bytes") or context.params.get("token_bytes")
        self._block_bytes = int(size or context.geometry.block_bytes)  # a relayout has no size
        case_seed = hash_of(context.params)
        seed = (context.seed, case_seed, context.process, context.half)
        self._noise = _Noise(self._device, seed)

    def verify(self) -> int:
        """Nothing arrived, so nothing can be wrong."""
        return 0

    def observed(self) -> Observed:
        """It says what it is."""
        return Observed(path=PATH)

    def tear_down(self) -> None:
        """Nothing to release."""


class SimulatedStep(_Simulated):
    """Stands for a copy or a kernel."""

    def step(self) -> int:
        """As many whole blocks as fit `STEP_BYTES`, one after another."""
        blocks = max(1, STEP_BYTES // self._block_bytes)
        payload = blocks * self._block_bytes
        rate = self._device.true_bytes_per_s(self._block_bytes) * self._noise.next()
        self._fake.advance(payload / rate)
        return payload


class SimulatedStream(_Simulated):
    """Stands for storage or a peer at a queue depth."""

    def set_up(self, context: Context) -> None:
        """Draw this process's luck."""
        super().set_up(context)
        self.operation_bytes = self._block_bytes
        self._queue_depth = int(context.params.get("queue_depth", 1))
        self._slowdown = context.slowdown
        self._next_ns = 0.0

    operation_bytes = 0

    def start(self) -> None:
        """Operations begin now."""
        self._next_ns = self._fake.now_s() * _S_TO_NS

    def poll(self, wait_s: float) -> Completions:
        """Let the fake clock run and return what completed meanwhile, one at least."""
        until_ns = (self._fake.now_s() + wait_s) * _S_TO_NS
        ends: list[float] = []
        latencies: list[float] = []
        while wait_s > 0 and (not ends or self._next_ns < until_ns):
            rate = self._device.true_bytes_per_s(self._block_bytes, self._queue_depth)
            gap_ns = self._block_bytes / (rate * self._noise.next()) * _S_TO_NS
            self._next_ns += gap_ns * (1 + self._slowdown)
            ends.append(self._next_ns)
            latencies.append(gap_ns * self._queue_depth)  # Little's law
        self._fake.advance(max(wait_s, self._next_ns / _S_TO_NS - self._fake.now_s()))
        return Completions(np.array(ends).astype(np.int64), np.array(latencies).astype(np.int64))

    def stop(self) -> None:
        """Nothing is in flight."""

    def watch(self) -> Watch | None:
        """No file and no device is below it."""
        return None

    def slowed(self) -> float:
        """The share that was asked for: operations come that much later, each as fast as before."""
        return self._slowdown


def hash_of(params: dict[str, int | str | bool]) -> int:
    """A stable 32-bit number for a case's parameters."""
    return zlib.crc32(repr(sorted(params.items())).encode())
