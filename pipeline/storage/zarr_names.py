"""Arrays of names, of classes and metrics, read and written without Zarr; see `shards`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc, VLenUTF8

from pipeline.core.errors import DamagedError
from pipeline.storage.atomic import write_pieces
from pipeline.storage.blobs import open_ranges
from pipeline.storage.shards import CHECKSUM_BYTES, ChunkError, are, checked, checksum


def are_names(metadata: Mapping[str, Any]) -> bool:
    """Tell whether an array is one of names, in one chunk, as `write_names` writes it."""
    keys, grid = metadata["chunk_key_encoding"], metadata["chunk_grid"]
    plain = metadata["data_type"] == "string" and len(metadata["shape"]) == 1
    codecs = plain and are(metadata["codecs"], "vlen-utf8", "blosc", "crc32c")
    keyed = keys == {"name": "default", "configuration": {"separator": "/"}}
    one = codecs and 0 < metadata["shape"][0] <= grid["configuration"]["chunk_shape"][0]
    return bool(keyed and one)


def write_names(file: Path, names: Sequence[str]) -> None:
    """Write names as a file of one chunk."""
    encoded = VLenUTF8().encode(np.array([*names, None], object)[:-1])
    data = bytes(Blosc("lz4", 5, Blosc.NOSHUFFLE).encode(encoded))
    write_pieces(file, [data, checksum(data)], lasting=False)


def read_names(file: Path, count: int) -> npt.NDArray[Any]:
    """Read so many names, [name], as NumPy's text; what cannot be read is a `DamagedError`."""
    try:
        with open_ranges(file, whole=True) as opened:
            if opened.size <= CHECKSUM_BYTES:
                raise ChunkError("the file is empty")
            data = checked(opened, 0, opened.size)
        names = VLenUTF8().decode(Blosc().decode(data))
    except FileNotFoundError:
        raise DamagedError(f"{file}: this file is missing") from None
    except (ChunkError, RuntimeError, ValueError) as error:
        raise DamagedError(f"{file}: a chunk cannot be read ({error})") from None
    return np.array([str(name) for name in names[:count]], str)
