from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kvbench.errors import UsageError
from kvbench.keys import KEY_BYTES, Namespace, block_keys, wrap

DOCUMENT = Path(__file__).parent.parent / "docs" / "keys.md"
LLAMA = Namespace(
    model="llama-3.1-8b",
    revision="0e9e39f",
    geometry="gqa 32x8x128",
    cache_dtype="bf16",
    layout="NHD",
    block_tokens=4,
    layers=(0, 32),
    heads=(0, 8),
    salt=b"acme",
)
# Written by hand from the tables of docs/keys.md, not made by the code under test.
LLAMA_BYTES = (
    b"kvbench.namespace"
    b"\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"
    b"\x0c\0\0\0\0\0\0\0llama-3.1-8b"
    b"\x07\0\0\0\0\0\0\x000e9e39f"
    b"\x0c\0\0\0\0\0\0\0gqa 32x8x128"
    b"\x04\0\0\0\0\0\0\0bf16"
    b"\x03\0\0\0\0\0\0\0NHD"
    b"\x08\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0"
    b"\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0\0\0\0\0"
    b"\x10\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0"
    b"\x01\0\0\0\0\0\0\x000"
    b"\x04\0\0\0\0\0\0\0acme"
)
DIGEST = "4bc6d37a7c5f51b16585ae24591a14e4996d8dfd95f22ad606e10e0b03f7ca9b"
FIRST = "c35f7f5852bc3a27ff1bdf3ef91feef70016dd5de42279b68aab0c91edcd7130"
SECOND = "c2d5eebd32a84d2c99ab770c840937fa4b57c04911b4da7e952ca855fe622076"
WITH_LORA = "10f9367e35274f0e24a2300b257416cab04354778ab891780aa249bbb2d71b7a"
FROM_BYTES = "5966e44823b69477fa2f39f45be1d4da3407f6d0bb34c8d62fd5906d1d1f2ca8"
FROM_INTEGER = "d36dbd73568ab67351a96a4a70c712a2122749ca64dc0b7115eb7863a8b869a0"

# A busy machine is no failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
ranges = st.tuples(st.integers(0, 300), st.integers(1, 300)).map(lambda r: (r[0], r[0] + r[1]))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "model": texts,
    "revision": texts,
    "geometry": texts,
    "cache_dtype": texts,
    "layout": texts,
    "block_tokens": st.integers(1, 4),
    "layers": ranges,
    "heads": ranges,
    "group": texts,
    "salt": st.binary(max_size=6),
    "version": st.integers(0, 300),
}
namespaces = st.fixed_dictionaries(FIELDS).map(lambda fields: Namespace(**fields))
tokens = st.integers(0, 2**32 - 1)
prompts = st.lists(tokens, min_size=1, max_size=24)


# ---------------------------------------------------------------- the test vector


def test_the_documented_vector_is_what_comes_out() -> None:
    assert LLAMA.digest.hex() == DIGEST
    prompt = [1, 2, 3, 4, 5, 6, 7, 2**32 - 1, 9]
    assert [key.hex() for key in block_keys(LLAMA, prompt)] == [FIRST, SECOND]
    assert block_keys(LLAMA, prompt, extra=b"lora")[0].hex() == WITH_LORA
    assert wrap(LLAMA, bytes.fromhex("0123456789abcdef")).hex() == FROM_BYTES
    assert wrap(LLAMA, -2).hex() == FROM_INTEGER


def test_the_documented_vector_follows_from_bytes_written_by_hand() -> None:
    digest = blake3(LLAMA_BYTES).digest()
    tokens = b"\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0"
    first = blake3(bytes(32) + tokens, key=digest).digest()
    more = b"\5\0\0\0\6\0\0\0\7\0\0\0\xff\xff\xff\xff"
    engine = blake3(b"kvbench.engine", key=digest).digest()
    assert digest.hex() == DIGEST
    assert first.hex() == FIRST
    assert blake3(first + more, key=digest).hexdigest() == SECOND
    assert blake3(bytes(32) + tokens + b"lora", key=digest).hexdigest() == WITH_LORA
    named = b"b\x01\x23\x45\x67\x89\xab\xcd\xef"
    assert blake3(named, key=engine).hexdigest() == FROM_BYTES
    assert blake3(b"i\xfe", key=engine).hexdigest() == FROM_INTEGER


@pytest.mark.parametrize(
    "value", [DIGEST, FIRST, SECOND, WITH_LORA, FROM_BYTES, FROM_INTEGER], ids=lambda v: v[:8]
)
def test_the_document_states_the_vector(value: str) -> None:
    assert f"`{value}`" in DOCUMENT.read_text(encoding="utf-8")


# ---------------------------------------------------------------- namespaces


@UNHURRIED
@given(namespaces, st.sampled_from(sorted(FIELDS)), st.data(), prompts)
def test_a_change_of_any_field_changes_every_key(
    namespace: Namespace, name: str, data: st.DataObject, prompt: list[int]
) -> None:
    value = data.draw(FIELDS[name], label=name)
    assume(value != getattr(namespace, name))
    other = replace(namespace, **{name: value})
    assert other.digest != namespace.digest
    assert not {*block_keys(namespace, prompt)} & {*block_keys(other, prompt)}
    assert wrap(namespace, b"\1") != wrap(other, b"\1")
    assert wrap(namespace, 1) != wrap(other, 1)


@UNHURRIED
@given(namespaces, namespaces)
def test_two_namespaces_are_equal_exactly_when_their_digests_are(
    one: Namespace, other: Namespace
) -> None:
    assert (one == other) == (one.digest == other.digest)
    assert replace(one).digest == one.digest


@UNHURRIED
@given(st.text("ab", min_size=2, max_size=8), st.data())
def test_no_text_can_slide_from_one_field_into_the_next(text: str, data: st.DataObject) -> None:
    pairs = [
        ("model", "revision"),
        ("revision", "geometry"),
        ("geometry", "cache_dtype"),
        ("cache_dtype", "layout"),
    ]
    cut, other = (data.draw(st.integers(1, len(text) - 1)) for _ in range(2))
    assume(cut != other)
    for left, right in pairs:
        one: dict[str, Any] = {left: text[:cut], right: text[cut:]}
        two: dict[str, Any] = {left: text[:other], right: text[other:]}
        assert replace(LLAMA, **one).digest != replace(LLAMA, **two).digest


def test_a_group_cannot_slide_into_the_salt_nor_layers_into_heads() -> None:
    assert (
        replace(LLAMA, group="ab", salt=b"c").digest != replace(LLAMA, group="a", salt=b"bc").digest
    )
    one = replace(LLAMA, layers=(0, 8), heads=(0, 32))
    assert one.digest != LLAMA.digest


def test_a_salt_is_not_shown() -> None:
    assert "acme" not in repr(LLAMA)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ""}, "namespace: model is empty"),
        ({"group": ""}, "namespace: group is empty"),
        ({"layout": "\ud800"}, "namespace: layout is '\\ud800', which is no Unicode text"),
        ({"block_tokens": 0}, "namespace: block_tokens is 0, expected at least 1"),
        ({"layers": (4, 4)}, r"namespace: layers is (4, 4), expected (first, last + 1)"),
        ({"heads": (-1, 4)}, r"namespace: heads is (-1, 4), expected (first, last + 1)"),
        ({"version": -1}, "namespace: version is -1, expected at least 0"),
    ],
)
def test_a_namespace_that_says_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        replace(LLAMA, **fields)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- blocks


@UNHURRIED
@given(namespaces, prompts)
def test_each_full_block_has_a_key_of_its_own(namespace: Namespace, prompt: list[int]) -> None:
    keys = block_keys(namespace, prompt)
    assert len(keys) == len(prompt) // namespace.block_tokens
    assert all(len(key) == KEY_BYTES for key in keys)
    assert len({*keys}) == len(keys)


@UNHURRIED
@given(prompts, st.lists(tokens, max_size=24))
def test_a_longer_prompt_keeps_the_keys_of_its_beginning(
    prompt: list[int], more: list[int]
) -> None:
    keys = block_keys(LLAMA, prompt)
    assert block_keys(LLAMA, prompt + more)[: len(keys)] == keys


@UNHURRIED
@given(st.lists(tokens, min_size=4, max_size=40), st.data())
def test_a_prompt_may_be_named_in_pieces(prompt: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(prompt) // 4)) * 4
    head = block_keys(LLAMA, prompt[:cut])
    assert head + block_keys(LLAMA, prompt[cut:], parent=head[-1]) == block_keys(LLAMA, prompt)


@UNHURRIED
@given(st.lists(tokens, min_size=4, max_size=24), st.data())
def test_another_token_changes_its_blocks_key_and_all_after_it(
    prompt: list[int], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(prompt) - 1))
    token = data.draw(tokens)
    assume(token != prompt[at])
    keys = block_keys(LLAMA, prompt)
    changed = block_keys(LLAMA, [*prompt[:at], token, *prompt[at + 1 :]])
    assert changed[: at // 4] == keys[: at // 4]
    assert not {*changed[at // 4 :]} & {*keys[at // 4 :]}


@UNHURRIED
@given(st.lists(tokens, min_size=4, max_size=12), st.data())
def test_the_order_of_tokens_counts(prompt: list[int], data: st.DataObject) -> None:
    first, second = (data.draw(st.integers(0, len(prompt) // 4 * 4 - 1)) for _ in range(2))
    assume(prompt[first] != prompt[second])
    swapped = [*prompt]
    swapped[first], swapped[second] = prompt[second], prompt[first]
    from_block = min(first, second) // 4
    keys, changed = block_keys(LLAMA, prompt), block_keys(LLAMA, swapped)
    assert not {*changed[from_block:]} & {*keys[from_block:]}


@UNHURRIED
@given(st.lists(tokens, min_size=8, max_size=24), st.binary(min_size=32, max_size=32))
def test_another_parent_changes_every_key(prompt: list[int], parent: bytes) -> None:
    assume(any(parent))
    assert not {*block_keys(LLAMA, prompt)} & {*block_keys(LLAMA, prompt, parent=parent)}


@UNHURRIED
@given(st.lists(tokens, min_size=12, max_size=24), st.binary(min_size=1, max_size=8), st.data())
def test_an_extra_changes_its_blocks_key_and_all_after_it(
    prompt: list[int], extra: bytes, data: st.DataObject
) -> None:
    keys = block_keys(LLAMA, prompt)
    at = data.draw(st.integers(0, len(keys) - 1))
    extras = [b""] * len(keys)
    extras[at] = extra
    changed = block_keys(LLAMA, prompt, extra=extras)
    assert changed[:at] == keys[:at]
    assert not {*changed[at:]} & {*keys[at:]}


@UNHURRIED
@given(st.lists(tokens, min_size=4, max_size=24), st.binary(max_size=8))
def test_one_extra_is_the_same_as_one_for_each_block(prompt: list[int], extra: bytes) -> None:
    each = [extra] * (len(prompt) // 4)
    assert block_keys(LLAMA, prompt, extra=extra) == block_keys(LLAMA, prompt, extra=each)


def test_tokens_cannot_slide_into_the_extra() -> None:
    small = replace(LLAMA, block_tokens=1)
    two = block_keys(replace(LLAMA, block_tokens=2), [1, 2])
    assert {*two} != {*block_keys(small, [1], extra=b"\2\0\0\0")}
    assert block_keys(small, [1], extra=b"ab") != block_keys(small, [1], extra=b"a")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_arrays_of_any_integer_type_have_the_keys_of_the_list(dtype: type[np.integer]) -> None:
    values = list(range(17))
    array = np.array(values, dtype=dtype)
    assert block_keys(LLAMA, array) == block_keys(LLAMA, values)
    assert block_keys(LLAMA, np.array([*values, *values], dtype=dtype)[::2]) == block_keys(
        LLAMA, [*values, *values][::2]
    )


def test_an_array_of_the_other_byte_order_has_the_same_keys() -> None:
    values = [1, 2**31, 2**32 - 1, 7]
    assert block_keys(LLAMA, np.array(values, dtype=">u4")) == block_keys(LLAMA, values)


@pytest.mark.parametrize("none", [[], np.array([], dtype=np.int64), [1, 2, 3], range(3)])
def test_less_than_a_block_has_no_key(none: Any) -> None:
    assert block_keys(LLAMA, none) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([1, -1], "token 1 is -1: expected 0 to 4294967295"),
        ([2**32], "token 0 is 4294967296: expected 0 to 4294967295"),
        ([1, 2**70], f"token 1 is {2**70}: expected 0 to 4294967295"),
        ([-1, 2**63], "token 0 is -1: expected 0 to 4294967295"),
        (np.array([3, -7], dtype=np.int8), "token 1 is -7: expected 0 to 4294967295"),
        (np.array([1, 2**40], dtype=np.uint64), f"token 1 is {2**40}: expected 0 to 4294967295"),
        ([1.0, 2.0], "tokens are float64: expected integers"),
        (np.array([True]), "tokens are bool: expected integers"),
        (["a"], "tokens are <U1: expected integers"),
        ([[1, 2], [3, 4]], "tokens have the shape (2, 2): expected one dimension"),
    ],
)
def test_what_is_no_token_is_refused_in_one_line(wrong: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        block_keys(LLAMA, wrong)
    assert str(error.value) == message


def test_a_parent_that_is_no_key_is_refused() -> None:
    with pytest.raises(UsageError, match="parent has 16 bytes, expected a key of 32"):
        block_keys(LLAMA, [1, 2, 3, 4], parent=bytes(16))


def test_extras_that_do_not_match_the_full_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="2 extras for 1 full blocks: expected one each"):
        block_keys(LLAMA, [1, 2, 3, 4, 5], extra=[b"", b""])


# ---------------------------------------------------------------- engines' hashes

engine_hashes = st.integers() | st.binary(min_size=1, max_size=64)


@UNHURRIED
@given(engine_hashes, engine_hashes)
def test_two_hashes_of_an_engine_share_a_key_exactly_when_they_are_equal(
    one: bytes | int, other: bytes | int
) -> None:
    assert (one == other) == (wrap(LLAMA, one) == wrap(LLAMA, other))
    assert len(wrap(LLAMA, one)) == KEY_BYTES


@UNHURRIED
@given(st.lists(tokens, min_size=4, max_size=4), st.sampled_from([b"", b"b", b"i"]))
def test_a_wrapped_hash_is_never_the_key_of_a_block_of_ours(prompt: list[int], head: bytes) -> None:
    message = bytes(32) + np.array(prompt, dtype="<u4").tobytes()
    (key,) = block_keys(LLAMA, prompt)
    assert wrap(LLAMA, head + message) != key
    assert wrap(LLAMA, message[1:]) != key


def test_an_empty_hash_of_an_engine_is_refused() -> None:
    with pytest.raises(UsageError, match="an engine's hash is empty"):
        wrap(LLAMA, b"")
