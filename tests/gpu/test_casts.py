"""Conversions inside kernels: the same bits as torch's for every input that a cache may hold."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl

from kvbench_kernels import casts
from kvbench_kernels.checks import interpreted

# That of the device first.
MODES = (
    ["snap", "soft"] if interpreted() else sorted({casts.cast_mode(torch.device("cuda")), "soft"})
)
BLOCK = 65536


@triton.jit  # type: ignore[untyped-decorator]
def convert(src, dst, n, HOW: tl.constexpr, CAST: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N803
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    x = tl.load(src + offsets, mask=mask, other=0)
    if HOW == "decode":
        y = casts.decode_e4m3(x)
    elif HOW == "uncast":
        y = casts.uncast_e4m3(x, CAST)
    elif HOW == "rne":
        y = casts.rne(x)
    elif HOW == "int8":
        y = casts.encode_int8(x)
    elif HOW == "bf16_rne":
        y = casts.bf16_rne(x)
    elif HOW == "round_to":
        y = casts.round_to(x, dst.dtype.element_ty, CAST == "snap")
    elif HOW == "value":
        y = casts.snap_e4m3(x.to(tl.float32))
    else:
        y = casts.cast_e4m3(x.to(tl.float32), CAST)
    tl.store(dst + offsets, y, mask=mask)


def converted(src: torch.Tensor, how: str, dtype: torch.dtype, mode: str = "") -> torch.Tensor:
    out = torch.zeros(src.shape, dtype=dtype, device=src.device)
    launch: Any = convert[(triton.cdiv(src.numel(), BLOCK),)]
    mode = mode or MODES[0]
    launch(src, out, src.numel(), HOW=how, CAST=mode, BLOCK=BLOCK, enable_fp_fusion=False)
    return out


def every_bf16(device: str) -> torch.Tensor:
    """All 65,536 of them."""
    bits = torch.arange(65536, dtype=torch.int32, device=device).to(torch.int16)
    return bits.view(torch.bfloat16)


def many_float32(device: str) -> torch.Tensor:
    """Around every bf16, so around every e4m3 too: on it, beside it, halfway, beside halfway."""
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32, device=device)
    high = torch.arange(-32768, 32768, dtype=torch.int32, device=device) * 65536
    values = (high[:, None] + low[None, :]).view(torch.float32).ravel()
    return values[~values.isnan()]


def by_torch(x: torch.Tensor) -> torch.Tensor:
    """Codes as uint8. Beyond 448 torch gives NaN; kernels saturate, as the hardware does."""
    return x.float().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)


def cast(x: torch.Tensor, mode: str) -> torch.Tensor:
    dtype = torch.uint8 if mode == "soft" else torch.float8_e4m3fn
    return converted(x, "cast", dtype, mode).view(torch.uint8)


@pytest.mark.parametrize("mode", MODES)
def test_every_bf16_gets_the_e4m3_code_that_torch_gives_it(mode: str, device: str) -> None:
    x = every_bf16(device)
    is_number = ~x.isnan()  # infinities too: they saturate

    codes = cast(x, mode)

    assert int((codes != by_torch(x))[is_number].sum()) == 0
    assert int(is_number.sum()) == 65536 - 2 * 127


@pytest.mark.parametrize("mode", MODES)
def test_float32_around_every_tie_gets_the_code_that_torch_gives_it(mode: str, device: str) -> None:
    x = many_float32(device)
    assert int((cast(x, mode) != by_torch(x)).sum()) == 0


def test_snapping_gives_the_value_of_the_code_as_float32(device: str) -> None:
    x = many_float32(device)
    values = by_torch(x).view(torch.float8_e4m3fn).float()
    # Bits, so that -0.0 is not 0.0.
    found = converted(x, "value", torch.float32)
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


def test_a_nan_becomes_some_finite_value_in_software(device: str) -> None:
    nans = every_bf16(device)
    nans = nans[nans.isnan()]
    codes = cast(nans, "soft")
    assert codes.view(torch.float8_e4m3fn).float().isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_every_finite_code_decodes_to_its_value(mode: str, device: str) -> None:
    codes = torch.arange(256, dtype=torch.int32, device=device).to(torch.uint8)
    values = codes.view(torch.float8_e4m3fn).float()
    finite = ~values.isnan()

    found = converted(codes, "uncast", torch.float32, mode)

    assert int(finite.sum()) == 254
    assert torch.equal(found.view(torch.int32)[finite], values.view(torch.int32)[finite])


def test_the_codes_of_nan_decode_to_480_in_software(device: str) -> None:
    codes = torch.tensor([0x7F, 0xFF], dtype=torch.uint8, device=device)
    assert converted(codes, "decode", torch.float32).tolist() == [480.0, -480.0]


@pytest.mark.parametrize("how", ["bf16_rne", "round_to"])
def test_float32_becomes_the_bf16_that_torch_makes_of_it(how: str, device: str) -> None:
    x = many_float32(device)
    found = converted(x, how, torch.bfloat16)
    assert torch.equal(found.view(torch.int16), x.to(torch.bfloat16).view(torch.int16))


def test_float32_becomes_the_fp16_that_torch_makes_of_it(device: str) -> None:
    x = many_float32(device)
    x = x[x.abs() < 65520]  # what rounds to infinity makes numpy warn
    found = converted(x, "round_to", torch.float16)
    assert torch.equal(found.view(torch.int16), x.to(torch.float16).view(torch.int16))


def test_whole_numbers_are_the_nearest_ones_and_ties_go_to_even(device: str) -> None:
    halves = torch.arange(-70000, 70000, device=device) / 2
    beside = torch.cat([halves.float(), halves.float().nextafter(halves.float() + 1)])
    far = torch.tensor([2.0**22 - 0.5, 0.5 - 2.0**22], device=device)
    x = torch.cat([beside, far])
    assert torch.equal(converted(x, "rne", torch.float32), x.round())


def test_int8_codes_are_rounded_and_saturate_where_a_plain_cast_would_wrap(device: str) -> None:
    x = torch.arange(-40000, 40000, device=device) / 64
    x = torch.cat([x, torch.tensor([1e30, -1e30, float("inf")], device=device)])
    found = converted(x, "int8", torch.int8)
    assert torch.equal(found, x.round().clamp(-127, 127).to(torch.int8))


@pytest.mark.parametrize(
    ("capability", "mode"), [((8, 0), "soft"), ((8, 6), "soft"), ((8, 9), "hw"), ((10, 0), "hw")]
)
def test_a_gpu_without_an_e4m3_instruction_casts_in_software(
    capability: tuple[int, int], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casts, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert casts.cast_mode(torch.device("cuda")) == mode


def test_the_interpreter_snaps_before_its_own_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(casts, "interpreted", lambda: True)
    assert casts.cast_mode(torch.device("cpu")) == "snap"
