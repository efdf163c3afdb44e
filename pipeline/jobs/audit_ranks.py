"""How well the prototype of its class fits a suspect image: the mean of the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Int64Array
from pipeline.core.schema import COUNT, PIXEL_SUM, UNLABELLED
from pipeline.execution.executor import Executor
from pipeline.jobs.audit_plan import AuditPlan
from pipeline.ops.distance_blocks import distances_block, make_reference
from pipeline.ops.leave_one_out import Others
from pipeline.ops.prototypes import class_sums
from pipeline.storage.image_content import open_images

# Images that are measured at once.
_BLOCK = 1024


def prototype_ranks(
    plan: AuditPlan,
    read: Callable[[Int64Array], npt.NDArray[Any]],
    labels: npt.NDArray[np.int32],
    numbers: Int64Array,
    executor: Executor,
) -> Int64Array:
    """Return for some images the rank of their own class among the means of all, nearest first.

    Parameters
    ----------
    plan, executor
        The audit, and where it runs.
    read
        Reads images by their numbers, ascending.
    labels
        [image]; codes, of all.
    numbers
        [row]; which images, any order.

    Returns
    -------
    [row]; 1 where the mean of its own class is the nearest, without the image itself; -1 for images
    without a label. One that is the only one of its class comes last.
    """
    ranks = np.full(len(numbers), -1)
    if not len(numbers) or not (labels != UNLABELLED).any():
        return ranks
    device, metric = plan.settings.device, plan.settings.metric
    sums = [class_sums(open_images(plan.images, split), device=device) for split in plan.splits]
    lazy = reduce(lambda a, b: a + b, (s[_SUMMED] for s in sums))
    total = executor.compute(lazy)
    counts = total[COUNT.name].values
    there = np.flatnonzero(counts)
    reference = make_reference(
        total[PIXEL_SUM.name].values[there], counts[there], str(plan.like["dtype"]),
        plan.content["full_scale"], device, Others(counts[there] - 1),
    )  # fmt: skip
    order = np.argsort(numbers)
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        own = np.searchsorted(there, labels[numbers[rows]])
        distance = distances_block(read(numbers[rows]), reference, (metric,), 1, own)[0]
        at = np.arange(len(rows)), own
        without = np.nan_to_num(distance[at], nan=np.inf)
        distance[at] = np.inf
        ranks[rows] = 1 + (distance < without[:, None]).sum(1)
    return ranks


_SUMMED = [PIXEL_SUM.name, COUNT.name]
