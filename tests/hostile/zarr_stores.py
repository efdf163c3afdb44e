"""Zarr stores and NetCDF files of others: codecs that unpickle, and shapes beyond any disk."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile.cases import Case
from hostile.making import picture
from hostile.numpy_files import Trap


def write_zarr(root: Path, arrays: dict[str, dict[str, Any]]) -> str:
    """Write a Zarr 2 store of one chunk an array: `data`, `dims`, and its metadata; return it."""
    root.mkdir()
    (root / ".zgroup").write_text('{"zarr_format": 2}')
    for name, array in arrays.items():
        folder = root / name
        folder.mkdir()
        data, dims = array.pop("data", None), array.pop("dims")
        usual = {"zarr_format": 2, "dtype": "|u1", "compressor": None, "fill_value": 0}
        usual |= {"order": "C", "filters": None, "chunks": array.get("shape")}
        (folder / ".zarray").write_text(json.dumps(usual | array))
        (folder / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": dims}))
        if data is not None:
            (folder / ".".join("0" for _ in dims)).write_bytes(data)
    return str(root)


def zarr_cases(root: Path, trap: Path) -> Iterator[Case]:
    dims = ["sample", "y", "x"]
    pixels = picture(8, 35, 1).tobytes()

    def image(**other: Any) -> dict[str, Any]:
        return {"image": {"shape": [8, 5, 7], "dims": dims, "data": pixels, **other}}

    def label(**other: Any) -> dict[str, Any]:
        return {"label": {"shape": [8], "dims": ["sample"], "data": bytes((0, 1) * 4), **other}}

    def case(name: str, arrays: dict[str, Any], stored: int | None, error: str = ".") -> Case:
        source = write_zarr(root / name, arrays)
        return Case(name, source, stored, error=None if stored else error)

    yield case("whole.zarr", image() | label(), 8)
    yield case("no-chunk.zarr", image(data=None) | label(), 8)
    yield case("short-chunk.zarr", image(data=pixels[:-1]) | label(), None)
    yield case("long-chunk.zarr", image(data=pixels + b"x") | label(), None)
    for kind in ("gzip", "zlib", "zstd", "blosc", "lz4"):
        packer = {"compressor": {"id": kind}}
        yield case(f"garbage-{kind}.zarr", image(**packer) | label(), None)
    trapped = {"data": pickle.dumps(Trap(trap))}
    unpickle = [{"id": "pickle", "protocol": 5}]
    text = [{"id": "vlen-utf8"}]
    for number, filters in enumerate((unpickle, unpickle + text, text + unpickle)):
        for name in ("label", "sample"):
            arrays = image() | {name: label(dtype="|O", filters=filters, **trapped)["label"]}
            yield case(f"pickle-{number}-{name}.zarr", arrays, None)
    packer = {"compressor": {"id": "pickle"}}
    yield case("pickle-compressor.zarr", image(**packer, **trapped) | label(), None)
    yield case("unknown.zarr", image(compressor={"id": "os.system"}) | label(), None)
    yield case("exbibytes.zarr", image(shape=[2**60, 5, 7]) | label(shape=[2**60]), None)
    yield case("exbibyte-chunk.zarr", image(chunks=[2**60, 5, 7], data=None) | label(), 8)
    yield case("negative.zarr", image(shape=[-8, 5, 7]) | label(), None)
    yield case("shape-is-text.zarr", image(shape="many") | label(), None)
    for name, text_of in {
        "garbage": "\x1b[2J{",
        "nothing": "",
        "list": "[]",
        "deep": "[" * 100_000,
        "format": '{"zarr_format": 9, "node_type": "group"}',
        "array": '{"zarr_format": 3, "node_type": "array"}',
    }.items():
        folder = root / f"json-{name}.zarr"
        folder.mkdir()
        (folder / "zarr.json").write_text(text_of)
        yield Case(folder.name, str(folder), error=".")
    for name, data in {
        "nothing.nc": b"",
        "text.nc": b"no array" * 99,
        "hdf.h5": b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 9,
        "classic.nc": b"CDF\1" + b"\xff" * 99,
    }.items():
        (root / name).write_bytes(data)
        yield Case(name, str(root / name), error=".")
