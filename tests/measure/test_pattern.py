import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.measure.pattern import POOL_SECTORS, SECTOR_BYTES, Bytes, Pattern, digest

PATTERN = Pattern(7)
POOL_BYTES = POOL_SECTORS * SECTOR_BYTES


def made(pattern: Pattern, position_bytes: int, size_bytes: int) -> Bytes:
    out = np.full(size_bytes, 0xAA, dtype=np.uint8)
    pattern.fill(out, position_bytes)
    return out


def test_every_process_of_a_run_makes_the_same_bytes_from_its_seed() -> None:
    code = (
        "import numpy as np; from kvbench.measure.pattern import Pattern, digest;"
        "out = np.empty(65536, np.uint8); Pattern(7).fill(out, 8192); print(digest(out))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=60
    )
    assert int(other.stdout) == digest(made(PATTERN, 8192, 65536))


def test_another_seed_changes_every_sector() -> None:
    one, two = made(PATTERN, 0, 64 * SECTOR_BYTES), made(Pattern(8), 0, 64 * SECTOR_BYTES)
    sectors = (one != two).reshape(-1, SECTOR_BYTES)
    assert sectors.any(axis=1).all()
    assert sectors.mean() > 0.9


@settings(max_examples=50)
@given(
    first=st.one_of(
        st.integers(0, 200),
        st.integers(POOL_SECTORS - 100, POOL_SECTORS + 100),
        st.integers(2 * POOL_SECTORS - 20, 2 * POOL_SECTORS + 20),
        st.integers(0, 2**40),
    ),
    count=st.integers(1, 150),
    inside=st.data(),
)
def test_a_range_holds_the_same_bytes_whichever_larger_range_it_is_cut_from(
    first: int, count: int, inside: st.DataObject
) -> None:
    whole = made(PATTERN, first * SECTOR_BYTES, count * SECTOR_BYTES)
    low = inside.draw(st.integers(0, count - 1))
    high = inside.draw(st.integers(low + 1, count))
    part = made(PATTERN, (first + low) * SECTOR_BYTES, (high - low) * SECTOR_BYTES)
    assert (part == whole[low * SECTOR_BYTES : high * SECTOR_BYTES]).all()


def test_a_range_longer_than_the_pool_is_filled_to_its_last_byte() -> None:
    sectors = 2 * POOL_SECTORS + 3
    out = made(PATTERN, 5 * SECTOR_BYTES, sectors * SECTOR_BYTES).reshape(sectors, SECTOR_BYTES)
    last = made(PATTERN, (5 + sectors - 1) * SECTOR_BYTES, SECTOR_BYTES)
    assert (out[-1] == last).all()
    assert not (out == 0xAA).all(axis=1).any()


def test_every_sector_says_which_one_it_is_and_of_which_seed() -> None:
    first = POOL_SECTORS - 2
    words = made(PATTERN, first * SECTOR_BYTES, 5 * SECTOR_BYTES).view(np.uint64).reshape(5, -1)
    assert words[:, 0].tolist() == list(range(first, first + 5))
    assert words[:, 1].tolist() == [7] * 5


def test_no_two_sectors_of_a_file_are_alike_also_beyond_the_pool() -> None:
    sectors = made(PATTERN, 0, (POOL_SECTORS + 500) * SECTOR_BYTES).reshape(-1, SECTOR_BYTES)
    assert len({digest(sector) for sector in sectors}) == POOL_SECTORS + 500


def test_one_sector_in_the_place_of_another_changes_the_checksum_of_a_block() -> None:
    # A pool later the random part comes again: only the sector's own number tells them apart.
    block = made(PATTERN, 0, 8 * SECTOR_BYTES)
    right = digest(block)
    block[SECTOR_BYTES : 2 * SECTOR_BYTES] = made(PATTERN, POOL_BYTES + SECTOR_BYTES, SECTOR_BYTES)
    assert digest(block) != right


@pytest.mark.parametrize("position_bytes", [0, 3 * SECTOR_BYTES, 5 * POOL_BYTES])
def test_the_bytes_cannot_be_compressed(position_bytes: int) -> None:
    block = made(PATTERN, position_bytes, 2**20).tobytes()
    assert len(zlib.compress(block, 9)) > 0.998 * len(block)


def test_every_bit_that_flips_changes_the_checksum() -> None:
    block = made(PATTERN, 0, SECTOR_BYTES)
    right = digest(block)
    seen = {right}
    for at in range(0, SECTOR_BYTES, 61):
        for bit in range(8):
            block[at] ^= 1 << bit
            seen.add(digest(block))
            block[at] ^= 1 << bit
    assert digest(block) == right
    assert len(seen) == 1 + 8 * len(range(0, SECTOR_BYTES, 61))


@pytest.mark.parametrize("size_bytes", [1000, SECTOR_BYTES + 8])
def test_a_range_that_is_not_whole_sectors_is_refused(size_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"reshape|size"):
        PATTERN.fill(np.zeros(size_bytes, dtype=np.uint8), 0)
