"""What others do to find the nearest images, in memory: each as it likes its arrays best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numkong
import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import NearestNeighbors

from pipeline.core.threads import in_ranges

Found = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]
Search = Callable[[], Found]
Flat = npt.NDArray[np.uint8]

FAISS_L1, FAISS_L2 = "faiss IndexFlat, l1", "faiss IndexFlatL2, l2, float32"
FAISS_BYTES = "faiss IndexScalarQuantizer QT_8bit_direct, l2"
SKLEARN = {"l1": "scikit-learn brute force, l1", "l2": "scikit-learn brute force, l2"}
TORCH = {"l1": "torch.cdist(p=1) and topk", "l2": "torch.cdist(p=2) and topk"}
NUMKONG = "NumKong packed products of bytes, l2"
_BLOCK = 2**24  # distances that are in memory at once


def faiss_flat(queries: Flat, references: Flat, k: int, metric: str) -> Search:
    """Search by faiss's flat index of float32."""
    pixels = references.shape[1]
    index = faiss.IndexFlatL2(pixels)
    if metric == "l1":
        index = faiss.IndexFlat(pixels, faiss.METRIC_L1)
    index.add(references.astype(np.float32))
    wanted = queries.astype(np.float32)
    return lambda: index.search(wanted, k)


def faiss_bytes(queries: Flat, references: Flat, k: int) -> Search:
    """Search by faiss's index of bytes, by l2; exact where rows are a multiple of 32 long."""
    more = ((0, 0), (0, -references.shape[1] % 32))
    wide = [np.pad(rows, more).astype(np.float32) for rows in (queries, references)]
    index = faiss.IndexScalarQuantizer(
        wide[0].shape[1], faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_L2
    )
    index.add(wide[1])
    return lambda: index.search(wide[0], k)


def sklearn_brute(queries: Flat, references: Flat, k: int, metric: str) -> Search:
    """Search by scikit-learn's brute force."""
    name = {"l1": "manhattan", "l2": "sqeuclidean"}[metric]
    fitted = NearestNeighbors(n_neighbors=k, algorithm="brute", metric=name, n_jobs=-1)
    fitted.fit(references.astype(np.float32))
    wanted = queries.astype(np.float32)
    return lambda: fitted.kneighbors(wanted)


def torch_cdist(queries: Flat, references: Flat, k: int, metric: str) -> Search:
    """Search by torch's matrix of distances, and its topk, block by block."""
    wanted, others = (torch.from_numpy(rows.astype(np.float32)) for rows in (queries, references))
    step = max(1, _BLOCK // len(references))

    def search() -> Found:
        parts = [
            torch.cdist(part, others, p=1 if metric == "l1" else 2).topk(k, largest=False)
            for part in wanted.split(step)
        ]
        distances = torch.cat([part.values for part in parts]).numpy()
        distances = distances if metric == "l1" else distances**2
        return distances, torch.cat([part.indices for part in parts]).numpy()

    return search


def numkong_products(queries: Flat, references: Flat, k: int, threads: int) -> Search:
    """Search by NumKong's products of bytes and norms in integers, and NumPy's argpartition."""
    packed = numkong.dots_pack(np.ascontiguousarray(references), dtype="uint8")
    wide = references.astype(np.int64)
    norms = np.einsum("ij,ij->i", wide, wide)
    step = max(1, _BLOCK // 8 // len(references))

    def search() -> Found:
        distances = np.empty((len(queries), k), np.int64)
        indices = np.empty((len(queries), k), np.int64)

        def one(first: int, last: int) -> None:
            for start in range(first, last, step):
                part = np.ascontiguousarray(queries[start : min(start + step, last)])
                products = np.asarray(numkong.dots_packed(part, packed)).astype(np.int64)
                squares = part.astype(np.int64)
                sums = np.einsum("ij,ij->i", squares, squares)[:, None] + norms - 2 * products
                nearest = np.argpartition(sums, k - 1, axis=1)[:, :k]
                values = np.take_along_axis(sums, nearest, 1)
                order = np.lexsort((nearest, values))
                rows = slice(start, start + len(part))
                distances[rows] = np.take_along_axis(values, order, 1)
                indices[rows] = np.take_along_axis(nearest, order, 1)

        in_ranges(threads, len(queries), one)
        return distances, indices

    return search
