"""A header says which block it is, or that it cannot be trusted; one by one and many at a time."""

import hashlib
import struct
from zlib import crc32

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.store.block import (
    MOST_PARTS,
    MOST_TENANT_BYTES,
    Bytes,
    CorruptBlockError,
    Layout,
    Stamp,
    checksums,
)
from kvbench.store.records import HEAD_BYTES, HEADER_BYTES, RecordFormat

NAMESPACE = hashlib.sha256(b"here").digest()
LAYOUT = Layout(4096)
ONE = RecordFormat(LAYOUT, NAMESPACE)
MANY = RecordFormat(Layout(8 * MOST_PARTS, MOST_PARTS), NAMESPACE)

keys = st.binary(min_size=32, max_size=32)
tenants = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=16)


def stamp_of(seed: int, layout: Layout = LAYOUT) -> Stamp:
    random = np.random.default_rng(seed)
    payload = random.integers(0, 256, layout.block_bytes, dtype=np.uint8)
    return Stamp(random.bytes(32), random.bytes(32), seed, f"t{seed}", checksums(payload, layout))


def encoded(form: RecordFormat, stamp: Stamp, sequence: int = 1) -> Bytes:
    header = np.zeros(HEADER_BYTES, np.uint8)
    form.encode(header, stamp, sequence)
    return header


@given(keys, st.none() | keys, st.integers(0, 2**63 - 1), tenants, st.integers(0, 2**63 - 1))
def test_a_header_gives_back_the_stamp_and_the_sequence_number(
    key: bytes, parent: bytes | None, position: int, tenant: str, sequence: int
) -> None:
    stamp = Stamp(key, parent, position, tenant, stamp_of(0).sums)
    assert ONE.decode(encoded(ONE, stamp, sequence)) == (stamp, sequence)


def test_a_header_has_room_for_as_many_checksums_as_there_may_be() -> None:
    stamp = stamp_of(3, MANY.layout)
    assert MANY.decode(encoded(MANY, stamp)) == (stamp, 1)


def test_the_checksum_of_a_payload_of_one_part_stands_in_its_header() -> None:
    # Where docs and other programs look for it: little-endian at byte 144.
    payload = np.arange(4096, dtype=np.uint8)
    header = encoded(ONE, stamp_of(1)._replace(sums=checksums(payload, LAYOUT)))
    (found,) = struct.unpack_from("<Q", header.data, 144)
    assert found == xxhash.xxh3_64_intdigest(payload.data)


@pytest.mark.parametrize("form", [ONE, MANY], ids=["one part", "many parts"])
def test_no_bit_of_what_a_header_says_can_change_unnoticed(form: RecordFormat) -> None:
    header = encoded(form, stamp_of(5, form.layout))
    for byte in range(HEAD_BYTES + 8 * form.layout.parts):
        for bit in (1, 128) if byte > HEAD_BYTES else (1, 2, 4, 8, 16, 32, 64, 128):
            header[byte] ^= bit
            with pytest.raises(CorruptBlockError):
                form.decode(header)
            assert not len(form.decode_many(header[None], range(1)))
            header[byte] ^= bit


def test_a_header_torn_at_any_sector_is_one_of_the_two_or_none() -> None:
    old, new = (encoded(MANY, stamp_of(seed, MANY.layout), seed) for seed in (1, 2))
    whole = {bytes(old): 1, bytes(new): 2}
    used = HEAD_BYTES + 8 * MOST_PARTS
    for at in range(512, HEADER_BYTES, 512):
        torn = np.concatenate((new[:at], old[at:]))
        if at >= used:
            assert MANY.decode(torn)[1] == whole[bytes(new)]
            continue
        with pytest.raises(CorruptBlockError, match="damaged header"):
            MANY.decode(torn)


def test_a_place_that_was_never_written_says_so() -> None:
    with pytest.raises(CorruptBlockError, match="nothing was ever written there"):
        ONE.decode(bytes(HEADER_BYTES))
    with pytest.raises(CorruptBlockError, match="it begins with b'notrecor'"):
        ONE.decode(b"notrecor" + bytes(HEADER_BYTES))


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (RecordFormat(LAYOUT, bytes(32)), "another namespace"),
        (RecordFormat(Layout(8192), NAMESPACE), "4096 bytes in 1 parts, expected 8192 in 1"),
        (RecordFormat(Layout(4096, 2), NAMESPACE), "4096 bytes in 1 parts, expected 4096 in 2"),
    ],
)
def test_a_record_of_another_store_is_refused_and_says_what_it_is(
    form: RecordFormat, said: str
) -> None:
    header = encoded(ONE, stamp_of(1))
    with pytest.raises(CorruptBlockError, match=said):
        form.decode(header)
    assert not len(form.decode_many(header[None], range(1)))


@pytest.mark.parametrize(("at", "name"), [(12, "version 7"), (14, "codec 7"), (16, "flags 7")])
def test_a_record_that_only_a_later_kvbench_can_read_is_refused(at: int, name: str) -> None:
    header = encoded(ONE, stamp_of(1))
    struct.pack_into("<H", header.data, at, 7)
    struct.pack_into("<I", header.data, 8, crc32(header[12 : HEAD_BYTES + 8].data))
    with pytest.raises(CorruptBlockError, match=name):
        ONE.decode(header)
    assert not len(ONE.decode_many(header[None], range(1)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": bytes(31)},
        {"parent": bytes(33)},
        {"tenant": "t" * (MOST_TENANT_BYTES + 1)},
        {"tenant": "a\0b"},
        {"sums": bytes(16)},
        {"position": -1},
        {"position": 2**63},
    ],
)
def test_a_stamp_that_does_not_fit_into_a_header_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="a stamp has keys of 32 bytes"):
        encoded(ONE, stamp_of(1)._replace(**wrong))  # type: ignore[arg-type]


def test_many_headers_at_once_are_read_as_one_by_one() -> None:
    rng = np.random.default_rng(9)
    area = np.zeros((64, HEADER_BYTES + 4096), np.uint8)
    for slot in range(0, 64, 2):
        stamp = stamp_of(slot)
        ONE.encode(area[slot], stamp._replace(parent=None) if slot % 3 else stamp, 100 - slot)
    for slot in rng.choice(np.arange(0, 64, 2), 10, replace=False):
        area[slot, rng.integers(0, HEAD_BYTES)] ^= 4
    found = ONE.decode_many(area, range(1000, 1064))
    one_by_one = []
    for slot, row in enumerate(area):
        try:
            stamp, sequence = ONE.decode(row)
        except CorruptBlockError:
            continue
        one_by_one.append((1000 + slot, *stamp[:4], sequence))
    assert len(one_by_one) == 22
    assert one_by_one == list(
        zip(
            found.slots,
            found.keys,
            found.parents,
            found.positions,
            found.tenants,
            found.sequences,
            strict=True,
        )
    )


def test_keys_that_end_in_zeros_keep_them() -> None:
    stamp = stamp_of(1)._replace(key=b"k" + bytes(31), parent=bytes(32))
    found = ONE.decode_many(encoded(ONE, stamp)[None], range(1))
    assert (found.keys, found.parents) == ([stamp.key], [stamp.parent])
