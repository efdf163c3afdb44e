"""What it is to leave an image out, in Python's integers: delete it, make its prototype anew."""

from __future__ import annotations

import numpy as np
from strategies import is_root, oracle_distances


def fraction_of(images, kind):
    """The prototype of some images as an integer image and its denominator; None of no image."""
    if not len(images):
        return None
    if kind == "mean":
        return images.astype(object).sum(axis=0), len(images)
    return (2 * np.median(images, axis=0)).astype(np.int64), 2


def check(images, labels, kind, found, plain):
    """Compare distances with those to prototypes that are made of all images but one.

    `found` and `plain` are [metric, sample, class], without the image and with it: of other classes
    they are the same.
    """
    full_scale = int(np.iinfo(images.dtype).max)
    for sample, (image, label) in enumerate(zip(images, labels, strict=True)):
        others = [code for code in range(found.shape[2]) if code != label]
        left, right = found[:, sample, others], plain[:, sample, others]
        assert left.tobytes() == right.tobytes()
        if label < 0:
            continue
        rest = np.delete(images, sample, axis=0)[np.delete(labels, sample) == label]
        prototype = fraction_of(rest, kind)
        l1, l2 = found[:, sample, label]
        if prototype is None:
            assert np.isnan([l1, l2]).all()
            continue
        exact = oracle_distances(image, *prototype, full_scale)
        assert l1 == float(exact[0])
        assert is_root(l2, exact[1])
