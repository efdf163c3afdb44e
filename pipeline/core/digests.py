"""SHA-256 over logical content: the same for any chunking, shard size or number of parts.

Two rules make that so. What is hashed are values in a canonical order and form (little-endian,
C order), never files. And what is cut into parts is hashed as a stream whose parts can be cut
anywhere: a sample by sample stream for image sets, one stream a column for tables.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_RECORD = np.dtype([("label", "<i4"), ("sha256", "V32")])


def canonical(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `array` in C order and little-endian bytes."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def json_digest(content: Any) -> str:
    """Return the SHA-256, in hex, of `content` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def array_digest(array: npt.NDArray[Any]) -> str:
    """Return the SHA-256, in hex, of an array's dtype, shape and values."""
    plain = canonical(array)
    digest = hashlib.sha256(f"{plain.dtype.str}{plain.shape}".encode())
    digest.update(plain.data)
    return digest.hexdigest()


def sample_hashes(images: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """Return the SHA-256 of the pixels of each image, [sample], 32 bytes each."""
    rows = canonical(images).reshape(len(images), math.prod(images.shape[1:]))
    return np.frombuffer(b"".join([hashlib.sha256(row.data).digest() for row in rows]), "V32")


def sample_records(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    hashes: npt.NDArray[np.void] | None = None,
) -> npt.NDArray[Any]:
    """Return for each image its label and the SHA-256 of its pixels.

    Parameters
    ----------
    images
        [sample, ...]; integers.
    labels
        [sample]; codes.
    hashes
        [sample]; the hashes, where they were taken before.

    Returns
    -------
    [sample]; records of dtype `SAMPLE_RECORD`.
    """
    records = np.empty(len(images), SAMPLE_RECORD)
    records["label"] = labels
    records["sha256"] = sample_hashes(images) if hashes is None else hashes
    return records


class ColumnDigest:
    """A running SHA-256 for each of several columns, fed part by part in row order."""

    def __init__(self) -> None:
        self._hashes: dict[str, Any] = {}

    def update(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Append the values of every column; NaN has one bit pattern only."""
        for name, values in columns.items():
            plain = canonical(values)
            if plain.dtype.kind == "f" and (missing := np.isnan(plain)).any():
                plain = np.where(missing, np.array(np.nan, plain.dtype), plain)
            if name not in self._hashes:
                self._hashes[name] = hashlib.sha256(plain.dtype.str.encode())
            self._hashes[name].update(plain.data)

    def result(self, header: Any = None) -> str:
        """Return one digest, in hex, over the header and all columns by name."""
        columns = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        return json_digest({"header": header, "columns": columns})
