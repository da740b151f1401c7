"""Formats that bodies quantise to: the tensors each needs, its kernels, and how it is checked.

What a kernel stored is never compared code by code: dividing on a GPU may round the other way on a
tie. It is decoded by plain torch in float64 and held against the error bound of the format
(docs/kernels.md). Only the worker process imports this.
"""

from abc import ABC, abstractmethod

import torch

from kvbench_kernels.fp8 import (
    dequantise_fp8,
    dequantise_fp8_tensor,
    quantise_fp8,
    quantise_fp8_tensor,
)
from kvbench_kernels.fused import (
    dequantise_scatter_fp8,
    dequantise_scatter_int8,
    gather_quantise_fp8,
    gather_quantise_int8,
)
from kvbench_kernels.gather import gather_pages, scatter_pages
from kvbench_kernels.int4 import dequantise_int4, quantise_int4
from kvbench_kernels.int8 import dequantise_int8, quantise_int8
from kvbench_kernels.kivi import dequantise_kivi, quantise_kivi
from kvbench_kernels.reference import quantise_int4 as int4_reference
from kvbench_suites.formats import FORMATS

Stored = tuple[torch.Tensor, ...]  # codes, scales and, for int4, minima
LARGEST_VALUE = 32.0  # of what bodies quantise: `finite_bf16` of kvbench_suites.quantise_bodies
E4M3_MAX = 448.0
ROUNDING = 1 + 2e-5  # of the bounds: what float32 arithmetic adds
BF16_ROUNDING = 2.0**-8 * ROUNDING  # of a value
INT4_STEP_SHARE = 1e-6  # of a value: adding the minimum in float32


class Codec(ABC):
    """One format for pages of bf16 values, [pages, page_values]."""

    def __init__(self, group: int, tokens: int) -> None:
        self.group = group
        self.tokens = tokens
        self._staging = torch.empty(0, 0)

    @abstractmethod
    def empty(self, pages: int, page_values: int, device: torch.device, *, pin: bool) -> Stored:
        """Room for so many pages, all zeros; pinned if it is on the CPU and `pin`."""

    @abstractmethod
    def quantise(self, values: torch.Tensor, stored: Stored) -> None:
        """Enqueue: bf16 [pages, page_values] into `stored`."""

    @abstractmethod
    def dequantise(self, stored: Stored, out: torch.Tensor) -> None:
        """Enqueue: the way back."""

    @abstractmethod
    def decode(self, stored: Stored) -> torch.Tensor:
        """float64 [pages, page_values], by plain torch."""

    @abstractmethod
    def allowed(self, values: torch.Tensor, stored: Stored) -> torch.Tensor:
        """float64 [pages, page_values]: the most that each value may be off, from float64 ones."""

    def gather(self, cache: torch.Tensor, page_ids: torch.Tensor, stored: Stored) -> None:
        """Enqueue: quantise pages by id; in one launch where the format has a fused kernel."""
        pages = self._staged(cache, page_ids)
        gather_pages(cache.view(torch.uint8), page_ids, pages.view(torch.uint8))
        self.quantise(pages, stored)

    def scatter(self, stored: Stored, page_ids: torch.Tensor, cache: torch.Tensor) -> None:
        """Enqueue: dequantise into pages by id; in one launch likewise."""
        pages = self._staged(cache, page_ids)
        self.dequantise(stored, pages)
        scatter_pages(pages.view(torch.uint8), page_ids, cache.view(torch.uint8))

    def difference(self, values: torch.Tensor, stored: Stored) -> str | None:
        """What is wrong with the stored form of bf16 values, or None."""
        exact, stored = values.double(), tuple(each.to(values.device) for each in stored)
        wrong = (self.decode(stored) - exact).abs() > self.allowed(exact, stored)
        wrong |= ~torch.isfinite(self.decode(stored))
        if not bool(wrong.any()):
            return None
        at = int(torch.nonzero(wrong.flatten())[0])
        found = float(self.decode(stored).flatten()[at])
        return f"value {at}, {float(exact.flatten()[at]):.6g}, came back as {found:.6g}"

    def restored(self, stored: Stored, found: torch.Tensor) -> str | None:
        """What is wrong with bf16 values that were made from `stored`, or None."""
        stored = tuple(each.to(found.device) for each in stored)
        decoded, slack = self.decode(stored), self.slack(stored)
        if slack is None:  # one multiplication: both round the same exact product
            return first_difference(decoded.float().to(torch.bfloat16), found)
        bound = BF16_ROUNDING * decoded.abs() + slack
        wrong = (found.double() - decoded).abs() > bound
        if not bool(wrong.any()):
            return None
        at = int(torch.nonzero(wrong.flatten())[0])
        pair = float(decoded.flatten()[at]), float(found.flatten()[at])
        return f"value {at}, expected {pair[0]:.6g}, found {pair[1]:.6g}"

    def slack(self, _stored: Stored) -> torch.Tensor | None:
        """float64 [pages, page_values]: what float32 arithmetic may lose on the way back."""
        return None

    def _staged(self, cache: torch.Tensor, page_ids: torch.Tensor) -> torch.Tensor:
        """Room for these pages, made at the first use: bodies move one unit before the clock."""
        shape = (len(page_ids), cache.shape[1])
        if self._staging.shape != shape:
            self._staging = torch.empty(shape, dtype=cache.dtype, device=cache.device)
        return self._staging

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        """float64 [pages, page_values] of [pages, page_values / group]."""
        return scales.double().repeat_interleave(self.group, dim=-1)


class _Scaled(Codec):
    """A scale for each group along a row."""

    codes_dtype: torch.dtype

    def empty(self, pages: int, page_values: int, device: torch.device, *, pin: bool) -> Stored:
        groups = page_values // self.group
        return (
            _zeros((pages, page_values), torch.uint8, device, pin=pin).view(self.codes_dtype),
            _zeros((pages, groups), torch.float32, device, pin=pin),
        )

    def decode(self, stored: Stored) -> torch.Tensor:
        codes, scales = stored
        return codes.float().double() * self.spread(scales)


class _Fp8(_Scaled):
    """e4m3; a value comes back within 1/17 of itself or 2**-10 scales."""

    codes_dtype = torch.float8_e4m3fn

    def quantise(self, values: torch.Tensor, stored: Stored) -> None:
        codes, scales = stored
        quantise_fp8(values, codes, scales, group=self.group)

    def dequantise(self, stored: Stored, out: torch.Tensor) -> None:
        codes, scales = stored
        dequantise_fp8(codes, scales, out, group=self.group)

    def gather(self, cache: torch.Tensor, page_ids: torch.Tensor, stored: Stored) -> None:
        codes, scales = stored
        gather_quantise_fp8(cache, page_ids, codes, scales, group=self.group)

    def scatter(self, stored: Stored, page_ids: torch.Tensor, cache: torch.Tensor) -> None:
        codes, scales = stored
        dequantise_scatter_fp8(codes, scales, page_ids, cache, group=self.group)

    def allowed(self, values: torch.Tensor, stored: Stored) -> torch.Tensor:
        return torch.maximum(values.abs() / 17, self.spread(stored[1]) * 2.0**-10) * ROUNDING


class _Fp8Tensor(_Fp8):
    """e4m3 with one scale that is known beforehand, as engines calibrate it."""

    def empty(self, pages: int, page_values: int, device: torch.device, *, pin: bool) -> Stored:
        codes = _zeros((pages, page_values), torch.uint8, device, pin=pin)
        scale = torch.full((1,), LARGEST_VALUE / E4M3_MAX, dtype=torch.float32, device=device)
        return codes.view(self.codes_dtype), scale

    def quantise(self, values: torch.Tensor, stored: Stored) -> None:
        codes, scale = stored
        quantise_fp8_tensor(values, codes, scale)

    def dequantise(self, stored: Stored, out: torch.Tensor) -> None:
        codes, scale = stored
        dequantise_fp8_tensor(codes, scale, out)

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        return scales.double()


class _Int8(_Scaled):
    """Symmetric; a value comes back within half a scale."""

    codes_dtype = torch.int8

    def quantise(self, values: torch.Tensor, stored: Stored) -> None:
        codes, scales = stored
        quantise_int8(values, codes, scales, group=self.group)

    def dequantise(self, stored: Stored, out: torch.Tensor) -> None:
        codes, scales = stored
        dequantise_int8(codes, scales, out, group=self.group)

    def gather(self, cache: torch.Tensor, page_ids: torch.Tensor, stored: Stored) -> None:
        codes, scales = stored
        gather_quantise_int8(cache, page_ids, codes, scales, group=self.group)

    def scatter(self, stored: Stored, page_ids: torch.Tensor, cache: torch.Tensor) -> None:
        codes, scales = stored
        dequantise_scatter_int8(codes, scales, page_ids, cache, group=self.group)

    def allowed(self, values: torch.Tensor, stored: Stored) -> torch.Tensor:
        return self.spread(stored[1]).expand_as(values) / 2 * ROUNDING


class _Int4(Codec):
    """Groups along a row with a scale and a minimum; within half a scale."""

    def empty(self, pages: int, page_values: int, device: torch.device, *, pin: bool) -> Stored:
        groups = (pages, page_values // self.group)
        return (
            _zeros((pages, page_values // 2), torch.uint8, device, pin=pin),
            _zeros(groups, torch.float32, device, pin=pin),
            _zeros(groups, torch.float32, device, pin=pin),
        )

    def quantise(self, values: torch.Tensor, stored: Stored) -> None:
        codes, scales, minima = stored
        quantise_int4(values, codes, scales, minima, group=self.group)

    def dequantise(self, stored: Stored, out: torch.Tensor) -> None:
        codes, scales, minima = stored
        dequantise_int4(codes, scales, minima, out, group=self.group)

    def decode(self, stored: Stored) -> torch.Tensor:
        codes, scales, minima = stored
        out = torch.empty(len(codes), 2 * codes.shape[1], dtype=torch.float64, device=codes.device)
        int4_reference.dequantise_int4(codes, scales, minima, out, group=self.group)
        return out

    def allowed(self, values: torch.Tensor, stored: Stored) -> torch.Tensor:
        return self.spread(stored[1]) / 2 * ROUNDING + INT4_STEP_SHARE * values.abs()

    def slack(self, stored: Stored) -> torch.Tensor | None:
        _, scales, minima = stored
        return self.spread(_adding(scales, minima))


class _Kivi(Codec):
    """Groups of tokens of each channel, as KIVI keeps keys; within half a scale."""

    def empty(self, pages: int, page_values: int, device: torch.device, *, pin: bool) -> Stored:
        channels = page_values // self.tokens
        groups = (pages, self.tokens // self.group, channels)
        return (
            _zeros((pages, self.tokens // 4, channels, 2), torch.uint8, device, pin=pin),
            _zeros(groups, torch.float32, device, pin=pin),
            _zeros(groups, torch.float32, device, pin=pin),
        )

    def quantise(self, values: torch.Tensor, stored: Stored) -> None:
        codes, scales, minima = stored
        quantise_kivi(self._by_token(values), codes, scales, minima, group=self.group)

    def dequantise(self, stored: Stored, out: torch.Tensor) -> None:
        codes, scales, minima = stored
        dequantise_kivi(codes, scales, minima, self._by_token(out), group=self.group)

    def decode(self, stored: Stored) -> torch.Tensor:
        codes, scales, minima = stored
        shape = (len(scales), self.tokens, scales.shape[-1])
        out = torch.empty(shape, dtype=torch.float64, device=scales.device)
        int4_reference.dequantise_kivi(codes, scales, minima, out, group=self.group)
        return out.flatten(1)

    def allowed(self, values: torch.Tensor, stored: Stored) -> torch.Tensor:
        return self.spread(stored[1]) / 2 * ROUNDING + INT4_STEP_SHARE * values.abs()

    def slack(self, stored: Stored) -> torch.Tensor | None:
        _, scales, minima = stored
        return self.spread(_adding(scales, minima))

    def spread(self, scales: torch.Tensor) -> torch.Tensor:
        return scales.double().repeat_interleave(self.group, dim=1).flatten(1)

    def _by_token(self, values: torch.Tensor) -> torch.Tensor:
        return values.view(len(values), self.tokens, -1)


def codec_of(name: str, *, head_dim: int, tokens: int) -> Codec:
    """The codec of a format of `kvbench_suites.kernels.FORMATS`."""
    if name == "fp8-tensor":
        return _Fp8Tensor(1, tokens)
    kinds: dict[str, type[Codec]] = {"fp8": _Fp8, "int8": _Int8, "int4": _Int4, "kivi": _Kivi}
    return kinds[name.partition("-")[0]](FORMATS[name].group or head_dim, tokens)


def first_difference(expected: torch.Tensor, found: torch.Tensor) -> str | None:
    """Where two tensors of one shape differ first, or None if nowhere."""
    if torch.equal(expected, found):
        return None
    at = int(torch.nonzero(expected.flatten() != found.flatten())[0])
    pair = expected.flatten()[at].item(), found.flatten()[at].item()
    return f"element {at} differs, expected {pair[0]}, found {pair[1]}"


def _adding(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """What is lost when float32 adds a minimum and up to 15 scales: an ulp of each and of both."""
    return 2.0**-22 * (minima.double().abs() + 16 * scales.double())


def _zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pin: bool
) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pin)
