"""Scores of an audit, 0 to 1, the higher the surer: two images are the same, a label is wrong.

Each compares an image with what is usual around it, since a distance alone is not good enough:
flat, dark images are near to everything.

Pairs
-----
Tried on CIFAR-10 as JPEG files, test among train, l1, on 147 known pairs: how many are among the
first 100, 286, 400 and 1,000 pairs, the nearest of each test image, by

| score | 100 | 286 | 400 | 1,000 |
| --- | --- | --- | --- | --- |
| d1 / d2 | 35 | 77 | 90 | 102 |
| d1 / d10 | 39 | 76 | 88 | 102 |
| d1 / d10, images of one mean and mean absolute deviation | 37 | 84 | 92 | 116 |
| the same, each channel by itself | 36 | 82 | 92 | 113 |
| the same, grey | 38 | 83 | 94 | 110 |
| d1 / d10, smoothed over 3 x 3 before | 36 | 82 | 97 | 114 |
| d1 / d10, smoothed over 2 x 2 before | 39 | 87 | 100 | 119 |
| d1 / mean of d2 to d10, smoothed over 2 x 2 before | 40 | 85 | 102 | 119 |
| the same and that of the plain images, whichever is surer | 41 | 85 | 100 | 119 |
| the smaller, or the mean, of both directions | 37 | 81 | 98 | 116 |
| best shift by up to 2 pixels of the first ten | | | 94 | |
| l2 instead of l1, 16 x 16 | 41 | 80 | 98 | 117 |

The last but two is taken: with the plain images a copy with noise or a patch in it is found too.
Of the first 400 that are not in the list nearly all were the same picture when looked at.

Labels
------
Precision among as many as were changed, uniformly, at 1, 5 and 10 %, of the ten nearest by l1:

| score | MNIST | Fashion-MNIST |
| --- | --- | --- |
| votes for the given label | 0.62, 0.89, 0.92 | 0.32, 0.70, 0.82 |
| votes for another less those for the given label | 0.70, 0.88, 0.92 | 0.45, 0.69, 0.76 |
| cleanlab's normalized margin, adjusted | 0.73, 0.88, 0.92 | 0.39, 0.68, 0.77 |
| votes in both directions (`misfit`) | 0.86, 0.94, 0.96 | 0.65, 0.82, 0.87 |
| ten nearest of each class, over their own tenth distance | 0.94, 0.97, 0.98 | 0.80, 0.89, 0.91 |

Votes of neighbours saturate: thousands of images have none for their label. An image that is named
wrongly is still listed by the images of its true class, so the votes of those that have it among
their nearest tell them apart. The last row needs lists of each class, a hundred times as many
neighbours at a hundred classes. None finds a wrong label where classes overlap pixel by pixel (a
shirt named T-shirt), nor knows a class of very few images from an error.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.core.schema import UNLABELLED

# Votes that are counted at once: of a block of images for each class.
_BLOCK_VOTES = 2**25


def nearness(distance: Float64Array) -> Float64Array:
    """Score each neighbour in lists by how much nearer it is than the others.

    Parameters
    ----------
    distance
        [image, rank], ascending, NaN where there is no neighbour.

    Returns
    -------
    [image, rank]; `1 - d / m`, where `m` is the mean of all but the nearest: 1 for a copy, 0 for
    what is no nearer than usual. 0 as well where there are no others, or they are copies too: a
    list shows groups of as many copies as it is long.
    """
    rest = distance[:, 1:]
    count = np.isfinite(rest).sum(1)[:, None]
    total = np.nansum(rest, axis=1)[:, None]
    score = np.zeros(distance.shape)
    np.divide(total - count * distance, total, out=score, where=(total > 0) & (count > 0))
    return np.nan_to_num(np.clip(score, 0, 1))


def misfit(
    labels: npt.NDArray[np.int32], neighbours: Int64Array, classes: int
) -> tuple[Float64Array, npt.NDArray[np.int32], Int64Array]:
    """Score each label by the votes of the nearest images, and of those it is nearest to.

    Parameters
    ----------
    labels
        [image]; codes, -1 for none.
    neighbours
        [image, rank]; the numbers of the nearest images, -1 for none. Images without a label have
        no vote.
    classes
        How many there are.

    Returns
    -------
    The score, [image]: of `g` votes for the given label and `o` for the likeliest other one,
    `(o + 1) / (o + g + 2)`; 0 without a label or a vote. The other label, [image], -1 without a
    vote for any; of equal votes the lowest code. And the votes for both, [image, 2]; 0 without a
    label.
    """
    count = len(labels)
    score, other = np.zeros(count), np.full(count, UNLABELLED, np.int32)
    votes = np.zeros((count, 2), np.int64)
    voter = np.repeat(np.arange(count), neighbours.shape[1])
    voted = neighbours.ravel()
    valid = voted >= 0
    step = max(1, _BLOCK_VOTES // max(classes, 1))
    for start in range(0, count, step):
        stop = min(start + step, count)
        table = np.zeros((stop - start) * classes, np.int64)
        # what the nearest of an image are, and what those are that have it among their nearest
        for images, givers in ((voter, voted), (voted, voter)):
            mine = valid & (images >= start) & (images < stop)
            given = labels[np.where(mine, givers, 0)]
            mine &= given != UNLABELLED
            keys = (images[mine] - start) * classes + given[mine]
            table += np.bincount(keys, minlength=len(table))
        here = slice(start, stop)
        votes[here], other[here] = _two_largest(table.reshape(-1, classes), labels[here])
    known = (labels != UNLABELLED) & (votes.sum(1) > 0)
    score[known] = (votes[known, 1] + 1) / (votes[known].sum(1) + 2)
    other[~known], votes[~known] = UNLABELLED, 0
    return score, other, votes


def _two_largest(
    table: Int64Array, labels: npt.NDArray[np.int32]
) -> tuple[Int64Array, npt.NDArray[np.int32]]:
    """Return the votes for the given and for the likeliest other label, and that label."""
    rows, given = np.arange(len(table)), np.maximum(labels, 0)
    own = table[rows, given].copy()
    table[rows, given] = -1
    other = table.argmax(1)
    most = np.maximum(table[rows, other], 0)
    labels_of = np.where(most > 0, other, UNLABELLED).astype(np.int32)
    return np.stack([own, most], axis=1), labels_of


def remoteness(nearest: Float64Array) -> Float64Array:
    """Score each image by how far its nearest is beside that of the image in the middle.

    Parameters
    ----------
    nearest
        [image]; the distance of its nearest, NaN where there is none.

    Returns
    -------
    [image]; `1 - m / d`, where `m` is the median distance; 0 for what is nearer than that.
    """
    middle = np.nanmedian(nearest) if np.isfinite(nearest).any() else 0.0
    score = np.zeros(len(nearest))
    np.divide(nearest - middle, nearest, out=score, where=nearest > 0)
    return np.nan_to_num(np.clip(score, 0, 1))


def fence(scores: Float64Array) -> float:
    """Choose the score from which on it is beyond what is usual.

    By J. W. Tukey's outer fence (Exploratory Data Analysis, 1977): three times the distance between
    the quartiles above the third one, of `-log(1 - score)`, which is the logarithm of how many
    times nearer, or further, an image is than usual. 1 where all scores are one value.
    """
    usual = scores[scores < 1]
    if not len(usual):
        return 1.0
    logs = -np.log1p(-usual)
    low, high = np.quantile(logs, [0.25, 0.75])
    return float(-np.expm1(-(high + 3 * (high - low)))) if high > low else 1.0
