"""The catalog of named data sets, and where their files are.

A set's files are looked for in three folders: that named by `PIXSIM_DATASETS` (one folder a set),
that where the system's package puts them, and that of earlier downloads; else they are downloaded
through torchvision.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.job_settings import load_environment
from pipeline.config.yaml_files import load_yaml
from pipeline.core.blocks import Source
from pipeline.core.errors import ConfigError, DatasetNotFoundError, ShapeError, SourceError, nearest
from pipeline.sources.array_files import open_idx
from pipeline.sources.array_source import ArrayPart, ArraySource
from pipeline.sources.arrays import from_arrays
from pipeline.sources.labels import Labelling

_PACKAGE = Path(__file__).resolve().parents[1]
_CATALOGS = (_PACKAGE.parent / "data" / "catalog.yml", _PACKAGE / "catalog.yml")


@dataclass(frozen=True)
class CatalogEntry:
    """One named data set; `kind`, `idx`, `cifar10` or `digits`, says how it is read.

    `splits` are by name its file names by role (`images`, `labels`), without `.gz`, and `count`;
    `checksums` by file name `sha256:HEX` of the unpacked content, or `packed-md5:HEX` of the
    archive; `torchvision` is the class that downloads it; `system` the folder where the system's
    package puts the files, and the package's name.
    """

    name: str
    title: str
    kind: str
    licence: str
    source: str
    class_names: tuple[str, ...]
    image: tuple[int, ...]
    splits: Mapping[str, Mapping[str, Any]]
    checksums: Mapping[str, str] = field(default_factory=dict)
    torchvision: str | None = None
    system: Mapping[str, str] | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "licence": self.licence,
            "checksums": dict(self.checksums),
        }


def load_catalog(path: Path | None = None) -> dict[str, CatalogEntry]:
    """Read the catalog: `path`, else `PIXSIM_CATALOG`, else the project's own."""
    chosen = path or load_environment().catalog
    if chosen is None:
        chosen = next((path for path in _CATALOGS if path.is_file()), _CATALOGS[0])
    try:
        known = chosen.stat()
    except OSError:
        return dict(_load(chosen, 0, 0))  # which says what is wrong
    return dict(_load(chosen, known.st_mtime_ns, known.st_size))


@lru_cache(maxsize=4)
def _load(chosen: Path, _changed: int, _size: int) -> dict[str, CatalogEntry]:
    content = load_yaml(chosen)
    if not isinstance(content, dict):
        raise ConfigError(f"{chosen}: expected a mapping of data-set names")
    entries = {}
    for name, values in content.items():
        try:
            fixed = {
                **values,
                "class_names": tuple(str(item) for item in values["class_names"]),
                "image": tuple(values["image"]),
            }
            entries[str(name)] = CatalogEntry(name=str(name), **fixed)
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{chosen}: entry '{name}' is not complete: {error}") from None
    return entries


def find_entry(name: str) -> CatalogEntry:
    """Return the catalog's entry of that name, or raise `ConfigError` with the nearest."""
    catalog = load_catalog()
    if name not in catalog:
        raise ConfigError(f"'{name}' is no data set of the catalog; {nearest(name, catalog)}")
    return catalog[name]


def _beside(folder: Path, entry: CatalogEntry) -> tuple[Path, Path]:
    """Return a folder, and where torchvision's own classes put files below it."""
    return folder, folder / str(entry.torchvision) / "raw"


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file of that name, gzipped or unpacked, where it exists."""
    return next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)


def find_folder(entry: CatalogEntry) -> Path | None:
    """Return the first folder that holds all files of an entry, or None."""
    environment = load_environment()
    folders = [] if environment.datasets is None else [environment.datasets / entry.name]
    folders += [] if entry.system is None else [Path(entry.system["folder"])]
    folders.append(environment.data / "downloads" / entry.name)
    # workers may run elsewhere
    paths = [path for folder in folders for path in _beside(folder.absolute(), entry)]
    return next((folder for folder in paths if _has_files(folder, entry)), None)


def holds_entry(folder: Path, entry: CatalogEntry) -> bool:
    """Tell whether a folder holds the files of an entry, as downloads put them there."""
    return any(_has_files(path, entry) for path in _beside(folder, entry))


def _has_files(folder: Path, entry: CatalogEntry) -> bool:
    if entry.kind == "idx":
        return all(find_file(folder, name) for name in _files(entry))
    return entry.kind == "cifar10" and (folder / "cifar-10-batches-py").is_dir()


def list_datasets() -> list[tuple[CatalogEntry, str]]:
    """Return every entry of the catalog, and in words where its files are."""
    listed = []
    for entry in load_catalog().values():
        folder = find_folder(entry)
        where = "embedded" if entry.kind == "digits" else str(folder or "to be downloaded")
        listed.append((entry, where))
    return listed


def _files(entry: CatalogEntry) -> list[str]:
    return [split[role] for split in entry.splits.values() for role in ("images", "labels")]


def open_dataset(name: str, download: bool = True) -> Source:
    """Open a data set of the catalog; where it is not at hand, `download` it.

    Raises
    ------
    DatasetNotFoundError
        Where the files are nowhere; names the three ways to get them.
    ChecksumError
        Where a file is not what the catalog says.
    """
    entry = find_entry(name)
    if entry.kind == "digits":
        return _open_digits(entry)
    folder = find_folder(entry)
    if folder is None and not download:
        raise DatasetNotFoundError(_how_to_get(entry, "its files are not at hand"))
    folder = folder or _download(entry)
    if entry.kind == "cifar10":
        reader = importlib.import_module("pipeline.sources.torchvision")
        source: Source = reader.read_cifar10(folder, entry.class_names, entry.provenance)
        return source
    return _open_idx(entry, folder)


def _open_idx(entry: CatalogEntry, folder: Path) -> ArraySource:
    paths = {name: find_file(folder, name) or folder / name for name in _files(entry)}
    checksums = {path: entry.checksums[n] for n, path in paths.items() if n in entry.checksums}
    files = {
        split: (paths[values["images"]], paths[values["labels"]])
        for split, values in entry.splits.items()
    }
    return idx_source(files, entry.class_names, entry.provenance, checksums)


def idx_source(
    files: Mapping[str, tuple[Path, Path]],
    class_names: tuple[str, ...],
    provenance: Mapping[str, Any],
    checksums: Mapping[Path, str] | None = None,
) -> ArraySource:
    """Return a source of pairs of IDX files, images and labels, which are checked first."""
    parts = {}
    for split, paths in files.items():
        images, labels = (open_idx(path, (checksums or {}).get(path, "")) for path in paths)
        if len(images.shape) not in (3, 4) or labels.shape != images.shape[:1]:
            raise ShapeError(
                f"{images.path} has shape {images.shape} and {labels.title} {labels.shape}; "
                "expected (images, y, x) and one label for each image"
            )
        parts[split] = [ArrayPart(images, labels)]
    return ArraySource(parts, Labelling(class_names), 255, provenance)


def _download(entry: CatalogEntry) -> Path:
    # torchvision takes seconds to import; only a download needs it
    reader = importlib.import_module("pipeline.sources.torchvision")
    root = load_environment().data / "downloads" / entry.name
    try:
        folder: Path = reader.download(str(entry.torchvision), root)
    except SourceError as error:
        raise DatasetNotFoundError(_how_to_get(entry, str(error))) from None
    return folder


def _how_to_get(entry: CatalogEntry, why: str) -> str:
    files = "cifar-10-batches-py"
    if entry.kind != "cifar10":
        first, *others = _files(entry)
        files = f"{first}.gz and the {len(others)} files beside it"
    package = ""
    if entry.system is not None:
        package = f", or install the system's package {entry.system['package']}"
    return (
        f"'{entry.name}' was not found ({why}); put {files} into the folder "
        f"$PIXSIM_DATASETS/{entry.name}{package}, or run again with a network connection to "
        "download it"
    )


def _read_digits() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Read the file of scikit-learn's that its `load_digits` reads; to import it takes a second."""
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or ()) if package is not None else ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            values = np.loadtxt(path, delimiter=",")
            return values[:, :-1], values[:, -1].astype(np.int64)
    # where another version of it keeps it elsewhere, it knows where
    images, labels = importlib.import_module("sklearn.datasets").load_digits(return_X_y=True)
    return images, labels


def _open_digits(entry: CatalogEntry) -> Source:
    images, labels = _read_digits()
    pixels = images.reshape(-1, *entry.image).astype(np.uint8)
    arrays, start = {}, 0
    for split, values in entry.splits.items():
        part = slice(start, start + int(values["count"]))
        arrays[split] = pixels[part], labels[part]
        start = part.stop
    return from_arrays(arrays, entry.class_names, full_scale=16, provenance=entry.provenance)
