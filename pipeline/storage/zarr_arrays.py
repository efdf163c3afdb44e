"""Labelled arrays in chunked files: Zarr v3, whole shards, every chunk checked.

Creating and writing them; `store_array` reads them. What Zarr leaves to its users is added here:

- every chunk carries crc32c, and every chunk is written, also when it holds nothing but the
  fill value, so that a black image and a missing file differ;
- a write is one whole shard or is refused, so no two tasks write to one file;
- reading a shard whose file is missing or empty is an error, where Zarr fills in zeros;
- images are read without Zarr, several times as fast: see `shards`.

Names (of classes and metrics) are Zarr's variable-length strings, a handful in one chunk, which
both Zarr 3.1 and later read and write without complaint; per sample there are codes only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from pipeline.core.errors import DamagedError, StoreError
from pipeline.core.partitions import CHUNK_BYTES
from pipeline.core.paths import ABSENT
from pipeline.storage import shards, zarr_names
from pipeline.storage.atomic import read_json, storage_errors, write_pieces
from pipeline.storage.folders import exists, list_folder, remove_file, remove_tree
from pipeline.storage.store_array import StoreArray, chunk_key, find_rows, open_array
from pipeline.storage.zarr_stores import zarr_store

_CHECKSUM = Crc32cCodec()
# Not kept in the store: a reopened array needs it again.
_WRITE_ALL = cast(Any, {"write_empty_chunks": True})


def create_group(path: Path, attributes: Mapping[str, Any], group: str = "") -> None:
    """Create a group, or set the attributes of one that is there."""
    with storage_errors(path):
        torn = [_is_torn(path / name / "zarr.json") for name in dict.fromkeys(("", group))]
        if torn[-1] and (not group or not torn[0]):
            document = {"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"}
            _write_document(path / group / "zarr.json", document)
            return
        root = zarr.open_group(zarr_store(path), mode="a", zarr_format=3, use_consolidated=False)
        target = root.require_group(group) if group else root
        target.attrs.update(dict(attributes))


def _is_torn(file: Path) -> bool:
    """Tell whether metadata is missing, or was left without content by a power cut, and removed."""
    try:
        read_json(file)
    except ValueError:
        remove_file(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    else:
        return False
    return True


def _write_document(file: Path, document: Mapping[str, Any]) -> None:
    """Write metadata, the bytes that Zarr writes."""
    write_pieces(file, [json.dumps(document, indent=2).encode()], lasting=False)


@dataclass(frozen=True)
class ArrayTemplate:
    """All that the metadata of an array says: what it is made from, and compared with."""

    dims: Sequence[str]
    shape: tuple[int, ...]
    dtype: Any
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    fill_value: Any = 0
    attributes: Mapping[str, Any] = field(default_factory=dict)
    compressed: bool = True
    remarks: Mapping[str, Any] = field(default_factory=dict)
    """Attributes that change nothing of what is stored: an array without them is kept, and gets
    them."""

    def as_zarr(self) -> dict[str, Any]:
        codec = BloscCodec(**_codec(self.dtype is not str and np.dtype(self.dtype).itemsize > 1))
        return {
            "shape": self.shape,
            "dtype": self.dtype,
            "chunks": tuple(max(1, size) for size in self.chunks),
            "shards": self.shards,
            "fill_value": self.fill_value,
            "compressors": (codec, _CHECKSUM) if self.compressed else (_CHECKSUM,),
            "dimension_names": tuple(self.dims),
            "attributes": {**self.attributes, **self.remarks},
        }

    def document(self) -> dict[str, Any]:
        """Return the metadata of an empty array, as Zarr writes it."""
        chunks = [max(1, size) for size in self.chunks]
        names = self.dtype is str
        wide = not names and np.dtype(self.dtype).itemsize > 1
        endian = {"configuration": {"endian": "little"}} if wide else {}
        codecs: list[Any] = [{"name": "bytes", **endian}]
        if names:
            codecs = [{"name": "vlen-utf8", "configuration": {}}]
        if self.compressed:
            size = np.dtype(self.dtype).itemsize if wide else 1
            codecs.append({"name": "blosc", "configuration": {"typesize": size, **_codec(wide)}})
        codecs.append({"name": "crc32c"})
        if self.shards is not None:
            index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
            inner = {"chunk_shape": chunks, "codecs": codecs, "index_codecs": index}
            settings = {**inner, "index_location": "end"}
            codecs = [{"name": "sharding_indexed", "configuration": settings}]
        fill = self.fill_value if names else np.dtype(self.dtype).type(self.fill_value).item()
        return {
            "shape": list(self.shape),
            "data_type": "string" if names else np.dtype(self.dtype).name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.shards or chunks)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN" if fill != fill else fill,
            "codecs": codecs,
            "attributes": {**self.attributes, **self.remarks},
            "dimension_names": list(self.dims),
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }


def create_array(path: Path, name: str, template: ArrayTemplate) -> None:
    """Create an empty array, unless a run that was cut short already did.

    One that differs in anything that its metadata says (shape, dtype, chunks, shards, codecs, fill
    value, names of dimensions, attributes), or that cannot be opened, is of a plan that was changed
    since, or of a machine that failed, and removed.
    """
    file = path / name / "zarr.json"
    with storage_errors(path):
        if not exists(file):
            remove_tree(path / name)
            _write_document(file, template.document())
            return
        wanted = template.as_zarr()
        root = zarr.open_group(zarr_store(path), mode="r+", zarr_format=3, use_consolidated=False)
        with suppress(StoreError, DamagedError):
            existing = open_array(path, name, "r+")
            blank = zarr.create_array(MemoryStore(), zarr_format=3, **wanted)
            if _metadata(existing, template) == _metadata(blank, template):
                set_attributes(existing, template.remarks)
                return
        remove_tree(path / name)
        root.create_array(name, **wanted)


def _metadata(array: zarr.Array[Any], template: ArrayTemplate) -> Any:
    """Return what an array says of itself but remarks, in plain values that can be compared."""
    content = json.loads(json.dumps(array.metadata.to_dict()))
    for name in template.remarks:
        content["attributes"].pop(name, None)
    return content


def set_attributes(array: zarr.Array[Any], attributes: Mapping[str, Any]) -> None:
    """Set attributes of an array, those that are others; nothing is written where none is."""
    if any(array.attrs.get(name) != value for name, value in attributes.items()):
        array.update_attributes(dict(attributes))


def _codec(wide: bool) -> dict[str, Any]:  # `core.partitions` says what decided
    shuffle = "shuffle" if wide else "noshuffle"
    return {"cname": "lz4", "clevel": 5, "shuffle": shuffle, "blocksize": 0}


def write_array(
    path: Path, name: str, dims: Sequence[str], values: Any, attributes: Mapping[str, Any]
) -> None:
    """Write an array that is in memory, numbers or names, in chunks along its first axis."""
    array = np.asarray(values)
    names = array.dtype.kind in "UOT"
    dtype: Any = str if names else array.dtype
    fill: Any = "" if names else 0
    rows = len(array) if names else _rows_a_chunk(array)
    chunks = (rows, *array.shape[1:])
    template = ArrayTemplate(dims, array.shape, dtype, chunks, None, fill, attributes)
    create_array(path, name, template)
    document, parts = template.document(), range(0, len(array), max(rows, 1))
    if names and zarr_names.are_names(document):
        zarr_names.write_names(path / name / "c" / "0", array.tolist())
    elif not names and (plain := shards.find_rows(path / name, document)) is not None:
        for number, start in enumerate(parts):
            plain.write(number, array[start : start + rows])
    else:
        target = open_array(path, name, "r+")
        for start in parts:
            part = slice(start, start + rows)
            _write(target, (part,), array[part].astype(object) if names else array[part])


def _rows_a_chunk(array: npt.NDArray[Any]) -> int:
    """Return how many steps along the first axis make a chunk of moderate size."""
    return max(1, min(len(array), 4 * CHUNK_BYTES // max(array[:1].nbytes, 1)))


def write_shard(
    path: Path,
    name: str,
    axis: int,
    start: int,
    values: npt.NDArray[Any],
    total: int | None = None,
) -> str:
    """Write `values` at `start` along `axis`, exactly one shard; return the file's fingerprint.

    `total` is how many samples the array will have, where it is about to grow; see `grow_array`.

    Raises
    ------
    StoreError
        Where it is less or more than one shard, or not of the array's dtype: nothing is cast.
    StorageFullError
        Where the disk is full.
    """
    rows = find_rows(path, name, axis, total)
    if rows is not None:
        _check_whole_shard(path, name, start, values.shape[axis], rows.shard, rows.rows)
        return rows.write(start // rows.shard, values)
    array = open_array(path, name, "r+")
    shard = (array.shards or array.chunks)[axis]
    _check_whole_shard(path, name, start, values.shape[axis], shard, array.shape[axis])
    part = (slice(None),) * axis + (slice(start, start + values.shape[axis]),)
    shards.refuse_others(path / name, array.dtype, array.shape, axis, values)
    # Zarr reads an existing shard before it writes the last, shorter one over it; a torn shard
    # of an earlier try must not stop the new one
    key = chunk_key(array, axis, start // shard)
    with storage_errors(path):
        if sync((array.store_path / key).exists()):
            sync((array.store_path / key).delete())
    _write(array, part, values)
    return StoreArray(path, name, axis).fingerprint(start // shard)


def _check_whole_shard(
    path: Path, name: str, start: int, count: int, shard: int, total: int
) -> None:
    if start % shard or start + count != min(start + shard, total):
        raise StoreError(
            f"{path}/{name}: samples {start} to {start + count} are not one whole shard of "
            f"{shard}; two tasks would write to one file"
        )


def grow_array(path: Path, name: str, total: int, attributes: Mapping[str, Any]) -> None:
    """Make an array longer along its first axis; the shards beyond its end are there already.

    `attributes` are those that it has then, others stay.
    """
    with storage_errors(path):
        array = open_array(path, name, "r+")
        array.resize((total, *array.shape[1:]))
        set_attributes(array, attributes)


def _write(array: zarr.Array[Any], part: Any, values: npt.NDArray[Any]) -> None:
    with storage_errors(str(array.store_path)):
        array.with_config(_WRITE_ALL)[part] = values


def consolidate(path: Path, groups: Iterable[str] = ()) -> None:
    """Gather the metadata of the store and of each of its groups in one file each.

    Opening then lists no folder, which matters on object stores.
    """
    with storage_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        warnings.filterwarnings("ignore", ".*is not recognized as a component")
        for group in [*groups, ""]:
            if _gathered(path / group):
                continue
            zarr.consolidate_metadata(zarr_store(path), path=group or None, zarr_format=3)


def _gathered(path: Path) -> bool:
    """Gather the metadata of a group that holds arrays alone, without Zarr; tell whether it is."""
    try:
        group, found = read_json(path / "zarr.json"), {}
        for name in list_folder(path):
            if name != "zarr.json" and exists(path / name / "zarr.json"):
                found[name] = read_json(path / name / "zarr.json")
        kinds = {(each["zarr_format"], each["node_type"]) for each in found.values()}
        if kinds != {(3, "array")} or (group["zarr_format"], group["node_type"]) != (3, "group"):
            return False
    except (ValueError, KeyError, TypeError, *ABSENT):
        return False  # Zarr says what is wrong
    gathered = {"kind": "inline", "must_understand": False, "metadata": found}
    document = {
        "attributes": group.get("attributes", {}), "zarr_format": 3,
        "consolidated_metadata": gathered, "node_type": "group",
    }  # fmt: skip
    _write_document(path / "zarr.json", document)
    return True
