"""What the tests of 8-bit formats share: rows that are hard to quantise, guard bands, near ties."""

import math
import os
from typing import NamedTuple

import torch

from kvbench_kernels.reference.quantise import spread

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GUARD = 0xA5
GUARD_BYTES = 65536  # what a tile without masks writes: more would be someone else's memory
ROWS = 37  # one tile of 32 groups of 128 and a ragged one
TYPES = [torch.bfloat16, torch.float16, torch.float32]
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def normal(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def with_outliers(rows: int, width: int) -> torch.Tensor:
    """Channels 5 and 69 of each 128 ten times as large as the others."""
    x = normal(rows, width)
    x[:, 5::64] *= 10
    return x


def hard_rows(width: int, dtype: torch.dtype, device: str, padding: int = 0) -> torch.Tensor:
    """[ROWS, width], each row with `padding` values behind it that are not numbers."""
    x = torch.full((ROWS, width + padding), math.nan)
    rows = x[:, :width]
    rows.copy_(normal(ROWS, width) * torch.logspace(-2, 2, ROWS)[:, None])
    ramp = torch.arange(width)
    rows[0] = 0.0
    rows[1] = -0.0
    rows[2] = torch.linspace(-1, 2, width)  # the largest of the last group is a power of two
    rows[3] = with_outliers(1, width)
    rows[4, 3] = 3.0e4
    rows[5] *= 1e-7  # under some floors
    rows[6] = -0.37
    rows[7] = torch.logspace(-7, 4, width)  # down to subnormal codes and to zero
    rows[8] = ramp % 449 * (1 - ramp % 2 * 2)  # ties: with a 448 in it the scale of fp8 is 1
    rows[8, ::16] = 448
    rows[9] = ramp % 127 + 0.5  # ties: with a 127 in it the scale of int8 is 1
    rows[9, ::16] = 127
    rows[ROWS - 1] = -normal(1, width, seed=1).abs()  # the ragged end
    return x.to(dtype).to(device)[:, :width]


class Guarded(NamedTuple):
    """Rows in memory that holds a byte over and over before, behind and between them."""

    tensor: torch.Tensor
    memory: torch.Tensor  # uint8, rows
    fill: int

    def assert_untouched_around(self) -> None:
        around = self.memory.clone()
        first = (self.memory.shape[0] - self.tensor.shape[0]) // 2
        row_bytes = self.tensor.shape[1] * self.tensor.element_size()
        around[first : first + self.tensor.shape[0], :row_bytes] = self.fill
        assert (around == self.fill).all(), "written outside of the rows"


def guarded(
    shape: tuple[int, int], dtype: torch.dtype, device: str, padding: int = 0, fill: int = GUARD
) -> Guarded:
    rows, width = shape
    row_bytes = (width + padding) * dtype.itemsize
    around = -(-GUARD_BYTES // row_bytes)
    memory = torch.full((rows + 2 * around, row_bytes), fill, dtype=torch.uint8, device=device)
    return Guarded(memory.view(dtype)[around : around + rows, :width], memory, fill)


def assert_same_codes(
    found: torch.Tensor, expected: torch.Tensor, x: torch.Tensor, scales: torch.Tensor
) -> None:
    """Equal bit for bit in the interpreter; on a GPU a code may be one off beside a tie."""
    found_bits, expected_bits = found.view(torch.uint8), expected.view(torch.uint8)
    if INTERPRETED:
        assert torch.equal(found_bits, expected_bits)
        return
    differ = found_bits != expected_bits
    one = found.float().double()[differ]
    other = expected.float().double()[differ]
    scaled = (x.double() / spread(scales.double(), x.shape))[differ]
    from_tie = ((one + other) / 2 - scaled).abs()
    assert (from_tie <= 1e-5 * scaled.abs()).all()


def relative_rms(found: torch.Tensor, x: torch.Tensor) -> float:
    error = found.double() - x.double()
    return float(error.square().mean().sqrt() / x.double().square().mean().sqrt())
