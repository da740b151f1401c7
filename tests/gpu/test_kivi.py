"""int4 by channel: half a step of error at most, in float64, and outliers that cost nothing.

Bounds hold for each value. The GPU's division is good to two units in the last place, so a code
may differ from plain torch's where a value is within 1e-5 steps of a tie, and only there.
"""

import functools
import math
import mmap
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from kvbench_kernels.checks import SCALE_FLOOR
from kvbench_kernels.int4 import quantise_int4
from kvbench_kernels.kivi import dequantise_kivi, kivi_bytes_moved, quantise_kivi
from kvbench_kernels.reference import quantise_int4 as reference

GUARD_BYTES = 32768  # more than a program writes
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TYPES = [(BF16, FP32), (FP16, FP32), (BF16, BF16), (FP16, FP16)]  # of values and of scales
GROUPS = [16, 32, 64]
ROUNDING = {BF16: 2.0**-8, FP16: 2.0**-11, FP32: 2.0**-24}  # of a result, relative
LEAST_FLOOR = {BF16: SCALE_FLOOR, FP16: 2.0**-14, FP32: SCALE_FLOOR}
SHAPE = (1, 64, 72)  # nine eights of channels fill no program of any group size


class Quantised(NamedTuple):
    codes: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor


class Guarded(NamedTuple):
    """A contiguous tensor in the middle of memory that holds one byte over and over."""

    tensor: torch.Tensor
    memory: torch.Tensor
    fill: int

    def assert_untouched_around(self) -> None:
        assert (self.memory[:GUARD_BYTES] == self.fill).all(), "written in front of the tensor"
        assert (self.memory[-GUARD_BYTES:] == self.fill).all(), "written past the tensor"


def guarded(shape: tuple[int, ...], dtype: torch.dtype, device: str, fill: int = 0xA5) -> Guarded:
    size_bytes = math.prod(shape) * dtype.itemsize
    memory = torch.full((size_bytes + 2 * GUARD_BYTES,), fill, dtype=torch.uint8, device=device)
    inner = memory[GUARD_BYTES : GUARD_BYTES + size_bytes]
    return Guarded(inner.view(dtype).view(shape), memory, fill)


def quantise(
    x: torch.Tensor, group: int, scale_dtype: torch.dtype = FP32, fill: int = 0xA5
) -> Quantised:
    blocks, tokens, channels = x.shape
    device = str(x.device)
    outputs = (
        guarded((blocks, tokens // 4, channels, 2), torch.uint8, device, fill),
        guarded((blocks, tokens // group, channels), scale_dtype, device, fill),
        guarded((blocks, tokens // group, channels), scale_dtype, device, fill),
    )
    quantised = Quantised(*(output.tensor for output in outputs))
    quantise_kivi(x, *quantised, group=group, floor=LEAST_FLOOR[scale_dtype])
    for output in outputs:
        output.assert_untouched_around()
    return quantised


def dequantise(
    quantised: Quantised, group: int, dtype: torch.dtype, fill: int = 0xA5
) -> torch.Tensor:
    blocks, quads, channels, _ = quantised.codes.shape
    out = guarded((blocks, 4 * quads, channels), dtype, str(quantised.codes.device), fill)
    dequantise_kivi(*quantised, out.tensor, group=group)
    out.assert_untouched_around()
    return out.tensor


def normal(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> torch.Tensor:
    x = normal(shape, seed)
    x[..., 5] *= 10
    x[..., 69] *= 10
    return x


def in_groups(x: torch.Tensor, group: int) -> torch.Tensor:
    blocks, tokens, channels = x.shape
    return x.reshape(blocks, tokens // group, group, channels)


def one_by_one(codes: torch.Tensor) -> torch.Tensor:
    """Codes in the order of their values, [blocks, tokens, channels]."""
    first, second = codes[..., 0], codes[..., 1]
    four = torch.stack((first % 16, first // 16, second % 16, second // 16), dim=2)
    return four.flatten(1, 2)


def some_channels_zero() -> torch.Tensor:
    x = normal()
    x[:, :, ::3] = 0.0
    x[:, 16:48, 8:24] = 0.0
    return x


def both_zeros() -> torch.Tensor:
    x = normal()
    x[:, :, ::2] = x[:, :, ::2].sign() * 0.0
    x[:, :, 1::2] = x[:, :, 1::2].relu() * -1.0
    return x


def one_spike() -> torch.Tensor:
    x = 1e-3 * normal()
    x[:, 40] = 3e4
    return x


DATA: dict[str, Callable[[], torch.Tensor]] = {
    "normal": normal,
    "outlier channels": with_outliers,
    "channels of zeros": some_channels_zero,
    "both zeros": both_zeros,
    "one spike": one_spike,
    "100 to 115": lambda: 100 + 15 * normal().sigmoid(),
    "up to a power of two": lambda: torch.linspace(-1, 2, 64)[None, :, None].expand(SHAPE).clone(),
    "a constant a channel": lambda: normal((1, 1, 72)).expand(SHAPE).clone(),
}


class Case(NamedTuple):
    """The blocks of one kind of data, and what became of them."""

    x: torch.Tensor
    quantised: Quantised
    back: torch.Tensor


@functools.cache  # all data in one launch: the interpreter takes its time by the launch
def cases(group: int, dtype: torch.dtype, scale_dtype: torch.dtype, device: str) -> dict[str, Case]:
    x = torch.cat([make() for make in DATA.values()]).to(device, dtype)
    quantised = quantise(x, group, scale_dtype)
    parts = (x, *quantised, dequantise(quantised, group, dtype))
    found: dict[str, Case] = {}
    for name, *of_data in zip(DATA, *(part.chunk(len(DATA)) for part in parts), strict=True):
        found[name] = Case(of_data[0], Quantised(*of_data[1:4]), of_data[4])
    return found


@pytest.mark.parametrize(("dtype", "scale_dtype"), TYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("data", DATA)
def test_every_value_comes_back_within_half_a_step(
    data: str, group: int, dtype: torch.dtype, scale_dtype: torch.dtype, device: str
) -> None:
    x, quantised, out = cases(group, dtype, scale_dtype, device)[data]

    exact, back = in_groups(x.double(), group), in_groups(out.double(), group)
    minimum, maximum = exact.amin(2), exact.amax(2)
    step = ((maximum - minimum) / 15).clamp(min=LEAST_FLOOR[scale_dtype])
    assert torch.equal(quantised.minima.double(), minimum)
    rounding = 2e-7 + (0.0 if scale_dtype is FP32 else ROUNDING[scale_dtype])
    assert ((quantised.scales.double() - step).abs() <= rounding * step).all()
    half = step[:, :, None] / 2 * (1 + 2e-5) * (1 + rounding)
    assert ((back - exact).abs() <= half + ROUNDING[dtype] * back.abs()).all()


@pytest.mark.parametrize(("dtype", "scale_dtype"), TYPES)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("data", DATA)
def test_codes_differ_from_plain_torch_only_next_to_a_tie(
    data: str, group: int, dtype: torch.dtype, scale_dtype: torch.dtype, device: str
) -> None:
    x, quantised, _ = cases(group, dtype, scale_dtype, device)[data]
    expected = Quantised(*(torch.empty_like(part) for part in quantised))
    reference.quantise_kivi(x, *expected, group=group, floor=LEAST_FLOOR[scale_dtype])

    differ = one_by_one(quantised.codes) != one_by_one(expected.codes)
    scale = quantised.scales.double()[:, :, None]
    steps = (in_groups(x.double(), group) - quantised.minima.double()[:, :, None]) / scale
    next_to_a_tie = ((steps - steps.floor() - 0.5).abs() <= 1e-5).reshape(x.shape)
    same_scale = (quantised.scales == expected.scales).repeat_interleave(group, dim=1)
    if scale_dtype is FP32:  # there the two may differ in the last place, which ties allow for
        same_scale[:] = True
    assert same_scale.double().mean() > 0.99
    assert not (differ & ~next_to_a_tie & same_scale).any()


def test_a_tie_goes_to_the_even_code(device: str) -> None:
    x = torch.zeros(1, 32, 8)
    x[0, 1] = 15  # a step is 1
    x[0, 2:17] = torch.arange(15)[:, None] + 0.5

    codes = one_by_one(quantise(x.to(device, BF16), 32).codes)

    even = torch.tensor([0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14])
    assert torch.equal(codes[0, 2:17].long().cpu(), even[:, None].expand(15, 8))


@pytest.mark.parametrize("group", GROUPS)
def test_four_tokens_of_a_channel_are_two_bytes_the_first_in_the_low_half(
    group: int, device: str
) -> None:
    token, channel = torch.arange(64)[:, None], torch.arange(16)[None, :]
    x = ((token + channel) % 16).float()[None]  # each group of each channel is 0 to 15

    codes = quantise(x.to(device, BF16), group).codes.cpu()

    for first in (0, 4, 60):
        assert codes[0, first // 4, 0].tolist() == [
            first % 16 | (first + 1) % 16 << 4,
            (first + 2) % 16 | (first + 3) % 16 << 4,
        ]
    assert codes[0, 0, 3].tolist() == [0x43, 0x65]
    assert codes[0, 0, 15].tolist() == [0x0F, 0x21]


@pytest.mark.parametrize(("dtype", "scale_dtype"), TYPES)
def test_equal_values_come_back_exactly(
    dtype: torch.dtype, scale_dtype: torch.dtype, device: str
) -> None:
    constants = torch.tensor([0.0, -0.0, 1.0, -2.71828, 1e-5, 3.1e4, -6e4, 0.1])
    x = constants.to(device, dtype)[None, None, :].repeat(2, 32, 1)

    quantised = quantise(x, 32, scale_dtype)

    assert (quantised.codes == 0).all()
    assert torch.equal(dequantise(quantised, 32, dtype), x)


@pytest.mark.parametrize("scale_dtype", [FP32, BF16])
def test_the_ends_of_a_group_are_codes_0_and_15_whatever_its_range(
    scale_dtype: torch.dtype, device: str
) -> None:
    # Were a largest value ever to round to 16, it would carry into its neighbour's code.
    generator = torch.Generator().manual_seed(3)
    ranges = torch.exp(torch.empty(1, 1, 2048).uniform_(-20, 80, generator=generator))
    centres = ranges * torch.empty(1, 1, 2048).normal_(generator=generator)
    x = centres + ranges * torch.empty(1, 16, 2048).uniform_(generator=generator)
    x = x.to(device, BF16)

    codes = one_by_one(quantise(x, 16, scale_dtype).codes)

    varied = x.amax(1, keepdim=True) > x.amin(1, keepdim=True)
    assert (codes.gather(1, x.argmax(1, keepdim=True))[varied] == 15).all()
    assert (codes.gather(1, x.argmin(1, keepdim=True)) == 0).all()


@pytest.mark.parametrize(("group", "expected"), [(16, 0.065), (32, 0.078), (64, 0.090)])
def test_outlier_channels_cost_nothing_by_channel(group: int, expected: float, device: str) -> None:
    shape = (8, 64, 128)
    plain, outliers = (
        relative_rms(x, from_reference(quantise(x.to(device, FP16), group), group))
        for x in (normal(shape), with_outliers(shape))
    )

    assert plain == pytest.approx(expected, rel=0.02)
    assert outliers == pytest.approx(expected, rel=0.04)  # two channels count for most of it


def test_outlier_channels_cost_a_quarter_more_along_the_row(device: str) -> None:
    # What KIVI is for: with 32 values to a scale either way, and so the same bytes.
    x = with_outliers((8, 64, 128))
    by_channel = from_reference(quantise(x.to(device, FP16), 32), 32)
    rows = x.to(device, FP16).flatten(0, 1)
    parts = Quantised(
        torch.empty(512, 64, dtype=torch.uint8, device=device),
        torch.empty(512, 4, device=device),
        torch.empty(512, 4, device=device),
    )
    quantise_int4(rows, *parts, group=32)
    along_the_row = torch.empty_like(rows)
    reference.dequantise_int4(*parts, along_the_row, group=32)

    assert relative_rms(x.flatten(0, 1), along_the_row) > 1.25 * relative_rms(x, by_channel)


def from_reference(quantised: Quantised, group: int) -> torch.Tensor:
    """Dequantised by plain torch, which is quicker than the interpreter."""
    blocks, quads, channels, _ = quantised.codes.shape
    out = torch.empty(blocks, 4 * quads, channels, device=quantised.codes.device)
    reference.dequantise_kivi(*quantised, out, group=group)
    return out


def relative_rms(x: torch.Tensor, back: torch.Tensor) -> float:
    error = back.double().cpu() - x.double()
    return float((error.square().mean() / x.double().square().mean()).sqrt())


@pytest.mark.parametrize("scale_dtype", [FP32, BF16])
@pytest.mark.parametrize("group", GROUPS)
def test_dequantising_is_a_product_and_a_sum_rounded_to_the_nearest(
    group: int, scale_dtype: torch.dtype, device: str
) -> None:
    blocks, tokens, channels = SHAPE
    generator = torch.Generator().manual_seed(group)
    shape = (blocks, tokens // 4, channels, 2)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    scales = normal((blocks, tokens // group, channels), 1).abs().to(scale_dtype)
    minima = normal((blocks, tokens // group, channels), 2).to(scale_dtype)
    quantised = Quantised(codes.to(device), scales.to(device), minima.to(device))

    out = dequantise(quantised, group, BF16)

    steps = in_groups(one_by_one(codes).float(), group)
    expected = steps * scales.float()[:, :, None] + minima.float()[:, :, None]
    assert torch.equal(out.cpu(), expected.reshape(SHAPE).to(BF16))


@pytest.mark.parametrize("group", GROUPS)
def test_each_byte_is_written_once_and_nothing_is_read_beside_the_arguments(
    group: int,
    device: str,
    stored: list[np.ndarray],
    each_byte_written_once: Callable[..., bool],
    nothing_read_beside: Callable[..., bool],
) -> None:
    x = normal((2, 64, 48)).to(device, BF16)[..., :40]
    quantised = quantise(x, group)
    assert each_byte_written_once(*quantised)
    assert nothing_read_beside(x)

    stored.clear()
    back = dequantise(quantised, group, BF16)
    assert each_byte_written_once(back)
    assert nothing_read_beside(x, *quantised)


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_of_what_was_in_the_outputs_remains(group: int, device: str) -> None:
    x = normal((3, 64, 40)).to(device, BF16)

    once, again = quantise(x, group, fill=0x00), quantise(x, group, fill=0xFF)

    for part, other in zip(once, again, strict=True):
        assert torch.equal(part, other)
    assert torch.equal(
        dequantise(once, group, BF16, fill=0x00), dequantise(once, group, BF16, fill=0xFF)
    )


@pytest.mark.parametrize("group", GROUPS)
def test_blocks_and_tokens_may_be_padded_and_the_padding_is_kept(group: int, device: str) -> None:
    blocks, tokens, channels = 3, 64, 40
    padded = normal((blocks, tokens + 3, channels + 24)).to(device, BF16)
    x = padded[:, :tokens, :channels]
    memory = torch.full((blocks, tokens + 5, channels + 8), 77.0, dtype=BF16, device=device)

    quantised = quantise(x, group)
    dequantise_kivi(*quantised, memory[:, 2 : tokens + 2, 8:], group=group)

    for part, other in zip(quantised, quantise(x.contiguous(), group), strict=True):
        assert torch.equal(part, other)
    expected = torch.full_like(memory, 77.0)
    expected[:, 2 : tokens + 2, 8:] = dequantise(quantised, group, BF16)
    assert torch.equal(memory, expected)


def untouched_memory(values: int, device: str) -> torch.Tensor:
    """A bfloat16 tensor far larger than memory; pages that are never touched cost nothing."""
    if device == "cuda":
        if torch.cuda.mem_get_info()[0] < 2.1 * values:
            pytest.skip(f"needs {2.1 * values / 2**30:.0f} GiB of GPU memory")
        return torch.empty(values, dtype=BF16, device=device)
    no_reserve = 0x4000  # Linux's MAP_NORESERVE, which Python 3.11 does not name
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return torch.frombuffer(mmap.mmap(-1, 2 * values, flags=flags), dtype=BF16)


@pytest.mark.parametrize(
    ("shape", "strides"), [((3, 16, 8), (2**33, 8, 1)), ((1, 16, 8), (2**36, 2**32, 1))]
)
def test_blocks_and_tokens_are_found_beyond_the_reach_of_32_bit_offsets(
    shape: tuple[int, int, int], strides: tuple[int, int, int], device: str
) -> None:
    # Block 2 starts 2**31 times 16 bytes in, which 32 bits take for as much in front: that is
    # there too, for a test that fails instead of one that crashes. Token 8 is twice as far in.
    in_front = 2**34
    values = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    x = untouched_memory(in_front + values, device).as_strided(shape, strides, in_front)
    near = normal(shape).to(device, BF16)
    x.copy_(near)

    quantised = quantise(x, 16)
    x.zero_()
    dequantise_kivi(*quantised, x, group=16)

    for part, other in zip(quantised, quantise(near, 16), strict=True):
        assert torch.equal(part, other)
    assert torch.equal(x, dequantise(quantised, 16, BF16))


@pytest.mark.parametrize("shape", [(0, 32, 64), (3, 0, 64), (3, 32, 0)])
def test_no_values_are_no_work(shape: tuple[int, int, int], device: str) -> None:
    quantised = quantise(torch.empty(shape, dtype=BF16, device=device), 32)
    assert dequantise(quantised, 32, BF16).shape == shape


def test_the_bytes_are_those_of_all_tensors(device: str) -> None:
    x = normal().to(device, BF16)
    for scale_dtype, scale_bytes in ((FP32, 4), (BF16, 2)):
        tensors = (x, *quantise(x, 32, scale_dtype))
        moved_bytes = kivi_bytes_moved(*SHAPE, 32, 2, scale_bytes)
        assert moved_bytes == sum(tensor.nbytes for tensor in tensors)


def refused(x: torch.Tensor, parts: Quantised, group: int = 32) -> str:
    """What both wrappers say of these arguments."""
    with pytest.raises(ValueError, match="must") as caught:
        quantise_kivi(x, *parts, group=group)
    with pytest.raises(ValueError, match="must") as of_inverse:
        dequantise_kivi(*parts, x, group=group)
    if "overlap" not in str(caught.value):  # which names what is read first
        assert str(of_inverse.value).replace("out", "x") == str(caught.value)
    return str(caught.value)


def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(device: str) -> None:
    x = normal().to(device, BF16)
    good = quantise(x, 32)

    assert "group must be one of (16, 32, 64) tokens, got 128" in refused(x, good, group=128)
    assert "x must be [blocks, tokens, channels] torch.bfloat16" in refused(x.float(), good)
    assert "got [64, 72] torch.bfloat16" in refused(x[0], good)
    assert "strides (4608, 72, 2)" in refused(x[:, :, ::2], good)
    assert "strides (1, 72, 4608)" in refused(x.permute(2, 1, 0), good)
    message = "the tokens of x must be a multiple of group 32 and its channels of 8, got"
    assert f"{message} [1, 48, 72]" in refused(x[:, :48], good)
    assert f"{message} [1, 64, 68]" in refused(x[:, :, :68], good)
    flat = good._replace(codes=good.codes.flatten(2))
    assert "codes must be contiguous [1, 16, 72, 2] torch.uint8" in refused(x, flat)
    halves = good._replace(scales=good.scales.half())
    kinds = "torch.float32 or torch.bfloat16"
    assert f"scales must be contiguous [1, 2, 72] {kinds}" in refused(x, halves)
    mixed = good._replace(scales=good.scales.to(BF16))
    assert "minima must be contiguous [1, 2, 72] torch.bfloat16" in refused(x, mixed)


def test_float16_scales_need_a_floor_that_is_normal_in_float16(device: str) -> None:
    x = normal().to(device, FP16)
    parts = quantise(x, 32, FP16)
    with pytest.raises(ValueError, match=r"at least 6.1e-05, .* torch.float16, got 1e-12"):
        quantise_kivi(x, *parts, group=32)


def test_tensors_that_are_not_aligned_to_16_bytes_are_refused(device: str) -> None:
    x = normal((2, 32, 72)).to(device, BF16)
    good = quantise(x[:, :, :64], 32)

    assert "x must start at a multiple of 16 bytes" in refused(x[:, :, 4:68], good)
    odd = normal((2, 32, 68)).to(device, BF16)[:, :, :64]
    message = "stride 1 of x in bytes must be a multiple of 16 bytes, got 136"
    assert message in refused(odd, good)
    for name, part in good._asdict().items():
        memory = torch.zeros(part.numel() + 16, dtype=part.dtype, device=device)
        shifted = memory[1 : part.numel() + 1].view(part.shape)
        assert f"{name} must start at a multiple" in refused(
            x[:, :, :64], good._replace(**{name: shifted})
        )


def test_codes_inside_the_values_are_refused(device: str) -> None:
    x = normal((2, 32, 64)).to(device, BF16)
    good = quantise(x, 32)
    inside = x.view(torch.uint8).flatten()[: good.codes.numel()].view(good.codes.shape)
    assert "must not overlap" in refused(x, good._replace(codes=inside))
