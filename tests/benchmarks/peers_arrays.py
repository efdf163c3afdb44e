"""What others do with arrays in memory: the distance of every image to every mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import dask.array as da
import faiss
import numpy as np
import numpy.typing as npt
import torch
from dask_ml.metrics import pairwise_distances
from scipy.spatial import distance
from sklearn.neighbors import NearestCentroid

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


STEP = 2.0**-6


def set_threads(threads: int) -> None:
    """Let torch and faiss use this many threads."""
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


@dataclass(frozen=True)
class ReadyArrays:
    """Images and means as each peer likes them best, from 0 to 1, made before any timing.

    Attributes
    ----------
    images, means
        [sample, pixel] and [class, pixel], float32.
    images64, means64
        The same in float64, which scipy computes in.
    torch_images, torch_means
        The same as `images` and `means`, in tensors.
    nearest
        scikit-learn's classifier with these means.
    index_l1, index_l2
        faiss's flat indexes of the means.
    blocks
        The images as a dask array, a block for each thread.
    """

    images: Float32Array
    means: Float32Array
    images64: Float64Array
    means64: Float64Array
    torch_images: torch.Tensor
    torch_means: torch.Tensor
    nearest: NearestCentroid
    index_l1: Any
    index_l2: Any
    blocks: da.Array


def make_ready(images: npt.NDArray[np.uint8], means: Float64Array, threads: int) -> ReadyArrays:
    """Prepare images, [sample, y, x], and means, [class, pixel] from 0 to 255, for the peers."""
    pixels = means.shape[1]
    images64 = images.reshape(-1, pixels) / 255.0
    images32, means32 = images64.astype(np.float32), (means / 255.0).astype(np.float32)
    index_l1 = faiss.IndexFlat(pixels, faiss.METRIC_L1)
    index_l2 = faiss.IndexFlatL2(pixels)
    for index in (index_l1, index_l2):
        index.add(means32)
    return ReadyArrays(
        images=images32,
        means=means32,
        images64=images64,
        means64=means / 255.0,
        torch_images=torch.from_numpy(images32),
        torch_means=torch.from_numpy(means32),
        nearest=fit_nearest(means32),
        index_l1=index_l1,
        index_l2=index_l2,
        blocks=da.from_array(images32, chunks=(-(-len(images32) // threads), pixels)),
    )


def fit_nearest(means: npt.NDArray[Any]) -> NearestCentroid:
    """Return scikit-learn's classifier with these means, [class, pixel]."""
    # a little below and above each mean: without variance within a class it would warn
    around = np.concatenate([means - STEP, means + STEP])
    return NearestCentroid().fit(around, np.tile(np.arange(len(means)), 2))


def broadcast_l1(ready: ReadyArrays) -> Float32Array:
    """Measure by l1 as the article does: by broadcasting, and the mean over pixels."""
    images, means = ready.torch_images[:, None], ready.torch_means[None]
    return (images - means).abs().mean(-1).numpy()


def cdist(ready: ReadyArrays, p: float) -> Float32Array:
    """Measure by torch's own function: the sum (p=1) or the root of the sum of squares (p=2)."""
    return torch.cdist(ready.torch_images, ready.torch_means, p=p).numpy()


def scipy_l1(ready: ReadyArrays) -> Float64Array:
    """Measure by scipy's city block distance, which is the sum over pixels; on one thread."""
    return np.asarray(distance.cdist(ready.images64, ready.means64, "cityblock"))


def predict_nearest(ready: ReadyArrays) -> Int64Array:
    """Return the nearest mean of each image by scikit-learn's classifier, by l2."""
    return np.asarray(ready.nearest.predict(ready.images))


def search(ready: ReadyArrays, metric: str) -> tuple[Float32Array, Int64Array]:
    """Return the distance of the nearest mean of each image, and which it is, by faiss.

    The sum over pixels (l1), or the sum of squares (l2). Only the nearest is asked for: all
    distances, sorted, as faiss returns them, would take it longer.
    """
    index = ready.index_l1 if metric == "l1" else ready.index_l2
    values, numbers = index.search(ready.images, 1)
    return values[:, 0], numbers[:, 0]


def dask_ml(ready: ReadyArrays, metric: str) -> Float32Array:
    """Measure by dask-ml: `manhattan` or `euclidean`, on blocks in threads."""
    return np.asarray(pairwise_distances(ready.blocks, ready.means, metric=metric).compute())
