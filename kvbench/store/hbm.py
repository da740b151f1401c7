"""The tier of GPU memory: equal slots in one tensor, reached from the host by copies.

Copies run on streams of their own, pinned memory as it is and other memory through pinned
buffers, and a batch is waited for once. On a machine without a GPU it can be built on host memory
for tests (`device="cpu"`): the same steps, and `facts()["memory"]` says what it is.

May import: kvbench.errors, kvbench.store.{block, device, tier}. numpy; torch when one is made.
"""

from collections.abc import Sequence

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.store.block import Bytes, CorruptBlockError, Layout, Stamp
from kvbench.store.device import Link
from kvbench.store.tier import NOTHING, Fact, Recovered

SLOT_UNIT_BYTES = 4096  # slots begin at multiples of it, as GPUDirect Storage likes them


class HbmTier:
    """`slots` blocks in the memory of a GPU, `tensor` of uint8 [slots, slot_bytes].

    Raises:
        UsageError: there is not one slot.
        TierUnavailableError: there is no such device, or not so much memory on it.
    """

    def __init__(
        self, layout: Layout, slots: int, *, device: str = "cuda", name: str = "hbm"
    ) -> None:
        import torch  # noqa: PLC0415  only who has a GPU tier needs it

        if slots < 1:
            raise UsageError(f"a tier of {slots} slots: it needs at least one")
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise TierUnavailableError(
                'torch sees no CUDA device for a tier in GPU memory; for tests, device="cpu" puts '
                "it into host memory"
            )
        self.name = name
        self.layout = layout
        self.slots = slots
        self.slot_bytes = -(-layout.block_bytes // SLOT_UNIT_BYTES) * SLOT_UNIT_BYTES
        try:
            self.tensor = torch.zeros((slots, self.slot_bytes), dtype=torch.uint8, device=device)
        except RuntimeError as error:  # out of memory is one, and an unknown device
            reason = str(error).splitlines()[0]
            raise TierUnavailableError(
                f"no {slots} slots of {self.slot_bytes} bytes on {device}: {reason}"
            ) from None
        self._device = (
            torch.cuda.get_device_name(self.tensor.device)
            if self.tensor.is_cuda
            else str(self.tensor.device)
        )
        self._link = Link(self.tensor.device, layout.block_bytes)
        self._link.follow()  # the zeros are on the current stream
        self._stamps: list[Stamp | None] = [None] * slots
        self._quarantined: set[int] = set()

    durable = False
    stalls = False
    parts_alone = True
    at_once = False
    checks = False

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`."""
        size = self.layout.block_bytes
        self._link.to_device(payloads, [self.tensor[slot, :size] for slot in slots])
        self._link.wait()
        for slot, stamp in zip(slots, stamps, strict=True):
            self._stamps[slot] = stamp
        return [None] * len(slots)

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`."""
        first, size = 0, self.layout.block_bytes
        if part is not None:
            first, size = part * self.layout.part_bytes, self.layout.part_bytes
        found: list[Stamp | Exception] = [
            self._stamps[slot] or CorruptBlockError(f"slot {slot} of {self.name} holds no block")
            for slot in slots
        ]
        there = [i for i, stamp in enumerate(found) if isinstance(stamp, Stamp)]
        self._link.to_host(
            [self.tensor[slots[i], first : first + size] for i in there], [outs[i] for i in there]
        )
        return found

    def view(self, slot: int) -> None:
        """None: the host cannot address it. So also on host memory, to test what a GPU runs."""

    def forget(self, slots: Sequence[int]) -> None:
        """These slots no longer hold a block."""
        for slot in slots:
            self._stamps[slot] = None

    def quarantine(self, slots: Sequence[int], reason: str) -> None:  # noqa: ARG002  protocol
        """These slots are not used again; they are counted in `facts()`."""
        self.forget(slots)
        self._quarantined.update(slots)

    def flush(self) -> None:
        """Nothing survives a loss of power here."""

    def recover(self) -> Recovered:
        """Nothing: memory begins empty."""
        return NOTHING

    def facts(self) -> dict[str, Fact]:
        """The device and the kind of its memory."""
        return {
            "memory": "GPU memory" if self._link.on_gpu else "host memory, not a GPU",
            "device": self._device,
            "slot_bytes": self.slot_bytes,
            "size_bytes": self.slots * self.slot_bytes,
            "quarantined": len(self._quarantined),
        }

    def close(self) -> None:
        """Give the memory back."""
        self.tensor = self.tensor.new_empty((0, 0))
        self._stamps = []
