"""The simulated pool against the real store: a trace through both, the same decisions."""

import hashlib

import pytest

from kvbench.policy.names import NAMES, named
from kvbench.policy.tenants import TenantPolicy
from kvbench.sim.replay import Order, replay
from kvbench.sim.replay_plain import requests
from kvbench.store.block import Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from kvbench.testing.decisions import RecordingPolicy, Victims
from tests.sim.small_traces import conversations
from tests.store.blocks import WAIT_S, empty_rows

LAYOUT = Layout(4_096, parts=1)
BLOCKS = 40


class Served:
    """A store of memory alone, and what it decided."""

    def __init__(self, name: str) -> None:
        self._policy: RecordingPolicy[bytes]
        options = Options(policy=named(name, BLOCKS), watched=self._watched, memory_threads=1)
        self.store = TieredStore([DramTier(LAYOUT, BLOCKS)], options)
        self._blocks: dict[bytes, int] = {}

    def _watched(self, tier: str, policy: TenantPolicy[bytes]) -> TenantPolicy[bytes]:
        assert tier == "dram"
        self._policy = RecordingPolicy(policy)
        return self._policy

    def serve(self, request: list[int]) -> tuple[int, int]:
        """What an engine does; the blocks that it got, and those that were here."""
        keys = [hashlib.sha256(b"%d" % block).digest() for block in request]
        self._blocks.update(zip(keys, request, strict=True))
        hits = sum(self.store.held(keys))
        with self.store.lookup(keys) as lease:
            found = len(lease)
            if found:
                got = self.store.get_into(lease, empty_rows(found, LAYOUT)).result(WAIT_S)
                assert set(got) == {Status.OK}
            rest = keys[found:]
            if rest:
                rows = empty_rows(len(rest), LAYOUT)
                parent = keys[found - 1] if found else None
                self.store.put(rest, rows, parent=parent, position=found).result(WAIT_S)
        return found, hits

    def victims(self) -> list[int]:
        """All blocks that it evicted, in order."""
        calls = [call for call in self._policy.record if isinstance(call, Victims)]
        return [self._blocks[key] for call in calls for key in call.answer]


@pytest.mark.parametrize("name", NAMES)
def test_the_store_and_the_simulation_decide_alike_at_every_request(name: str) -> None:
    columns = conversations(len(name), count=120, longest=BLOCKS)
    simulated = replay(columns, name, BLOCKS, order=Order.AS_THE_STORE, victims=True)
    served = Served(name)
    with served.store:
        for number, (_, request) in enumerate(requests(columns)):
            found, hits = served.serve(request)
            assert (number, found) == (number, simulated.leading[number])
            assert (number, hits) == (number, simulated.hits[number])
            gone = int(simulated.gone[number])
            assert served.victims() == simulated.victims[:gone].tolist()
    assert simulated.gone[-1] > BLOCKS
    assert simulated.leading.sum() > BLOCKS
