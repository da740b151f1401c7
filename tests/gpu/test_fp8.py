"""fp8 in groups along a row, and with one scale: the codes of torch, errors bounded one by one.

Bounds are against float64 and hold for each value. The GPU's division is good to two units in the
last place, so there a code may differ from torch's where a value is beside a tie, and only there.
"""

import os
from collections.abc import Callable
from functools import partial

import pytest
import torch

from kvbench_kernels import fp8
from kvbench_kernels.checks import SCALE_FLOOR
from kvbench_kernels.fp8 import (
    dequantise_fp8,
    dequantise_fp8_tensor,
    fp8_bytes_moved,
    quantise_fp8,
    quantise_fp8_tensor,
    tensor_scale_fp8,
)
from kvbench_kernels.reference import quantise as reference
from tests.gpu.quantised import (
    INTERPRETED,
    ROUNDING,
    ROWS,
    TYPES,
    assert_same_codes,
    guarded,
    hard_rows,
    normal,
    relative_rms,
    with_outliers,
)

E4M3, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32
# Width of a row and group: a head, three blocks a row, MLA's latent and rope, a head of 80.
SHAPES = [(128, 128), (384, 128), (192, 64), (96, 32), (576, 576), (160, 80)]
Written = Callable[..., bool]


def quantise(
    x: torch.Tensor, group: int, floor: float = SCALE_FLOOR, padding: int = 0, fill: int = 0xA5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales, with nothing written around either."""
    rows, width = x.shape
    codes = guarded((rows, width), E4M3, str(x.device), padding, fill)
    scales = guarded((rows, width // group), F32, str(x.device), 0, fill)
    quantise_fp8(x, codes.tensor, scales.tensor, group=group, floor=floor)
    codes.assert_untouched_around()
    scales.assert_untouched_around()
    return codes.tensor, scales.tensor


def dequantise(
    codes: torch.Tensor, scales: torch.Tensor, group: int, dtype: torch.dtype, padding: int = 0
) -> torch.Tensor:
    out = guarded((codes.shape[0], codes.shape[1]), dtype, str(codes.device), padding)
    dequantise_fp8(codes, scales, out.tensor, group=group)
    out.assert_untouched_around()
    return out.tensor


def assert_scales(scales: torch.Tensor, x: torch.Tensor, group: int, floor: float) -> None:
    exact = reference.scales_of(x, group, 448.0, floor)
    assert float(((scales.double() - exact) / exact).abs().max()) <= 2e-7


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("width", "group"), SHAPES)
def test_scales_fit_each_group_and_codes_are_those_of_torch(
    width: int, group: int, dtype: torch.dtype, padding: int, device: str
) -> None:
    x = hard_rows(width, dtype, device, padding)

    codes, scales = quantise(x, group, padding=padding)

    assert_scales(scales, x, group, SCALE_FLOOR)
    expected = torch.empty(x.shape, dtype=E4M3, device=device)
    reference.fp8_codes(x, expected, scales)
    assert_same_codes(codes, expected, x, scales)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("width", "group"), SHAPES)
def test_a_value_comes_back_within_a_seventeenth_of_itself_or_half_a_subnormal_step(
    width: int, group: int, dtype: torch.dtype, device: str
) -> None:
    x = hard_rows(width, dtype, device)
    codes, scales = quantise(x, group)

    exact = codes.float().double() * reference.spread(scales.double(), x.shape)

    bound = reference.fp8_bound(x, scales)
    assert ((exact - x.double()).abs() <= bound).all()


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("width", "group"), SHAPES)
def test_a_dequantised_value_is_its_code_times_its_scale_rounded_once(
    width: int, group: int, dtype: torch.dtype, padding: int, device: str
) -> None:
    x = hard_rows(width, BF16, device)
    codes, scales = quantise(x, group, padding=padding)

    found = dequantise(codes, scales, group, dtype, padding)

    expected = torch.empty_like(found)
    reference.dequantise_fp8(codes, scales, expected)
    assert torch.equal(found, expected)
    rounding = ROUNDING[dtype] * found.double().abs() + torch.finfo(dtype).smallest_normal
    error = (found.double() - x.double()).abs()
    assert (error <= reference.fp8_bound(x, scales) + rounding).all()


@pytest.mark.parametrize("code", range(0, 256, 16))
def test_every_finite_code_is_dequantised_exactly(code: int, device: str) -> None:
    bits = torch.arange(code, code + 16, dtype=torch.int32, device=device).to(torch.uint8)
    codes = bits.repeat(3, 2)
    scales = torch.tensor([[1.0], [2.0**-20], [3.0]], device=device)

    found = dequantise(codes.view(E4M3), scales, 32, F32)

    expected = codes.view(E4M3).float() * scales
    finite = ~expected.isnan()
    assert torch.equal(found[finite], expected[finite])


@pytest.mark.parametrize(
    ("group", "x", "rms"),
    [
        (128, normal(1024, 128), 0.0257),
        (32, normal(1024, 128), 0.0240),
        (128, with_outliers(1024, 128), 0.0187),
        (32, with_outliers(1024, 128), 0.0157),
    ],
    ids=["token and head", "block of 32", "outliers", "outliers, block of 32"],
)
def test_the_error_as_a_whole_is_what_the_format_is_known_for(
    group: int, x: torch.Tensor, rms: float, device: str
) -> None:
    x = x.to(device)
    codes, scales = quantise(x, group)
    assert relative_rms(dequantise(codes, scales, group, F32), x) == pytest.approx(rms, rel=0.05)


@pytest.mark.parametrize("floor", [2.0**-126, 1e-12, 1e-6, 1.0])
def test_a_scale_is_never_below_its_floor_and_zeros_get_just_that(
    floor: float, device: str
) -> None:
    x = hard_rows(128, F32, device)

    codes, scales = quantise(x, 128, floor=floor)

    assert_scales(scales, x, 128, floor)
    assert scales[:2, 0].tolist() == pytest.approx([floor, floor], rel=1e-7, abs=0)
    assert (codes[0].view(torch.uint8) == 0).all()
    assert (codes[1].view(torch.uint8) == 0x80).all(), "the sign of -0.0 is lost"
    expected = torch.empty_like(codes)
    reference.fp8_codes(x, expected, scales)
    assert_same_codes(codes, expected, x, scales)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("width", "group"), SHAPES)
def test_integer_arithmetic_leaves_the_same_bits_as_the_fp8_type(
    width: int, group: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    x = hard_rows(width, dtype, device)
    codes, scales = quantise(x, group)
    values = dequantise(codes, scales, group, dtype)

    monkeypatch.setattr(fp8, "cast_mode", lambda _device: "soft")
    by_integers, same_scales = quantise(x, group)

    assert torch.equal(by_integers.view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(same_scales, scales)
    assert torch.equal(dequantise(codes, scales, group, dtype), values)


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("width", [128, 576, 48])
def test_each_code_scale_and_value_is_written_once_and_only_named_bytes_are_read(
    width: int,
    padding: int,
    each_byte_written_once: Written,
    nothing_read_beside: Written,
    device: str,
) -> None:
    x = hard_rows(width, BF16, device, padding)
    codes = guarded((ROWS, width), E4M3, device, padding).tensor
    scales = guarded((ROWS, 1), F32, device).tensor
    out = guarded((ROWS, width), BF16, device, padding).tensor

    quantise_fp8(x, codes, scales, group=width)
    dequantise_fp8(codes, scales, out, group=width)

    assert each_byte_written_once(codes, scales, out)
    assert nothing_read_beside(x, codes, scales)


def test_what_was_there_before_does_not_show(device: str) -> None:
    x = hard_rows(160, BF16, device)
    codes, scales = quantise(x, 80, fill=0x00)
    again, scales_again = quantise(x, 80, fill=0xFF)
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))
    assert torch.equal(scales, scales_again)


def test_bytes_do_for_codes(device: str) -> None:
    x = hard_rows(128, BF16, device)
    codes, scales = quantise(x, 128)
    as_bytes = torch.zeros(x.shape, dtype=torch.uint8, device=device)
    out = torch.zeros_like(x)

    quantise_fp8(x, as_bytes, torch.zeros_like(scales), group=128)
    dequantise_fp8(as_bytes, scales, out, group=128)

    assert torch.equal(as_bytes, codes.view(torch.uint8))
    assert torch.equal(out, dequantise(codes, scales, 128, BF16))


def far_apart(row_bytes: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """Two rows of 128, the second out of reach of 32-bit offsets. Untouched memory is free."""
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else host_bytes
    if free < 1.1 * row_bytes:
        pytest.skip(f"needs {row_bytes * 1.1 / 2**30:.0f} GiB of memory to place two rows apart")
    memory = torch.empty(row_bytes + 512, dtype=torch.uint8, device=device)
    stride = row_bytes // dtype.itemsize
    return memory.view(dtype).as_strided((2, 128), (stride, 1))


def test_rows_are_found_beyond_the_reach_of_32_bit_offsets(device: str) -> None:
    x, codes = far_apart(2**33, BF16, device), far_apart(2**32, E4M3, device)
    x.copy_(hard_rows(128, BF16, device)[3:5])
    near_codes, near_scales = quantise(x.contiguous(), 128)
    scales = torch.zeros_like(near_scales)

    quantise_fp8(x, codes, scales, group=128)

    assert torch.equal(codes.view(torch.uint8), near_codes.view(torch.uint8))
    assert torch.equal(scales, near_scales)
    dequantise_fp8(codes, scales, x, group=128)
    assert torch.equal(x, dequantise(near_codes, scales, 128, BF16))


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize(
    ("width", "dtype"), [(128, BF16), (576, F32), (576, torch.float16), (2048, BF16)]
)
def test_the_scale_of_a_tensor_is_its_largest_size_over_448(
    width: int, dtype: torch.dtype, padding: int, device: str
) -> None:
    x = hard_rows(width, dtype, device, padding)
    for place in (x[0, :1], x[-1, -1:], x[ROWS // 2, width // 2 :][:1]):
        place.fill_(-4.1e4)
        exact = x.double().abs().max() / 448
        assert tensor_scale_fp8(x).item() == pytest.approx(exact.item(), rel=2e-7)
        place.fill_(0.0)


def test_the_scale_of_nothing_but_zeros_or_of_nothing_is_the_floor(device: str) -> None:
    zeros = torch.zeros(4, 64, device=device)
    assert tensor_scale_fp8(zeros, floor=0.5).tolist() == [0.5]
    assert tensor_scale_fp8(zeros[:0], floor=0.5).tolist() == [0.5]
    assert tensor_scale_fp8(zeros[:, :0], floor=0.5).tolist() == [0.5]


@pytest.mark.parametrize("padding", [0, 16])
@pytest.mark.parametrize("width", [128, 576, 48])
def test_one_scale_for_all_gives_the_codes_of_torch_and_saturates(
    width: int, padding: int, device: str
) -> None:
    x = hard_rows(width, BF16, device, padding)
    largest = tensor_scale_fp8(x)
    for scale in (largest, largest / 100):  # the second is too small for some
        codes = guarded((ROWS, width), E4M3, device, padding)
        out = guarded((ROWS, width), BF16, device, padding)
        expected = torch.empty(x.shape, dtype=E4M3, device=device)
        reference.fp8_codes(x, expected, scale)
        values = torch.empty_like(x)
        reference.dequantise_fp8(expected, scale, values)

        quantise_fp8_tensor(x, codes.tensor, scale)
        dequantise_fp8_tensor(codes.tensor, scale, out.tensor)

        assert_same_codes(codes.tensor, expected, x, scale)
        codes.assert_untouched_around()
        out.assert_untouched_around()
        if INTERPRETED:
            assert torch.equal(out.tensor, values)
    assert (out.tensor.double().abs() <= 448 * scale.double() * (1 + 2**-8)).all()


@pytest.mark.parametrize("shape", [(0, 128), (4, 0)])
def test_nothing_to_quantise_is_nothing_done(shape: tuple[int, int], device: str) -> None:
    around = [torch.full((64,), 7.0, device=device) for _ in range(3)]  # outputs begin in it
    x, codes = around[0][:0].view(shape), around[1].view(E4M3)[:0].view(shape)
    scales = around[2][:0].view(shape[0], shape[1] // 128)
    quantise_fp8(x, codes, scales, group=128)
    dequantise_fp8(codes, scales, x, group=128)
    quantise_fp8_tensor(x, codes, torch.ones(1, device=device))
    assert all(bool((memory == 7.0).all()) for memory in around)


def test_bytes_moved_count_values_codes_and_scales() -> None:
    assert fp8_bytes_moved(1000, 128, 2, 128) == 1000 * (256 + 128 + 4)
    assert fp8_bytes_moved(1000, 128, 4, 32) == 1000 * (512 + 128 + 16)
    assert fp8_bytes_moved(1000, 128, 2, None) == 1000 * (256 + 128) + 4


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"must") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_arguments_that_do_not_fit_together_are_refused_with_both_sides(device: str) -> None:
    x = hard_rows(128, BF16, device)
    codes = torch.zeros(ROWS, 128, dtype=E4M3, device=device)
    scales = torch.zeros(ROWS, 1, device=device)

    def quantised(*arguments: torch.Tensor, group: int = 128, floor: float = 1e-12) -> str:
        a, b, c = arguments
        found = refused(lambda: quantise_fp8(a, b, c, group=group, floor=floor))
        if floor == 1e-12:
            assert refused(lambda: dequantise_fp8(b, c, a, group=group)).split("got")[1]
        return found

    assert "got [37, 128] torch.int16" in quantised(x.view(torch.int16), codes, scales)
    assert "got [37, 128] torch.int8" in quantised(x, codes.view(torch.int8), scales)
    assert "codes must be [37, 128] to go with x, got [36, 128]" in quantised(x, codes[1:], scales)
    assert "scales must be contiguous [37, 1] torch.float32" in quantised(x, codes, scales[1:])
    assert "got [37, 1] torch.float16" in quantised(x, codes, scales.half())
    assert "multiple of group 48, got 128" in quantised(x, codes, scales, group=48)
    for group in (0, 8, -16, 1040):
        message = f"group must be a multiple of 16 up to 1024, got {group}"
        assert message in quantised(x, codes, scales, group=group)
    for floor in (0.0, -1.0, 1e-39, float("inf"), float("nan")):
        assert f"got {floor}" in quantised(x, codes, scales, floor=floor)
    for scale in (scales[:1], torch.ones(2, device=device)):
        message = refused(partial(quantise_fp8_tensor, x, codes, scale))
        assert "scale must be contiguous [1] torch.float32" in message
    odd = torch.zeros(4, 24, device=device)
    assert "the width of x must be a multiple of 16, got 24" in refused(
        lambda: tensor_scale_fp8(odd)
    )


def test_rows_that_are_not_aligned_to_16_bytes_are_refused(device: str) -> None:
    x, codes = hard_rows(128, BF16, device), torch.zeros(ROWS, 128, dtype=E4M3, device=device)
    scales = torch.zeros(ROWS, 1, device=device)
    odd_stride = torch.zeros(ROWS, 132, dtype=BF16, device=device)[:, :128]
    odd_start = torch.zeros(ROWS, 144, dtype=E4M3, device=device)[:, 8:136]

    message = refused(lambda: quantise_fp8(odd_stride, codes, scales, group=128))
    assert "of x in bytes must be a multiple of 16 bytes, got 264" in message
    message = refused(lambda: dequantise_fp8(odd_start, scales, x, group=128))
    assert "codes must start at a multiple of 16 bytes" in message
    assert "strides (128, 2)" in refused(
        lambda: tensor_scale_fp8(torch.zeros(4, 128, device=device)[:, ::2])
    )


def test_outputs_inside_of_inputs_are_refused(device: str) -> None:
    memory = torch.zeros(64, 256, dtype=torch.uint8, device=device)
    x, codes = memory.view(BF16), memory[:, :128]
    scales = torch.zeros(64, 1, device=device)
    inside = memory.view(F32).view(-1)[:64].view(64, 1)
    others = torch.zeros(64, 128, dtype=torch.uint8, device=device)

    for arguments in ((x, codes, scales), (x, others, inside)):
        message = refused(partial(quantise_fp8, *arguments, group=128))
        assert "must not overlap" in message
        message = refused(partial(dequantise_fp8, *arguments[1:], arguments[0], group=128))
        assert "must not overlap" in message
    message = refused(lambda: quantise_fp8_tensor(x, codes, torch.ones(1, device=device)))
    assert "must not overlap" in message
