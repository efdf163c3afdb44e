"""From what a job says of its images to a source: which reader they need, and opening it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import load_environment, make_images
from pipeline.core.arguments import checked
from pipeline.core.blocks import Source
from pipeline.core.errors import ConfigError, SourceError, nearest
from pipeline.core.paths import is_remote, locate, shown
from pipeline.images.conversion import Conversion
from pipeline.images.decoders import installed, to_resume
from pipeline.sources.archive_streams import SUFFIXES as ARCHIVE_SUFFIXES
from pipeline.sources.archives import ArchiveReader
from pipeline.sources.catalog import holds_entry, load_catalog, open_dataset
from pipeline.sources.encoded import EncodedSource, open_encoded, reopen_encoded
from pipeline.sources.file_names import (
    IMAGE_SUFFIXES,
    expand,
    folder_of,
    is_hidden,
    is_image,
    splits_in,
)
from pipeline.sources.folder import FolderReader, has_images
from pipeline.sources.hdf5 import SUFFIXES as HDF5_SUFFIXES
from pipeline.sources.hdf5 import has_dimensions
from pipeline.sources.lists import ListReader
from pipeline.sources.notes import left_beside
from pipeline.sources.numpy_files import SUFFIXES as ARRAY_SUFFIXES
from pipeline.sources.numpy_files import open_numpy
from pipeline.sources.parquet import ParquetReader, holds_images
from pipeline.sources.pixel_tables import PixelReader, holds_pixels
from pipeline.sources.quantize import Packing, Run, converted, pack_floats
from pipeline.sources.table_folders import parquet_folders, tables_beside
from pipeline.sources.text_tables import SUFFIXES as TEXT_SUFFIXES
from pipeline.storage.atomic import make_scratch, remove_scratch
from pipeline.storage.blobs import file_size
from pipeline.storage.folders import exists, is_folder, list_folder
from pipeline.storage.manifest import WORK

TORCHVISION, CATALOG = "torchvision:", "catalog:"
_KIND_OF_SUFFIX = {
    ".tar": "tar", ".tgz": "tar", ".nc": "xarray", ".nc4": "xarray", ".zarr": "xarray",
    **dict.fromkeys(TEXT_SUFFIXES, "list"),
    **dict.fromkeys((".tbz", ".tbz2", ".txz"), "tar"), ".zip": "zip",
    **dict.fromkeys(IMAGE_SUFFIXES, "folder"),  # of a pattern of image files
}  # fmt: skip
_PACKED = {".7z": "7z x", ".rar": "unrar x", ".zst": "tar --zstd -xf"}
_FOLDERS_OF = {"parquet": (".parquet",), "tar": ARCHIVE_SUFFIXES, "numpy": ARRAY_SUFFIXES}
_MOST_LOOKED_INTO = 100
_ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")
_ARCHIVES = ("tar", "zip")
_ENCODED = ("folder", "parquet", "list", "pixels", *_ARCHIVES)


@checked
def open_source(
    images: str | Path | Mapping[str, Any] | ImageSettings,
    listing: Path | None = None,
    scratch: Path | None = None,
) -> Source:
    """Open a source: a name of the catalog, a path, a pattern or a URL, or a mapping of settings.

    Parameters
    ----------
    images
        See `ImageSettings`.
    listing
        The folder of a listing of its samples that was made before, which is taken as it is.
    scratch
        A folder in which a new listing may be put; default: in the data folder. It is removed by
        `release`, at the end of the process, or, where that was killed, by the next one.

    Raises
    ------
    ConfigError
        Where it is nothing that can be read.
    SourceError
        Where it cannot be read.
    """
    settings = make_images(images)
    kind = settings.kind or find_kind(settings)
    size = settings.resize, settings.crop, settings.pad
    conversion = Conversion(*size, settings.mode, settings.max_pixels, settings.depth)
    if kind in _ENCODED:
        return _open_encoded(kind, settings, conversion, listing, scratch)
    if kind == "torchvision":  # its images may be of all sizes
        return _open_torchvision(settings, conversion)
    source = _open_arrays(kind, settings)
    return converted(source, conversion) if conversion.describe() else source


def release(source: Source) -> None:
    """Close a source, and remove the listing that was made for it."""
    source.close()
    if isinstance(source, EncodedSource):
        remove_scratch(source.listing)


def packed(
    source: Source,
    settings: ImageSettings,
    mapped: Run | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Source:
    """Return a source of integers: floats are packed into the range that the settings say.

    Where they do not, `recorded` does: the provenance of the same source, packed before. Else the
    range is measured by `mapped`, which calls a function for each number below a count, as
    `Executor.map` does; without it the range is assumed to be 0 to 1. `ConfigError` where a range
    is given, and there are no floats, of what is not recorded.
    """
    types = sorted({info.dtype for info in source.splits().values()})
    if not any(name.startswith("float") for name in types):
        if settings.value_range is not None and recorded is None:
            raise ConfigError(
                f"value_range is for images of floats, these are {', '.join(types)}; leave it out"
            )
        return source
    if recorded is not None and recorded.get("packing", {}).get("measured"):
        lowest, highest = recorded["packing"]["range"]
        return pack_floats(source, Packing(lowest, highest, measured=True))
    if mapped is None:
        return pack_floats(source, settings.value_range or (0.0, 1.0))
    return pack_floats(source, settings.value_range, mapped)


def decoded(source: Source, begun: Mapping[str, Any] | None = None) -> Source:
    """Return a source with the libraries that decode its image files, where it has such.

    They are those of this process; or, where a plan was `begun` of it, those that its provenance
    recorded then, also where that is nothing.
    """
    required = installed() if begun is None else to_resume(begun)
    if isinstance(source, EncodedSource):
        return source.decoded_by(required)
    if begun and required is not None and hasattr(source, "decoders"):
        return cast(Source, replace(cast(Any, source), decoders=required))
    return source


def find_kind(settings: ImageSettings) -> str:
    """Tell how to read a source from its name and content; `ConfigError` where it cannot be."""
    if settings.source is not None and settings.source.startswith(TORCHVISION):
        return "torchvision"
    if catalog_name(settings) is not None:
        return "catalog"
    first = next(iter(paths_by_split(settings).values()))[0]
    text = str(settings.source) if settings.source is not None else str(first)
    suffix = _suffix(first)
    kind = (
        _kind_of_file(first, suffix, settings)
        if suffix == ".zarr" or not is_folder(first)
        else None
    )
    if kind is not None:
        return kind
    if is_folder(first):
        return _kind_of_folder(first)
    if suffix in _PACKED and exists(first):
        raise ConfigError(
            f"images '{shown(text)}': archives of kind {suffix} are not read; unpack it "
            f"('{_PACKED[suffix]} {first.name}') and give the folder, or pack it as .tar"
        )
    if is_remote(first):
        with suppress(FileNotFoundError):
            file_size(first)  # says that access was refused, where it was
    if exists(first):
        what = f"files ending in {suffix} are not read" if suffix else "what it holds is not known"
        raise ConfigError(
            f"images '{shown(text)}': {what}, expected a folder of images, a store, or a file "
            "ending in .tar, .zip, .parquet, .npz, .npy, .h5, .csv or .nc"
        )
    what = "there is no such file or folder, nor a data set of that name"
    raise ConfigError(f"images '{shown(text)}': {what}; {_meant(text, first)}")


def _meant(text: str, path: Path) -> str:
    """Return what a name may be meant to be: a data set, else what lies there."""
    hint = nearest(text, load_catalog())
    beside = [] if is_remote(path) else [n for n in list_folder(path.parent) if n[0] != "."]
    name = text.rstrip("/")
    other = nearest(name, [name.removesuffix(path.name) + n for n in beside]) if beside else ""
    return other if other.startswith("did") and not hint.startswith("did") else hint


def _kind_of_file(path: Path, suffix: str, settings: ImageSettings) -> str | None:
    """Tell how to read a file by its suffix, and of tables and HDF5 by what it holds."""
    name = path.name.lower()
    if name.endswith(ARCHIVE_SUFFIXES):
        return "zip" if suffix == ".zip" else "tar"
    if suffix == ".parquet":
        return "parquet" if holds_images(path, dict(settings.columns)) else "list"
    if not name.endswith((*_KIND_OF_SUFFIX, *ARRAY_SUFFIXES, f"{suffix}.gz")) or not exists(path):
        return None
    if suffix in HDF5_SUFFIXES:
        return "xarray" if has_dimensions(path) else "numpy"
    if suffix in TEXT_SUFFIXES and holds_pixels(path, settings.encoding, settings.shape):
        return "pixels"
    return _KIND_OF_SUFFIX.get(suffix, "numpy")


def _suffix(path: Path) -> str:
    """Return the suffix of a path in lower case; of a table of text that was packed, its own."""
    unpacked = Path(path.name.lower().removesuffix(".gz")).suffix
    return unpacked if unpacked in TEXT_SUFFIXES else path.suffix.lower()


def catalog_name(settings: ImageSettings) -> str | None:
    """Return the name of the catalog's data set that a source means; None where it is a path.

    A folder of that name in the working directory is what is meant, unless it holds just the files
    of the data set; `catalog:NAME` always means the data set.
    """
    text = settings.source
    if text is None or settings.kind not in (None, "catalog"):
        return None
    if text.startswith(CATALOG) or settings.kind == "catalog":
        return text.removeprefix(CATALOG)
    entry = load_catalog().get(text)
    if entry is None or (Path(text).is_dir() and not holds_entry(Path(text), entry)):
        return None
    return text


def folder_note(settings: ImageSettings) -> str | None:
    """Return a line that says that a folder stands before the catalog's data set of its name."""
    text = settings.source
    if settings.kind is not None or text not in load_catalog() or catalog_name(settings):
        return None
    return f"'{text}' is the folder of that name; {CATALOG}{text} is the catalog's data set"


def _kind_of_folder(path: Path) -> str:
    """Tell what a folder holds: files of data, such as archives, or images.

    Where there are both, the others are stray ones: images win where they are more, or are in
    several folders or in that of a split.
    """
    names = list_folder(path)
    if any(name in _ZARR_FILES for name in names):
        return "xarray"
    beside = tables_beside(path).values()
    if beside and not any(t.suffix == ".parquet" and _is_image_table(t) for t in beside):
        return "list"
    data = {
        kind: [name for name in names if name.lower().endswith(suffixes)]
        for kind, suffixes in _FOLDERS_OF.items()
    }
    tables = data["parquet"]
    if tables and (data["tar"] or data["numpy"]) and not _is_image_table(path / tables[0]):
        data["parquet"] = []
    kind = max(data, key=lambda kind: len(data[kind]))
    images = sum(is_image(os.fsencode(name)) for name in names)
    if images > len(data[kind]) or not data[kind] or _has_image_folders(path, names):
        return (None if images else _kind_by_tables(path, names)) or "folder"
    is_zip = kind == "tar" and all(name.lower().endswith(".zip") for name in data[kind])
    return "zip" if is_zip else kind


def _kind_by_tables(path: Path, names: Sequence[str]) -> str | None:
    """Tell whether a folder without images holds Parquet files in folders, or tables of pixels."""
    if not _has_image_folders(path, names, 0):
        if parquet_folders(path):
            return "parquet"
        tables = [name for name in names if name.lower().endswith(PixelReader.suffixes)]
        if any(holds_pixels(path / name) for name in tables[:_MOST_LOOKED_INTO]):
            return "pixels"
    return None


def _is_image_table(path: Path) -> bool:
    try:
        return holds_images(path)
    except SourceError:  # none that can be read
        return False


def _has_image_folders(path: Path, names: Sequence[str], most: int = 1) -> bool:
    """Tell whether there are images in several folders of a folder, or in that of a split."""
    known = (*(suffix for several in _FOLDERS_OF.values() for suffix in several), ".zarr")
    count = 0
    for name in [n for n in names if not n.lower().endswith(known)][:_MOST_LOOKED_INTO]:
        if not is_hidden(os.fsencode(name)) and is_folder(path / name) and has_images(path / name):
            count += 2 if splits_in(os.fsencode(name)) else 1
            if count > most:
                return True
    return False


def paths_by_split(settings: ImageSettings) -> dict[str | None, list[Path]]:
    """Return the paths of each split; of None those that say themselves what the splits are."""
    given: Mapping[Any, Sequence[str]] = settings.splits or {None: [settings.source or ""]}
    return {
        split: [p for t in texts for p in _located(t, settings)] for split, texts in given.items()
    }


def _located(text: str, settings: ImageSettings) -> list[Path]:
    options = settings.storage_options
    return [locate(name, options).absolute() for name in expand(text, options)]


def _choose_files(
    settings: ImageSettings,
) -> tuple[dict[str | None, list[Path]], dict[tuple[str | None, Path], list[bytes]]]:
    """Return the folders of each split; and of those that files were named in, the files.

    The folder of files is the one that their pattern begins with, so that those below it are
    classes.
    """
    given: Mapping[Any, Sequence[str]] = settings.splits or {None: [settings.source or ""]}
    paths: dict[str | None, list[Path]] = {}
    chosen: dict[tuple[str | None, Path], list[bytes]] = {}
    for split, texts in given.items():
        for text in texts:
            found = _located(text, settings)
            if any(is_image(os.fsencode(path.name)) and not is_folder(path) for path in found):
                (root,) = _located(folder_of(text), settings)
                names = [str(path).removeprefix(str(root)).lstrip("/") for path in found]
                chosen.setdefault((split, root), []).extend(map(os.fsencode, names))
                found = [] if root in paths.get(split, []) else [root]
            paths.setdefault(split, []).extend(found)
    return paths, {key: list(dict.fromkeys(names)) for key, names in chosen.items()}


def _open_encoded(
    kind: str,
    settings: ImageSettings,
    conversion: Conversion,
    listing: Path | None,
    scratch: Path | None,
) -> EncodedSource:
    paths, split, columns = paths_by_split(settings), settings.split, dict(settings.columns)
    doubts = settings.kind is None  # else the job says what the folders are
    if kind == "list":
        root = None if settings.root is None else locate(settings.root, settings.storage_options)
        reader: Any = ListReader(paths, columns, split, root, settings.encoding)
    elif kind == "pixels":
        reader = PixelReader(paths, columns, split, settings.encoding, settings.shape)
    elif kind == "parquet":
        reader = ParquetReader(paths, columns, split)
    elif kind in _ARCHIVES:
        named = {role: name for role, name in columns.items() if name is not None}
        reader = ArchiveReader(paths, split, named, doubts, kind)
    else:
        folders, chosen = _choose_files(settings)
        reader = FolderReader(folders, split, doubts, chosen)
    arguments = (conversion, settings.class_names, settings.max_bytes)
    if listing is not None:
        return reopen_encoded(reader, listing, *arguments)
    folder = _make_scratch(scratch)
    try:
        source = open_encoded(reader, folder, *arguments)
        suffixes = _FOLDERS_OF.get("tar" if kind in _ARCHIVES else kind)
        read = reader.inputs() if kind == "parquet" else paths
        stray = left_beside(read, suffixes) if suffixes else ""
    except BaseException:
        remove_scratch(folder)
        raise
    return replace(source, remarks=(*source.remarks, *([f"left out: {stray}"] if stray else [])))


def _make_scratch(base: Path | None) -> Path:
    """Make a local folder for a listing: in `base`, else the data folder, else the system's."""
    known = [base] if base is not None and not is_remote(base) else []
    for folder in (*known, load_environment().data / WORK):
        with suppress(OSError):  # it may be read-only
            return make_scratch(folder.absolute())
    return make_scratch()


def _open_arrays(kind: str, settings: ImageSettings) -> Source:
    if kind == "catalog":
        return open_dataset(catalog_name(settings) or "")
    paths, names = paths_by_split(settings), (settings.class_names, settings.split)
    if kind == "numpy":
        return open_numpy(paths, *names, settings.variables, settings.shape)
    reader = importlib.import_module("pipeline.sources.xarray_source")
    return cast(Source, reader.open_labelled(paths, settings.variables, settings.dims, *names))


def _open_torchvision(settings: ImageSettings, conversion: Conversion) -> Source:
    reader = importlib.import_module("pipeline.sources.torchvision")
    name, environment = str(settings.source).removeprefix(TORCHVISION), load_environment()
    downloads, sets = environment.data / "downloads" / name.lower(), environment.datasets
    roots = [*([sets / name, sets / name.lower(), sets] if sets else []), downloads]
    roots = [root.absolute() for root in roots]
    opened = reader.open_torchvision(name, roots, settings.options, conversion=conversion)
    return cast(Source, opened)
