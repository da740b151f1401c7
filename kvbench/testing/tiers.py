"""What every tier promises, as tests: subclass `TierTests`, say how to make one, and run pytest.

The promises are those of `kvbench.store.tier.Tier`. How fast a tier is, and what it does when its
drive fails, is not tested here. Needs pytest, as only kvbench.testing does.

May import: kvbench.store.{block, tier}. numpy, pytest; not torch.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kvbench.store.block import (
    MOST_PARTS,
    MOST_TENANT_BYTES,
    Bytes,
    CorruptBlockError,
    Layout,
    Stamp,
    checksums,
    part_matches,
    payload_matches,
)
from kvbench.store.tier import Recovered, Tier

GUARD = 0xA5  # around memory that a tier may write to
ROUNDS = 10  # of each thread


class TierTests(ABC):
    """The tests of a tier. For a tier of your own:

        class TestMyTier(TierTests):
            def make(self, layout, slots, tmp_path):
                return MyTier(layout, slots)

            def damage(self, tier, slot, byte):
                tier.memory[slot][byte] ^= 0xFF

    One that outlives the process subclasses `kvbench.testing.durable_tiers.DurableTierTests`
    instead, which has these tests and more. A wrapper is tested around a tier that is known.

    A lossy tier says `lossless = False`, makes payloads that it can hold (`payload`), and says
    whether what came back is near enough (`same`). `layouts` are the shapes that are tried.
    """  # noqa: D415  the example follows

    durable = False
    lossless = True
    layouts: tuple[Layout, ...] = (
        Layout(4096),
        Layout(64 * 1024, parts=32),
        Layout(5000, parts=5),  # no multiple of a page, nor are its parts
        Layout(1),
        Layout(8 * MOST_PARTS, parts=MOST_PARTS),
    )

    @abstractmethod
    def make(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:
        """An empty tier of so many slots or more; `tmp_path` is empty, for this test alone."""

    @abstractmethod
    def damage(self, tier: Tier, slot: int, byte: int) -> None:
        """Change one byte of what the slot holds, behind the tier's back.

        `byte` counts from the start of the payload, and is below its size.
        """

    def payload(self, layout: Layout, seed: int) -> Bytes:
        """A payload of uint8 [block_bytes] that differs from that of any other seed."""
        return np.random.default_rng(seed).integers(0, 256, layout.block_bytes, dtype=np.uint8)

    def same(self, wrote: Bytes, got: Bytes) -> bool:
        """Whether `got` is what a tier may give back for `wrote`."""
        return np.array_equal(wrote, got)

    # What the tests are made of.

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run a test that takes a layout with each of them."""
        if "layout" in metafunc.fixturenames:
            metafunc.parametrize(
                "layout", self.layouts, ids=lambda each: f"{each.block_bytes}x{each.parts}"
            )

    @contextmanager
    def opened(self, layout: Layout, slots: int, tmp_path: Path) -> Generator[Tier]:
        """A new tier, ready to be written to."""
        tier = self.make(layout, slots, tmp_path)
        try:
            assert tier.recover() == Recovered(
                slots=[], keys=[], parents=[], positions=[], tenants=[], quarantined=[]
            ), "a new tier holds blocks"
            yield tier
        finally:
            tier.close()

    def stamp(self, layout: Layout, payload: Bytes, seed: int) -> Stamp:
        """The stamp of the block number `seed` of a prefix."""
        parent = seed.to_bytes(32, "little") if seed else None
        key = (seed + 1).to_bytes(32, "little")
        return Stamp(key, parent, seed, f"tenant-{seed % 3}", checksums(payload, layout))

    def fill(self, tier: Tier, slots: list[int], first_seed: int = 0) -> list[Stamp]:
        """Write blocks of consecutive seeds to these slots, in one batch."""
        seeds = range(first_seed, first_seed + len(slots))
        payloads = [self.payload(tier.layout, seed) for seed in seeds]
        stamps = [
            self.stamp(tier.layout, payload, seed)
            for payload, seed in zip(payloads, seeds, strict=True)
        ]
        assert tier.write(slots, stamps, payloads) == [None] * len(slots)
        return stamps

    def holds(self, tier: Tier, slot: int, seed: int) -> bool:
        """Whether a slot gives back the block of that seed, with its stamp."""
        out = np.zeros(tier.layout.block_bytes, dtype=np.uint8)
        (found,) = tier.read([slot], [out])
        return self.is_block(tier.layout, found, out, seed)

    def is_block(self, layout: Layout, found: Stamp | Exception, out: Bytes, seed: int) -> bool:
        """Whether that was read for the block of that seed."""
        if isinstance(found, Exception):
            raise found
        wrote = self.payload(layout, seed)
        wanted = self.stamp(layout, wrote, seed)
        if not self.lossless:  # it answers for what it gives, not for what it was given
            wanted = wanted._replace(sums=found.sums)
        return found == wanted and payload_matches(found, out, layout) and self.same(wrote, out)

    # The promises.

    def test_a_tier_says_what_it_was_made_as(self, layout: Layout, tmp_path: Path) -> None:
        """Layout, name, whether it is durable; and it has the slots that were asked for."""
        slots = 3
        with self.opened(layout, slots, tmp_path) as tier:
            assert (tier.layout, tier.durable) == (layout, self.durable)
            assert tier.slots >= slots
            assert tier.name

    def test_facts_are_plain_values_with_names(self, tmp_path: Path) -> None:
        """So that they can be written into a result."""
        with self.opened(self.layouts[0], 2, tmp_path) as tier:
            facts = tier.facts()
            assert facts
            assert all(isinstance(name, str) for name in facts)
            assert all(isinstance(fact, str | int | float | None) for fact in facts.values())

    def test_a_block_comes_back_with_its_stamp(self, layout: Layout, tmp_path: Path) -> None:
        """One block in one slot."""
        with self.opened(layout, 2, tmp_path) as tier:
            self.fill(tier, [1])
            assert self.holds(tier, 1, 0)
            assert self.holds(tier, 1, 0), "reading a block changed it"

    def test_a_batch_may_name_slots_in_any_order(self, layout: Layout, tmp_path: Path) -> None:
        """And a slot more than once, when it is read."""
        slots = [int(slot) for slot in np.random.default_rng(5).permutation(40)]
        with self.opened(layout, 40, tmp_path) as tier:
            self.fill(tier, slots)
            order = slots[::-1] + slots[:3]
            outs = [np.zeros(layout.block_bytes, dtype=np.uint8) for _ in order]
            found = tier.read(order, outs)
            for slot, stamp, out in zip(order, found, outs, strict=True):
                assert self.is_block(layout, stamp, out, slots.index(slot))

    def test_an_empty_batch_does_nothing(self, tmp_path: Path) -> None:
        """No slots, no answers."""
        with self.opened(self.layouts[0], 2, tmp_path) as tier:
            assert tier.write([], [], []) == []
            assert tier.read([], []) == []
            tier.forget([])
            tier.flush()

    def test_memory_of_any_alignment_is_read_into_and_written_from(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        """Rows of a caller begin anywhere; nothing beside them is touched, nor the payload."""
        size = layout.block_bytes
        with self.opened(layout, 2, tmp_path) as tier:
            area = np.full(size + 64, GUARD, dtype=np.uint8)
            wrote = self.payload(layout, 0)
            area[3 : 3 + size] = wrote
            stamp = self.stamp(layout, wrote, 0)
            assert tier.write([0], [stamp], [area[3 : 3 + size]]) == [None]
            assert np.array_equal(area[3 : 3 + size], wrote), "the payload was changed"
            area[:] = GUARD
            (found,) = tier.read([0], [area[5 : 5 + size]])
            assert self.is_block(layout, found, area[5 : 5 + size], 0)
            assert (area[:5] == GUARD).all()
            assert (area[5 + size :] == GUARD).all()

    def test_a_payload_may_be_memory_that_cannot_be_written(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        """Such as bytes, or a file that was mapped to be read."""
        wrote = self.payload(layout, 0)
        frozen = np.frombuffer(wrote.tobytes(), dtype=np.uint8)
        with self.opened(layout, 2, tmp_path) as tier:
            assert tier.write([0], [self.stamp(layout, wrote, 0)], [frozen]) == [None]
            assert self.holds(tier, 0, 0)

    def test_a_block_is_replaced_whole_by_the_next_one(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        """Payload, key, parent, position and tenant; the neighbours stay."""
        with self.opened(layout, 3, tmp_path) as tier:
            self.fill(tier, [0, 1, 2])
            tier.forget([1])
            self.fill(tier, [1], first_seed=7)
            assert self.holds(tier, 1, 7)
            assert self.holds(tier, 0, 0)
            assert self.holds(tier, 2, 2)

    def test_a_slot_that_was_never_written_is_an_error_in_its_place(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        """And the other slots of the batch are read."""
        with self.opened(layout, 4, tmp_path) as tier:
            self.fill(tier, [0, 3])
            outs = [np.zeros(layout.block_bytes, dtype=np.uint8) for _ in range(4)]
            found = tier.read([3, 1, 0, 2], outs)
            assert isinstance(found[1], CorruptBlockError)
            assert isinstance(found[3], CorruptBlockError)
            assert self.is_block(layout, found[0], outs[0], 1)
            assert self.is_block(layout, found[2], outs[2], 0)

    def test_each_part_can_be_asked_for(self, layout: Layout, tmp_path: Path) -> None:
        """With the stamp of the block, whose checksum of that part fits."""
        size = layout.part_bytes
        with self.opened(layout, 3, tmp_path) as tier:
            self.fill(tier, [0, 2])
            whole = [np.zeros(layout.block_bytes, dtype=np.uint8) for _ in range(2)]
            stamps = tier.read([0, 2], whole)
            for part in {0, layout.parts // 2, layout.parts - 1}:
                area = np.full((2, size + 8), GUARD, dtype=np.uint8)
                found = tier.read([0, 2], [row[1 : 1 + size] for row in area], part)
                assert found == stamps
                for row, stamp, block in zip(area, found, whole, strict=True):
                    assert isinstance(stamp, Stamp)
                    assert part_matches(stamp, part, row[1 : 1 + size])
                    assert np.array_equal(row[1 : 1 + size], layout.part(block, part))
                    assert row[0] == GUARD
                    assert (row[1 + size :] == GUARD).all()

    def test_a_part_of_a_slot_that_was_never_written_is_an_error_too(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        """As of a whole block."""
        with self.opened(layout, 2, tmp_path) as tier:
            self.fill(tier, [0])
            outs = [np.zeros(layout.part_bytes, dtype=np.uint8) for _ in range(2)]
            found = tier.read([1, 0], outs, layout.parts - 1)
            assert isinstance(found[0], CorruptBlockError)
            assert isinstance(found[1], Stamp)
            assert part_matches(found[1], layout.parts - 1, outs[1])

    def test_a_slot_with_memory_of_its_own_can_be_written_in_place(
        self, layout: Layout, tmp_path: Path
    ) -> None:
        """`view` is that memory: filled, then stamped. None where the host cannot address it."""
        with self.opened(layout, 3, tmp_path) as tier:
            self.fill(tier, [0, 1, 2])
            view = tier.view(1)
            if view is None:
                assert tier.view(0) is None
                return
            assert view.shape == (layout.block_bytes,)
            assert self.same(self.payload(layout, 1), view), "a view of something else"
            view[:] = self.payload(layout, 8)
            stamp = self.stamp(layout, view, 8)
            assert tier.write([1], [stamp], [view]) == [None]
            assert [self.holds(tier, slot, seed) for slot, seed in ((0, 0), (1, 8), (2, 2))] == (
                [True] * 3
            )

    def test_a_stamp_is_kept_at_its_limits(self, layout: Layout, tmp_path: Path) -> None:
        """The longest tenant, an empty one, no parent, a position past 31 bits, any key."""
        wrote = self.payload(layout, 0)
        sums = checksums(wrote, layout)
        stamps = [
            Stamp(bytes(32), None, 0, "", sums),
            Stamp(b"\xff" * 32, b"\x00" * 32, 2**31, "t" * MOST_TENANT_BYTES, sums),
            Stamp(bytes(range(32)), b"\xff" * 32, 2**31 - 1, "é" * (MOST_TENANT_BYTES // 2), sums),
        ]
        with self.opened(layout, 3, tmp_path) as tier:
            assert tier.write([0, 1, 2], stamps, [wrote] * 3) == [None] * 3
            outs = [np.zeros(layout.block_bytes, dtype=np.uint8) for _ in range(3)]
            for stamp, found, out in zip(stamps, tier.read([0, 1, 2], outs), outs, strict=True):
                assert isinstance(found, Stamp)
                assert found[:4] == stamp[:4]
                assert payload_matches(found, out, layout)

    def test_damage_is_never_taken_for_the_block(self, layout: Layout, tmp_path: Path) -> None:
        """One wrong byte: an error, or bytes that do not fit their checksum. Others are well."""
        size = layout.block_bytes
        places = sorted({0, size // 2, layout.part_bytes - 1, size - 1})
        slots = list(range(len(places) + 1))
        with self.opened(layout, len(slots), tmp_path) as tier:
            stamps = self.fill(tier, slots)
            for slot, byte in enumerate(places):
                self.damage(tier, slot, byte)
                out = np.zeros(size, dtype=np.uint8)
                (found,) = tier.read([slot], [out])
                if isinstance(found, Stamp):
                    assert found[:4] == stamps[slot][:4]
                    assert not payload_matches(found, out, layout)
                else:
                    assert isinstance(found, CorruptBlockError | OSError)
            assert self.holds(tier, slots[-1], slots[-1])

    def test_a_damaged_slot_can_hold_another_block(self, layout: Layout, tmp_path: Path) -> None:
        """If the medium bears it; nothing of the old block is left."""
        with self.opened(layout, 2, tmp_path) as tier:
            self.fill(tier, [0])
            self.damage(tier, 0, 0)
            tier.forget([0])
            self.fill(tier, [0], first_seed=4)
            assert self.holds(tier, 0, 4)

    def test_threads_may_use_different_slots_at_once(self, tmp_path: Path) -> None:
        """Each thread writes and reads slots of its own, and all read one that nobody writes."""
        layout, threads = max(self.layouts, key=lambda each: each.block_bytes), 4
        begin = threading.Barrier(threads)
        with self.opened(layout, 2 * threads + 1, tmp_path) as tier:
            self.fill(tier, [2 * threads], first_seed=99)

            def work(number: int) -> bool:
                mine = [number, threads + number]
                begin.wait()
                well = True
                for turn in range(ROUNDS):
                    first = 1000 * (number + 1) + 2 * turn
                    tier.forget(mine)
                    self.fill(tier, mine, first_seed=first)
                    well &= self.holds(tier, mine[0], first) and self.holds(
                        tier, mine[1], first + 1
                    )
                    well &= self.holds(tier, 2 * threads, 99)
                return well

            with ThreadPoolExecutor(threads) as pool:
                assert all(pool.map(work, range(threads)))

    def test_the_others_go_on_when_a_slot_is_quarantined(self, tmp_path: Path) -> None:
        """It is only taken note of."""
        with self.opened(self.layouts[0], 3, tmp_path) as tier:
            self.fill(tier, [0, 1, 2])
            tier.quarantine([1], "a test says so")
            self.fill(tier, [2], first_seed=5)
            assert self.holds(tier, 0, 0)
            assert self.holds(tier, 2, 5)

    def test_closing_gives_back_files_and_threads(self, tmp_path: Path) -> None:
        """None are left over; what modules open at their first use does not count."""

        def used(folder: Path) -> tuple[int, int]:
            folder.mkdir()
            with self.opened(self.layouts[0], 3, folder) as tier:
                self.fill(tier, [0, 1])
                tier.flush()
            return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

        first = used(tmp_path / "first")
        assert used(tmp_path / "second") == first
