import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.units import (
    GIB,
    KIB,
    MIB,
    exact_bytes,
    format_bytes,
    format_rate,
    parse_bytes,
    parse_rate,
)

BINARY = {"": 1, "Ki": KIB, "Mi": MIB, "Gi": GIB, "Ti": 2**40, "Pi": 2**50}
DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("12B", 12),
        ("256KiB", 256 * KIB),
        ("256k", 256 * KIB),
        ("256K", 256 * KIB),
        ("2MiB", 2 * MIB),
        ("2Mi", 2 * MIB),
        ("1GB", 10**9),
        ("1gb", 10**9),
        ("1GiB", GIB),
        ("1.5k", 1536),
        ("0.5 TiB", 2**39),
        ("  4 MiB ", 4 * MIB),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1.001GB", 1_001_000_000), ("1.001TB", 1_001 * 10**9), (str(2**53 + 1), 2**53 + 1)],
)
def test_a_size_is_exact_where_a_float_would_be_off(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


NO_SIZES = (
    *("", " ", "B", "MiB", "-4", "+4", "1e3", "4ib", "4i", "4 parsecs", "4MiBs", "4,5M", ".5k"),
    *("1.", "nan", "inf", "0x10", "4M iB", "\N{ARABIC-INDIC DIGIT FOUR}k", "4\N{KELVIN SIGN}"),
)


@pytest.mark.parametrize("text", [*NO_SIZES, pytest.param("9" * 5000, id="5000 digits")])
def test_text_that_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size: write for example 4096, 256KiB") as raised:
        parse_bytes(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize("text", ["1.5", "0.3B", "1.0001k", "1.0005KB"])
def test_a_fraction_of_a_byte_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=f"'{text}' is not a whole number of bytes"):
        parse_bytes(text)


@given(
    number=st.integers(0, 10**15),
    scale=st.sampled_from([*BINARY.items(), *DECIMAL.items()]),
    space=st.sampled_from(["", " ", "  "]),
)
def test_every_whole_number_of_every_unit_is_read_exactly(
    number: int, scale: tuple[str, int], space: str
) -> None:
    prefix, factor = scale
    assert parse_bytes(f"{number}{space}{prefix}B") == number * factor


@given(st.text(max_size=12))
def test_any_other_text_is_refused_with_one_line_that_shows_it(text: str) -> None:
    assume(not text.strip()[:1].isdigit())
    for parse in (parse_bytes, parse_rate):
        with pytest.raises(UsageError) as raised:
            parse(text)
        assert repr(text) in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("7GB/s", 7e9),
        ("900MB/s", 9e8),
        ("7G/s", 7e9),  # a rate is decimal, also without its B
        ("7GiB/s", 7 * 2**30),
        ("7Gi/s", 7 * 2**30),
        ("3.5 gb / S", 3.5e9),
        ("0.25B/s", 0.25),
        ("3.3333333333GB/s", 3_333_333_333.3),
    ],
)
def test_a_rate_is_decimal_unless_its_prefix_has_an_i(text: str, bytes_per_s: float) -> None:
    assert parse_rate(text) == bytes_per_s


@pytest.mark.parametrize(
    "text",
    ["", "/", "/s", "7GB", "7GB/h", "7GB/s/s", "fast/s", "-7GB/s", "7GB/", "s", "0/s", "0.0GB/s"],
)
def test_text_that_is_no_rate_is_refused_whole_with_examples(text: str) -> None:
    # A limit of 0 would be divided by.
    with pytest.raises(
        UsageError, match="is not a rate above 0: write for example 7GB/s"
    ) as raised:
        parse_rate(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (1536, "1.5 KiB"),
        (MIB - 1, "1024 KiB"),
        (2 * MIB, "2 MiB"),
        (GIB + GIB // 2, "1.5 GiB"),
        (3 * 2**40, "3 TiB"),
        (5 * 2**50, "5 PiB"),
        (-2 * MIB, "-2 MiB"),
    ],
)
def test_a_size_is_printed_with_a_binary_prefix(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 2**60))
def test_a_size_in_a_name_is_never_rounded_and_has_no_space(size_bytes: int) -> None:
    text = exact_bytes(size_bytes)
    assert " " not in text
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0B"), (262148, "262148B"), (1125 * KIB, "1125KiB"), (2 * MIB, "2MiB"), (2**40, "1TiB")],
)
def test_a_size_in_a_name_has_the_largest_prefix_that_fits_it_whole(
    size_bytes: int, text: str
) -> None:
    assert exact_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("bytes_per_s", "text"),
    [
        (0, "0 B/s"),
        (0.25, "0.25 B/s"),
        (1.0, "1 B/s"),
        (999.4, "999 B/s"),
        (math.nextafter(999.5, 0), "999 B/s"),
        (999.5, "1 kB/s"),
        (999_400, "999 kB/s"),
        (999_600, "1 MB/s"),
        (1.0249e9, "1.02 GB/s"),
        (999.6e9, "1 TB/s"),
        (999.4e12, "999 TB/s"),
        (1.234e15, "1234 TB/s"),
        (-5e9, "-5 GB/s"),
    ],
)
def test_a_rate_has_three_digits_and_a_decimal_prefix(bytes_per_s: float, text: str) -> None:
    assert format_rate(bytes_per_s) == text


@given(
    exponent=st.integers(0, 15), edge=st.sampled_from([0.9995, 9.995, 1.0]), ulps=st.integers(-3, 3)
)
def test_no_value_beside_a_rounding_edge_is_printed_with_an_exponent(
    exponent: int, edge: float, ulps: int
) -> None:
    value = edge * 10.0**exponent
    for _ in range(abs(ulps)):
        value = math.nextafter(value, math.copysign(math.inf, ulps))
    number, unit = format_rate(value).split()
    assert "e" not in number
    assert float(number) <= 1000 or unit == "TB/s"


@given(st.floats(1.0, 9.99e14))
def test_a_printed_rate_read_again_is_right_to_half_its_last_digit(bytes_per_s: float) -> None:
    assert parse_rate(format_rate(bytes_per_s)) == pytest.approx(bytes_per_s, rel=0.0051)


@given(st.integers(0, 2**60))
def test_a_printed_size_read_again_is_right_to_half_its_last_digit(size_bytes: int) -> None:
    text = format_bytes(size_bytes)
    number, unit = text.split()
    again = float(number) * BINARY[unit.removesuffix("B")]
    assert again == pytest.approx(size_bytes, rel=0.00051)


@given(st.integers(1, 1023), st.sampled_from(sorted(BINARY)))
def test_whole_units_survive_printing_and_reading(number: int, prefix: str) -> None:
    size_bytes = number * BINARY[prefix]
    assert parse_bytes(format_bytes(size_bytes)) == size_bytes
