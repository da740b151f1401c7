"""What a tier that outlives the process promises beside the rest: its blocks are there again.

Everything is closed properly here; what a crash may do has to be tried on processes that are
killed. Needs pytest, as only kvbench.testing does.

May import: kvbench.store.{block, tier}, kvbench.testing.tiers. numpy; not torch.
"""

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from kvbench.store.block import Layout, payload_matches
from kvbench.store.tier import Recovered, Tier
from kvbench.testing.tiers import TierTests


class DurableTierTests(TierTests):
    """The tests of a durable tier:

    class TestMyTier(DurableTierTests):
        def make(self, layout, slots, tmp_path):
            return MyTier(layout, slots, tmp_path / "blocks")

        reopen = make

        def damage(self, tier, slot, byte):
            with open(tier.path, "r+b") as file:
                file.seek(tier.offset(slot) + byte)
                ...  # write another byte than is there
    """  # noqa: D415  the example follows

    durable = True

    @abstractmethod
    def reopen(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:
        """The tier that `make` made there, and that was closed."""

    def test_what_is_durable_is_there_after_a_reopen(self, layout: Layout, tmp_path: Path) -> None:
        """Oldest write first, each with its key, parent, position and tenant, and readable."""
        with self.opened(layout, 6, tmp_path) as tier:
            self.fill(tier, [4, 1, 3])
            tier.flush()
            self.fill(tier, [0], first_seed=3)  # closing has to flush it
        with self.reopened(layout, 6, tmp_path) as (tier, found):
            stamps = [self.stamp(layout, self.payload(layout, seed), seed) for seed in range(4)]
            assert found.slots == [4, 1, 3, 0]
            assert found.keys == [stamp.key for stamp in stamps]
            assert found.parents == [stamp.parent for stamp in stamps]
            assert found.positions == [stamp.position for stamp in stamps]
            assert found.tenants == [stamp.tenant for stamp in stamps]
            assert found.quarantined == []
            assert all(self.holds(tier, slot, seed) for seed, slot in enumerate(found.slots))

    def test_what_was_forgotten_or_replaced_is_not_recovered(self, tmp_path: Path) -> None:
        """Not even if its bytes are still there."""
        layout = self.layouts[0]
        with self.opened(layout, 4, tmp_path) as tier:
            self.fill(tier, [0, 1, 2])
            tier.flush()
            tier.forget([0, 1])
            self.fill(tier, [1], first_seed=6)
            tier.flush()
        with self.reopened(layout, 4, tmp_path) as (tier, found):
            assert dict(zip(found.slots, found.positions, strict=True)) == {2: 2, 1: 6}
            assert self.holds(tier, 1, 6)
            self.fill(tier, [0, 3], first_seed=8)
        with self.reopened(layout, 4, tmp_path) as (_, found):
            assert dict(zip(found.slots, found.positions, strict=True)) == {2: 2, 1: 6, 0: 8, 3: 9}

    def test_a_quarantined_slot_stays_so(self, tmp_path: Path) -> None:
        """After every reopen, and its block is gone."""
        layout = self.layouts[0]
        with self.opened(layout, 4, tmp_path) as tier:
            self.fill(tier, [0, 1, 2])
            tier.flush()
            tier.quarantine([1], "a test says so")
        for _ in range(2):
            with self.reopened(layout, 4, tmp_path) as (tier, found):
                assert found.quarantined == [1]
                assert sorted(found.slots) == [0, 2]
                assert self.holds(tier, 2, 2)

    def test_damage_while_it_was_closed_is_not_served(self, tmp_path: Path) -> None:
        """It is dropped, or found when it is read."""
        layout = self.layouts[0]
        with self.opened(layout, 3, tmp_path) as tier:
            self.fill(tier, [0, 1])
            tier.flush()
            self.damage(tier, 0, layout.block_bytes // 3)
        with self.reopened(layout, 3, tmp_path) as (tier, _):
            out = np.zeros(layout.block_bytes, dtype=np.uint8)
            (found,) = tier.read([0], [out])
            assert isinstance(found, Exception) or not payload_matches(found, out, layout)
            assert self.holds(tier, 1, 1)

    @contextmanager
    def reopened(
        self, layout: Layout, slots: int, tmp_path: Path
    ) -> Generator[tuple[Tier, Recovered]]:
        """A tier that was closed, and what it recovered."""
        tier = self.reopen(layout, slots, tmp_path)
        try:
            yield tier, tier.recover()
        finally:
            tier.close()
