"""A modelled number with what it rests on. Nothing that is modelled is shown without it.

Holds arithmetic of intervals and no model: those are in the modules beside this one.
"""

import msgspec

from kvbench.errors import UsageError


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One modelled number in base units. `low` to `high` is the range that its source states."""

    value: float
    low: float
    high: float
    unit: str  # "s" | "B/s" | "tokens"
    source: str  # the calibration, in words
    outside: tuple[str, ...] = ()  # why this is beyond what was calibrated; empty: it is not

    def plus(self, other: "Prediction") -> "Prediction":
        """Both one after the other; the errors are taken to go the same way.

        Raises:
            UsageError: the units differ.
        """
        if self.unit != other.unit:
            raise UsageError(f"{self.unit} and {other.unit} cannot be added")
        sources = dict.fromkeys((*self.source.split(" + "), *other.source.split(" + ")))
        return Prediction(
            value=self.value + other.value,
            low=self.low + other.low,
            high=self.high + other.high,
            unit=self.unit,
            source=" + ".join(sources),
            outside=tuple(dict.fromkeys((*self.outside, *other.outside))),
        )


def around(
    value: float, low: float, high: float, *, unit: str, source: str, outside: tuple[str, ...] = ()
) -> Prediction:
    """A prediction whose range is `low` to `high` times its value."""
    return Prediction(
        value=value, low=value * low, high=value * high, unit=unit, source=source, outside=outside
    )
