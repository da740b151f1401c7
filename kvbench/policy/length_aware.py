"""LengthAware: the block goes that was used least often; of these, the deepest in its prefix.

The policy of this name in Mooncake (arXiv 2407.00079), as far as it is published. Tie-breaks are
ours: lowest count, then the latest position in the prefix, then the longest time without a touch.

May import: nothing of kvbench but kvbench.policy.
"""

from kvbench.policy.policy import Key
from kvbench.policy.ranking import Ranked


class LengthAware(Ranked[Key]):
    """Fewest touches first, then the latest position, then the oldest touch; see `Ranked`."""

    def __init__(self) -> None:
        super().__init__(lambda uses, depth, touched: (uses, -depth, touched))
