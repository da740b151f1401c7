"""Non-negative least squares, typed: the one place where fits of this package call SciPy."""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import optimize  # pyright: ignore[reportMissingTypeStubs]

F64 = NDArray[np.float64]


def nonnegative(terms: F64, wanted: F64) -> F64:
    """The x >= 0 that brings terms @ x closest to `wanted`.

    Args:
        terms: float64 [rows, terms]. Read only.
        wanted: float64 [rows]. Read only.

    Returns:
        float64 [terms].
    """
    found = optimize.nnls(terms, wanted)[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("F64", found)


def relative(terms: F64, seconds: F64) -> tuple[F64, float]:
    """The same for the least relative error, and the largest relative error that stays."""
    found = nonnegative(terms / seconds[:, None], np.ones(len(seconds)))
    return found, float(np.max(np.abs(terms @ found / seconds - 1)))
