"""Tests of what protocols promise, for whoever implements one. They need pytest.

`TierTests` is found here and imported when it is asked for, so that the rest needs no pytest.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvbench.testing.tiers import TierTests

__all__ = ["TierTests"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  what a module holds
    if name == "TierTests":
        from kvbench.testing.tiers import TierTests  # noqa: PLC0415

        return TierTests
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
