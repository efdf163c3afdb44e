"""The kernels in torch, for any torch device; NumPy in and out, since CUDA tensors do not
travel between dask workers.

Images go to the device as they are, 8 or 16 bits a pixel, in batches that keep the widened
copies small; they are widened there. Sums are exact for the reasons given in `exact`: integer
sums in int64, products in float64 only where every partial sum stays below 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.exact import Arithmetic, Int64Array

# Bytes of widened pixels that one batch may take on the device.
_BATCH_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
_BATCH_BYTES_ELSEWHERE = 64 * 2**20


def is_available(device: str) -> bool:
    """Tell whether torch can use the device here."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def _working_dtype(arithmetic: Arithmetic, device: str) -> torch.dtype:
    # Apple's devices have no float64; int64 holds whatever float64 would.
    if arithmetic.total_dtype == np.float64 and not device.startswith("mps"):
        return torch.float64
    return torch.int64


def _batches(images: npt.NDArray[Any], device: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the images in batches on the device, each with its place."""
    budget = _BATCH_BYTES.get(device.partition(":")[0], _BATCH_BYTES_ELSEWHERE)
    step = max(1, budget // max(8 * images.shape[1], 1))
    for start in range(0, len(images), step):
        place = slice(start, min(start + step, len(images)))
        batch = np.ascontiguousarray(images[place])
        if not batch.flags.writeable:
            batch = batch.copy()
        yield place, torch.from_numpy(batch).to(device)


def class_sums(
    images: npt.NDArray[Any], positions: Int64Array, classes: int, *, device: str
) -> tuple[Int64Array, Int64Array]:
    """Sum the images of each class; see `kernels.ClassSums`."""
    # one row more takes the images that are left out
    sums = torch.zeros((classes + 1, images.shape[1]), dtype=torch.int64, device=device)
    rows = np.where(positions < 0, classes, positions).astype(np.int64)
    for place, batch in _batches(images, device):
        index = torch.from_numpy(rows[place]).to(device)
        sums.index_add_(0, index, batch.to(torch.int64))
    counts = np.bincount(rows, minlength=classes + 1).astype(np.int64)
    return sums[:classes].cpu().numpy(), counts[:classes]


def l1_numerators(
    images: npt.NDArray[Any],
    numerators: Int64Array,
    denominators: Int64Array,
    arithmetic: Arithmetic,
    *,
    device: str,
) -> Int64Array:
    """Sum absolute differences to each prototype; see `kernels.L1Numerators`."""
    dtype = _working_dtype(arithmetic, device)
    prototypes = torch.from_numpy(np.require(numerators, None, ["C", "W"])).to(device).to(dtype)
    result = np.empty((len(images), len(numerators)), np.int64)
    for place, batch in _batches(images, device):
        pixels = batch.to(dtype)
        columns = [
            (pixels * denominator).sub_(prototype).abs_().sum(dim=1)
            for denominator, prototype in zip(denominators.tolist(), prototypes, strict=True)
        ]
        result[place] = torch.stack(columns, dim=1).to(torch.int64).cpu().numpy()
    return result


def dot_products(
    images: npt.NDArray[Any],
    numerators: Int64Array,
    denominators: Int64Array,  # noqa: ARG001  (of the protocol; whole numbers need no parts here)
    arithmetic: Arithmetic,
    *,
    device: str,
) -> Int64Array:
    """Multiply with each prototype's integers; see `kernels.DotProducts`."""
    dtype = _working_dtype(arithmetic, device)
    prototypes = torch.from_numpy(np.require(numerators, None, ["C", "W"])).to(device).to(dtype)
    result = np.empty((len(images), len(numerators)), np.int64)
    for place, batch in _batches(images, device):
        pixels = batch.to(dtype)
        if dtype is torch.float64:
            products = pixels @ prototypes.T
        else:
            # CUDA has no integer matrix product
            products = torch.stack([(pixels * row).sum(dim=1) for row in prototypes], dim=1)
        result[place] = products.to(torch.int64).cpu().numpy()
    return result


def squared_norms(images: npt.NDArray[Any], *, device: str) -> Int64Array:
    """Sum the squares of each image's pixels; see `kernels.SquaredNorms`."""
    result = np.empty(len(images), np.int64)
    for place, batch in _batches(images, device):
        pixels = batch.to(torch.int64)
        result[place] = (pixels * pixels).sum(dim=1).cpu().numpy()
    return result
