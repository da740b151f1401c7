"""Kernels that quantise KV blocks and bring them back: the work behind those cases of `kernels`.

Pages of bf16 values on one side, codes with their scales on the other, by unit: see
`kvbench_suites.codecs`. Units rotate as in `kvbench_suites.hbm_bodies`. Payload is counted in
bytes before quantising, whichever way it goes. Only the worker process imports this.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from kvbench.measure.body import Context
from kvbench_suites.codecs import Stored, codec_of
from kvbench_suites.formats import ELEMENT_BYTES
from kvbench_suites.hbm_bodies import PagedBody, verify_units

# Exponents of the values, 2**-3 to 2**4: random bits would hold infinities and NaN.
LEAST_EXPONENT = 127 - 3
EXPONENT_BITS = 3


def finite_bf16(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Random bytes as bf16 values of a size between 1/8 and 32, signs and fractions kept."""
    bits = data.view(np.uint16)
    exponents = LEAST_EXPONENT + ((bits >> 7) & ((1 << EXPONENT_BITS) - 1))
    made = ((bits & 0x807F) | (exponents << 7)).astype(np.uint16)
    return made.view(np.uint8)


class ConvertingBody(PagedBody):
    """Units of pages in bf16, `source` or `target`, and for each a stored form."""

    def set_up(self, context: Context) -> None:
        """As of the bodies that move pages, with finite values."""
        self._page_values = context.count("page_bytes") // ELEMENT_BYTES
        super().set_up(context)

    def verify(self) -> int:
        """Check every unit that was written; bytes of bf16 behind them.

        Raises:
            CorruptDataError: a unit holds something else.
        """
        self._synchronise()
        return verify_units(self, self._difference)

    def _truth(self) -> NDArray[np.uint8]:
        return finite_bf16(super()._truth())

    def _prepare(self) -> None:
        context = self._context
        self._codec = codec_of(
            context.word("format"),
            head_dim=context.count("head_dim"),
            tokens=context.count("block_tokens"),
        )
        self._source_ids = self._ids(self.source_slots)
        self._target_ids = self._ids(self.target_slots)

    def _stored_units(self, *, pin: bool = False) -> list[Stored]:
        device = torch.device("cpu") if pin else self.device
        real_pin = pin and self.device.type == "cuda"
        return [
            self._codec.empty(self.batch, self._page_values, device, pin=real_pin)
            for _ in range(self.units)
        ]

    def _values(self, arena: torch.Tensor) -> torch.Tensor:
        """uint8 [slots, page_bytes] as bf16 [slots, page_values]."""
        return arena.view(torch.bfloat16)

    def _unit_values(self, arena: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """bf16 [batch, page_values] for each unit of an arena that is not scattered."""
        return self._values(arena).view(self.units, self.batch, -1).unbind(0)

    def _source_values(self, source: int) -> torch.Tensor:
        """bf16 [batch, page_values]: what a unit of source was filled with."""
        slots = torch.as_tensor(self.source_slots[source]).to(self.source.device)
        return self._values(self.source)[slots]

    def _difference(self, source: int, target: int) -> str | None:
        """What is wrong with a unit of target, or None."""
        return self._codec.difference(self._source_values(source), self._stored[target])

    _stored: list[Stored]


class Quantise(ConvertingBody):
    """Quantises one batch of adjacent pages after another."""

    def _prepare(self) -> None:
        super()._prepare()
        self._stored = self._stored_units()
        self._units_in = self._unit_values(self.source)

    def _move(self, source: int, target: int) -> None:
        self._codec.quantise(self._units_in[source], self._stored[target])


class GatherQuantise(ConvertingBody):
    """Gathers and quantises the pages of one batch of blocks after another."""

    scattered_source = True

    def _prepare(self) -> None:
        super()._prepare()
        self._stored = self._stored_units()
        self._cache = self._values(self.source)

    def _move(self, source: int, target: int) -> None:
        self._codec.gather(self._cache, self._source_ids[source], self._stored[target])


class RestoringBody(ConvertingBody):
    """From stored units to pages: what arrives must be the stored values, rounded to bf16."""

    def _prepare(self) -> None:
        super()._prepare()
        self._stored = self._stored_units()
        for unit, stored in zip(self._unit_values(self.source), self._stored, strict=True):
            self._codec.quantise(unit, stored)

    def _difference(self, source: int, target: int) -> str | None:
        slots = torch.as_tensor(self.target_slots[target]).to(self.target.device)
        return self._codec.restored(self._stored[source], self._values(self.target)[slots])


class Dequantise(RestoringBody):
    """Brings one batch of adjacent pages after another back to bf16."""

    def _prepare(self) -> None:
        super()._prepare()
        self._units_out = self._unit_values(self.target)

    def _move(self, source: int, target: int) -> None:
        self._codec.dequantise(self._stored[source], self._units_out[target])


class DequantiseScatter(RestoringBody):
    """Dequantises one batch of blocks after another into their pages."""

    scattered_target = True

    def _prepare(self) -> None:
        super()._prepare()
        self._cache = self._values(self.target)

    def _move(self, source: int, target: int) -> None:
        self._codec.scatter(self._stored[source], self._target_ids[target], self._cache)
