"""Blocks of samples: what a source returns of a range of them, and why some cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

STATUSES = ("ok", "unreadable", "truncated", "wrong size", "too large", "label unknown")
SEVERAL_FRAMES = "the first of several frames or pages"
OK, UNREADABLE, TRUNCATED, WRONG_SIZE, TOO_LARGE, LABEL_UNKNOWN = range(len(STATUSES))


@dataclass(frozen=True)
class Problem:
    """Why a sample cannot be used.

    Attributes
    ----------
    status
        `UNREADABLE`, `TRUNCATED`, `WRONG_SIZE`, `TOO_LARGE` or `LABEL_UNKNOWN`.
    detail
        What there is, what was expected, and what to do about it, in a few words.
    width, height
        Of the image as its file says, 0 where that is not known.
    """

    status: int
    detail: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Block:
    """A range of samples.

    Attributes
    ----------
    images
        [sample, y, x] or [sample, y, x, channel]; of the type that `SplitInfo` says.
    labels
        [sample]; int32 codes, -1 where unlabelled.
    origins
        Where each sample comes from, as text that may be shown and stored: a path, or the file and
        the position in it.
    problems
        By index in the block, why a sample cannot be used; its image is 0, its label -1.
    sizes
        [sample, 2]; int32 width and height of each image before it was brought to one shape. None:
        those of the images.
    hashes
        [sample]; the SHA-256 of the pixels of each image, 32 bytes, where reading took it.
    remarks
        By index in the block, what there is to say of a sample that can be used.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    origins: Sequence[str]
    problems: Mapping[int, Problem] = field(default_factory=dict)
    sizes: npt.NDArray[np.int32] | None = None
    hashes: npt.NDArray[np.void] | None = None
    remarks: Mapping[int, str] = field(default_factory=dict)
