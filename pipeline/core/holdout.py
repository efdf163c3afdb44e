"""Which images of a split are held out: decided by what is in them, class by class.

The order of images, partitions and shards play no part, and of exact copies all are on one side,
also where their labels differ: such a content belongs to the lowest of these labels, and its copies
go with it.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt


def hold_out(
    keys: npt.NDArray[np.uint64], labels: npt.NDArray[np.int32], share: float
) -> npt.NDArray[np.bool_]:
    """Tell which images are held out.

    Class by class, in the order of codes and those without label last, its contents are held out
    from the smallest key on, as many as bring the number of its images that are held out nearest to
    the share; of two that are equally near, the smaller. What of it has gone with lower classes
    counts.

    Parameters
    ----------
    keys
        [image]; the first eight bytes of the hash of its content. Contents that share them are
        taken for one.
    labels
        [image]; codes, -1 for none.
    share
        Above 0 and below 1; taken as the decimal fraction that it is written as.

    Returns
    -------
    [image].
    """
    if not len(keys):
        return np.zeros(0, bool)
    wanted, last = Fraction(repr(share)), int(labels.max()) + 1
    classes = np.where(labels < 0, last, labels).astype(np.int32)
    order = np.lexsort((classes, keys))
    keys, classes = keys[order], classes[order]
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    content = np.cumsum(first) - 1
    owner = classes[first]  # the lowest label, since copies are sorted by label
    own = classes == owner[content]
    sizes = np.bincount(content[own], minlength=len(owner))
    totals = np.bincount(classes, minlength=last + 1).tolist()
    by_owner = np.argsort(owner, kind="stable")
    others = np.flatnonzero(~own)
    others = others[np.argsort(classes[others], kind="stable")]
    codes = np.arange(last + 2)
    edges = pairwise(np.searchsorted(owner[by_owner], codes).tolist())
    of_others = pairwise(np.searchsorted(classes[others], codes).tolist())
    held = np.zeros(len(owner), bool)
    for total, (start, stop), (begin, end) in zip(totals, edges, of_others, strict=True):
        mine = by_owner[start:stop]
        gone = np.count_nonzero(held[content[others[begin:end]]])
        reached = gone + np.concatenate([[0], np.cumsum(sizes[mine])])
        off = np.abs(reached * wanted.denominator - total * wanted.numerator)
        held[mine[: int(off.argmin())]] = True
    result = np.empty(len(keys), bool)
    result[order] = held[content]
    return result
