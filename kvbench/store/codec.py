"""A tier that keeps blocks encoded: fp8, int8 or int4 with a scale for each group of values.

`Codec` says how a payload is encoded, by the kernels of kvbench_kernels or by plain torch with the
same codes (kvbench.store.quantise); `CodecTier` keeps what it gives in an inner tier. Lossy: what
comes back is within the bound of the format, and every block is decoded once when it is written,
to see that it is.

May import: kvbench.errors, kvbench.store.{block, quantise, tier, wrappers}. numpy; torch when
something is encoded.
"""

import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvbench.errors import UsageError
from kvbench.store.block import (
    BlockRefusedError,
    Bytes,
    CorruptBlockError,
    Layout,
    Stamp,
    checksums,
    payload_matches,
)
from kvbench.store.tier import Fact, Tier
from kvbench.store.wrappers import Wrapper

Format = Literal["fp8", "int8", "int4"]
Dtype = Literal["bfloat16", "float16"]

FORMATS: tuple[Format, ...] = ("fp8", "int8", "int4")
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float16")
GROUPS = {"fp8": range(16, 1025, 16), "int8": range(16, 1025, 16), "int4": (32, 64, 128)}
# As docs/kernels.md says it, and kvbench.store.quantise.bound computes it.
BOUNDS = {
    "fp8": "max(abs(x) / 17, s * 2**-10), s = amax / 448",
    "int8": "s / 2, s = amax / 127",
    "int4": "s / 2, s = range / 15",
}
# The same as a share of the largest value of a group, of int4 of its range.
SHARES = {"fp8": 1 / 17, "int8": 1 / 254, "int4": 1 / 30}
# What an encoded payload begins with: magic, format, dtype, group, decoded bytes.
_HEADER = struct.Struct("<4sBBHQ")
_MAGIC = b"KVC1"
_AT_A_TIME = 16  # blocks whose encoded form is held at once


class CannotEncodeError(BlockRefusedError):
    """A block has values that the format cannot hold; it is whole where it came from."""

    code = "cannot_encode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """How blocks of `layout` are encoded: `group` neighbouring values share a scale.

    Payloads are values of `dtype`. `kernels` says whether those of kvbench_kernels encode; without
    a word they do on a GPU. On the CPU they need Triton's interpreter.

    Raises:
        UsageError: the format has no such groups, or a block is not a whole number of them.
    """

    layout: Layout
    format: Format
    group: int = 128
    dtype: Dtype = "bfloat16"
    device: str = "cpu"
    kernels: bool | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS or self.dtype not in DTYPES:
            raise UsageError(
                f"codec {self.format} of {self.dtype}: formats are {', '.join(FORMATS)}, "
                f"values {' or '.join(DTYPES)}"
            )
        if self.group not in GROUPS[self.format] or self.layout.block_bytes % (2 * self.group):
            raise UsageError(
                f"{self.format} in groups of {self.group} values does not go with blocks of "
                f"{self.layout.block_bytes} bytes: groups are {GROUPS[self.format]}, and a block "
                "is a whole number of them"
            )

    @property
    def by_kernels(self) -> bool:
        """Whether kernels encode and decode."""
        return self.device.startswith("cuda") if self.kernels is None else self.kernels

    @property
    def values(self) -> int:
        """Values of a block."""
        return self.layout.block_bytes // 2

    @property
    def encoded(self) -> Layout:
        """The layout that the inner tier needs: header, codes, scales and minima in one part."""
        groups = self.values // self.group
        codes = self.values // 2 if self.format == "int4" else self.values
        scales = 4 * groups * (2 if self.format == "int4" else 1)
        return Layout(_HEADER.size + codes + scales)

    def encode(self, payload: Bytes) -> tuple[Bytes, float, float]:
        """Encode uint8 [block_bytes].

        Returns:
            uint8 [encoded.block_bytes]; the largest error of a value; and the largest share of
            its bound that the error of a value is, at most 1.

        Raises:
            CannotEncodeError: a value, or the range of a group, is not finite.
        """
        import torch  # noqa: PLC0415  only who encodes needs it

        from kvbench.store import quantise  # noqa: PLC0415  imports torch

        dtype = getattr(torch, self.dtype)
        values = quantise.values_of(payload, dtype, self.group, self.device)
        if not bool(torch.isfinite(values).all()):
            raise CannotEncodeError(
                f"a block with an infinity or a NaN cannot be encoded as {self.format}"
            )
        stored = quantise.quantise(self.format, values, kernels=self.by_kernels)
        if not bool(torch.isfinite(stored.scales).all()):
            raise CannotEncodeError(
                f"the values of a group are too far apart to be encoded as {self.format}"
            )
        decoded = quantise.dequantise(
            self.format, stored, dtype, group=self.group, kernels=self.by_kernels
        )
        errors = (decoded.float() - values.float()).abs_()
        share = float((errors / quantise.bound(self.format, values, stored.scales, decoded)).max())
        if not share <= 1:
            raise CannotEncodeError(
                f"a value came back {share:.3g} times as far off as {self.format} allows"
            )
        header = np.frombuffer(self._header(), dtype=np.uint8)
        encoded: Bytes = np.concatenate([header, quantise.pack(stored)])
        return encoded, float(errors.max()), share

    def decode(self, encoded: Bytes, out: Bytes) -> None:
        """Turn what `encode` gave into values again: uint8 [block_bytes].

        Raises:
            CorruptBlockError: this is no block that was encoded so.
        """
        header = encoded[: _HEADER.size].tobytes()
        if header != self._header():
            raise CorruptBlockError(
                f"an encoded block begins with {header.hex()}, which is not {self.format} in "
                f"groups of {self.group} {self.dtype}: was it written with another codec?"
            )
        import torch  # noqa: PLC0415  as above

        from kvbench.store import quantise  # noqa: PLC0415  imports torch

        stored = quantise.unpack(self.format, encoded[_HEADER.size :], self.group, self.device)
        decoded = quantise.dequantise(
            self.format,
            stored,
            getattr(torch, self.dtype),
            group=self.group,
            kernels=self.by_kernels,
        )
        np.copyto(out, decoded.cpu().view(-1).view(torch.uint8).numpy())

    def _header(self) -> bytes:
        return _HEADER.pack(
            _MAGIC,
            FORMATS.index(self.format),
            DTYPES.index(self.dtype),
            self.group,
            self.layout.block_bytes,
        )


class CodecTier(Wrapper):
    """A tier whose blocks lie encoded in `inner`, which is made for `codec.encoded`.

    The stamp inside has the checksum of the encoded bytes. A payload is checked against its stamp
    before it is encoded, and the encoded bytes before they are decoded: otherwise damage would be
    given a checksum of its own. What is read has the checksums of what was decoded.

    Raises:
        UsageError: the inner tier has blocks of another size.
    """

    def __init__(self, inner: Tier, codec: Codec) -> None:
        if inner.layout != codec.encoded:
            raise UsageError(
                f"the inner tier has blocks of {inner.layout.block_bytes} bytes in "
                f"{inner.layout.parts} parts: this codec needs {codec.encoded.block_bytes} in 1"
            )
        super().__init__(inner)
        self.codec = codec
        self._lock = threading.Lock()
        self._largest_error = 0.0
        self._largest_share = 0.0
        self._refused = 0

    @property
    def layout(self) -> Layout:
        """The shape of its blocks, decoded."""
        return self.codec.layout

    @property
    def checks(self) -> bool:
        """True: the encoded bytes are checked, and the stamp is of what they give."""
        return True

    @property
    def parts_alone(self) -> bool:
        """False: a part comes with its whole block."""
        return False

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`. A block that cannot be encoded has a CannotEncodeError in its place."""
        done: list[Exception | None] = []
        for at in range(0, len(slots), _AT_A_TIME):
            some = slice(at, at + _AT_A_TIME)
            done += self._write(slots[some], stamps[some], payloads[some])
        return done

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`. The encoded bytes are checked; the stamp is that of what they give."""
        found: list[Stamp | Exception] = []
        for at in range(0, len(slots), _AT_A_TIME):
            some = slice(at, at + _AT_A_TIME)
            found += self._read(slots[some], outs[some], part)
        return found

    def view(self, slot: int) -> Bytes | None:  # noqa: ARG002  protocol
        """None: what lies there is encoded."""
        return None

    def facts(self) -> dict[str, Fact]:
        """Those of the inner tier, the codec, and how far off it has been."""
        codec = self.codec
        with self._lock:
            return self.inner.facts() | {
                "codec": f"{codec.format}, groups of {codec.group} {codec.dtype}",
                "codec_by": "kernels" if codec.by_kernels else "torch",
                "decoded_bytes": codec.layout.block_bytes,
                "encoded_bytes": codec.encoded.block_bytes,
                "error_bound": f"{BOUNDS[codec.format]}; its rounding to {codec.dtype} more",
                "codec_error_bound": SHARES[codec.format],
                "largest_error": self._largest_error,
                "largest_share_of_bound": self._largest_share,
                "refused": self._refused,
            }

    def _write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        done: list[Exception | None] = [None] * len(slots)
        going: list[int] = []
        encoded: list[Bytes] = []
        for i, (stamp, payload) in enumerate(zip(stamps, payloads, strict=True)):
            try:
                encoded.append(self._encode(stamp, payload))
                going.append(i)
            except (CannotEncodeError, CorruptBlockError) as error:
                done[i] = error
        answers = self.inner.write(
            [slots[i] for i in going],
            [
                stamps[i]._replace(sums=checksums(each, self.codec.encoded))
                for i, each in zip(going, encoded, strict=True)
            ],
            encoded,
        )
        for i, answer in zip(going, answers, strict=True):
            done[i] = answer
        return done

    def _encode(self, stamp: Stamp, payload: Bytes) -> Bytes:
        if not payload_matches(stamp, payload, self.layout):
            raise CorruptBlockError("a block to encode is not what its checksum says")
        try:
            encoded, error, share = self.codec.encode(payload)
        except CannotEncodeError:
            with self._lock:
                self._refused += 1
            raise
        with self._lock:
            self._largest_error = max(self._largest_error, error)
            self._largest_share = max(self._largest_share, share)
        return encoded

    def _read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None
    ) -> list[Stamp | Exception]:
        area = np.empty((len(slots), self.codec.encoded.block_bytes), dtype=np.uint8)
        found = self.inner.read(slots, list(area))
        for i, stamp in enumerate(found):
            if not isinstance(stamp, Exception):
                found[i] = self._decode(stamp, area[i], outs[i], part)
        return found

    def _decode(
        self, stamp: Stamp, encoded: Bytes, out: Bytes, part: int | None
    ) -> Stamp | Exception:
        if not payload_matches(stamp, encoded, self.codec.encoded):
            return CorruptBlockError("an encoded block is not what was stored")
        whole = out if part is None else np.empty(self.layout.block_bytes, dtype=np.uint8)
        try:
            self.codec.decode(encoded, whole)
        except CorruptBlockError as error:
            return error
        if part is not None:
            np.copyto(out, self.layout.part(whole, part))
        return stamp._replace(sums=checksums(whole, self.layout))
