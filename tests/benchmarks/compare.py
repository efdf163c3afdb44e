"""Whether two ways came to the same result; where not, `MismatchError` says how far apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.measure import MismatchError

# Peers add up in float32: 784 values of about 0.3 each.
FLOAT32_TOLERANCE = 2e-4


def require_close(name: str, found: Any, expected: Any, tolerance: float) -> None:
    """Raise unless all values are as near as `tolerance`, taken of 1 and of the value alike."""
    there, ours = np.asarray(found), np.asarray(expected)
    if there.shape != ours.shape:
        raise MismatchError(f"{name}: shape {there.shape}, ours {ours.shape}")
    if not np.allclose(there, ours, rtol=tolerance, atol=tolerance):
        worst = float(np.abs(there - ours).max())
        raise MismatchError(f"{name}: differs from ours by {worst:g}, expected {tolerance:g}")


def require_equal(name: str, found: Any, expected: Any) -> None:
    """Raise unless all values are the same."""
    if np.array_equal(found, expected):
        return
    if np.ndim(found) == 0 or np.shape(found) != np.shape(expected):
        raise MismatchError(f"{name}: found {_shown(found)}, ours {_shown(expected)}")
    differing = int((np.asarray(found) != np.asarray(expected)).sum())
    raise MismatchError(f"{name}: {differing} of {np.size(found)} values differ from ours")


def _shown(value: Any) -> str:
    return str(value) if np.ndim(value) == 0 else f"shape {np.shape(value)}"


def require_nearest(
    name: str, predicted: npt.NDArray[np.int64], distances: npt.NDArray[np.float64]
) -> None:
    """Raise unless each predicted class is the nearest, or as near as float32 can tell.

    Parameters
    ----------
    name
        Who predicts.
    predicted
        [sample]; positions of classes.
    distances
        [sample, class]; ours.
    """
    chosen = np.take_along_axis(distances, predicted[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(chosen > distances.min(axis=1) + FLOAT32_TOLERANCE)
    if len(wrong):
        raise MismatchError(f"{name}: {len(wrong)} predictions differ from ours, first {wrong[0]}")
