"""LeafFirst: least recently touched first, with deep blocks taken for older than they are.

Every policy here takes leaves only; this one also prefers deep leaves, since a block is of use only
with all before it: the deeper, the fewer requests share it. How much is a choice of ours.

May import: nothing of kvbench but kvbench.policy.
"""

from kvbench.errors import UsageError
from kvbench.policy.policy import Key
from kvbench.policy.ranking import Ranked


class LeafFirst(Ranked[Key]):
    """The leaf goes whose last touch is longest ago, depth counted as age; see `Ranked`.

    A block with d blocks before it counts as `depth_weight` * d touches of a block older. With 0
    it decides exactly as LRU. Replays of one public trace of conversations show a gain over LRU in
    tiers that hold a few requests only, and none in larger ones.

    Raises:
        UsageError: the weight is negative.
    """

    def __init__(self, depth_weight: int = 1) -> None:
        if depth_weight < 0:
            raise UsageError(f"depth_weight is {depth_weight}: expected 0 (as LRU) or more")
        super().__init__(lambda _, depth, touched: (touched - depth_weight * depth, touched))
