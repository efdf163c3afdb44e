"""Images that are labelled arrays already: Zarr stores, NetCDF files, `xarray.Dataset` objects.

Names are mapped to those that pixsim uses, ranges are read lazily and brought to the order
(sample, y, x[, channel]). Packed integers stay as they are stored; their `scale_factor` and
`add_offset` are carried on.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.errors import InputError, LabelError, ShapeError, SourceError
from pipeline.places import is_remote, shown
from pipeline.schema import CHANNEL, IMAGE, LABEL, PIXEL_DIMS, SAMPLE, UNLABELLED
from pipeline.settings import nearest
from pipeline.sources import Block, SplitInfo
from pipeline.sources.arrays import (
    Labelling,
    as_pixels,
    block_length,
    in_parts,
    joined,
    pixel_type,
    refuse_pixels,
    remote_version,
    scale_of,
    survey_labels,
    version_of,
)

_ROOT = "/"
_FILL = ("_FillValue", "missing_value")
_ENCODING = ("scale_factor", "add_offset")
_DECODING = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False}
_READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, TypeError, IndexError, ImportError)

Places = Mapping[str | None, Sequence[Path]]
Names = Mapping[str, str]


@contextmanager
def _reading(title: str) -> Iterator[None]:
    """Turn every failure to read into a `SourceError` that names the place."""
    try:
        yield
    except InputError:
        raise
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{title}: cannot be read by xarray: {reason}; expected a Zarr store or a NetCDF file "
            "(NetCDF 4 needs the packages h5netcdf and h5py)"
        ) from None


@dataclass(frozen=True)
class _Place:
    """A group of a store or file."""

    path: Path
    group: str = _ROOT

    @property
    def title(self) -> str:
        return self.path.name if self.group == _ROOT else f"{self.path.name}{self.group}"

    @property
    def is_zarr(self) -> bool:
        return self.path.suffix == ".zarr" or self.path.is_dir()

    def open_with(self, opener: Callable[..., Any], **options: Any) -> Any:
        """Open the file with one of xarray's functions, values undecoded and not kept."""
        options |= {**_DECODING, "cache": False}
        if not self.is_zarr:
            return opener(self.path.open("rb") if is_remote(self.path) else self.path, **options)
        if not is_remote(self.path):
            # the folder itself says what is there, sooner than a gathered list that may be absent
            return opener(self.path, engine="zarr", consolidated=False, **options)
        remote: Any = self.path
        storage = dict(remote.storage_options)
        return opener(str(remote), engine="zarr", storage_options=storage, **options)


_opened: dict[tuple[int, _Place], xr.Dataset] = {}
_opened_lock = threading.Lock()


def _dataset(place: _Place | xr.Dataset) -> xr.Dataset:
    """Return the data set of a place, opened once in each process."""
    if isinstance(place, xr.Dataset):
        return place
    key = (os.getpid(), place)
    with _opened_lock:
        if key not in _opened:
            with _reading(place.title):
                group = {} if place.group == _ROOT else {"group": place.group}
                _opened[key] = place.open_with(xr.open_dataset, **group)
        return _opened[key]


def _close(places: Sequence[_Place]) -> None:
    with _opened_lock:
        keys = [key for key in _opened if key[0] != os.getpid() or key[1] in places]
        closed = [(key, _opened.pop(key)) for key in keys]
    for key, dataset in closed:
        if key[0] == os.getpid():
            dataset.close()


@dataclass(frozen=True)
class _Part:
    """One data set that holds samples of a split, and what things are called in it.

    `dims` are the names of sample, y, x and, where there are channels, channel.
    """

    place: _Place | xr.Dataset
    title: str
    image: str
    label: str | None
    dims: tuple[str, ...]

    @property
    def pixels(self) -> xr.Variable:
        return _dataset(self.place).variables[self.image]

    @property
    def labels(self) -> xr.Variable | None:
        return None if self.label is None else _dataset(self.place).variables[self.label]

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = self.pixels.sizes
        return tuple(sizes[dim] for dim in self.dims)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored values; NetCDF 3 has unsigned integers only by an attribute."""
        pixels = self.pixels
        unsigned = {**pixels.encoding, **pixels.attrs}.get("_Unsigned") == "true"
        return np.dtype(f"u{pixels.dtype.itemsize}") if unsigned else pixels.dtype

    @property
    def encoding(self) -> dict[str, float]:
        """What stored integers mean, by the CF conventions."""
        attributes = self.pixels.attrs
        if not any(name in attributes for name in _ENCODING):
            return {}
        if self.dtype.kind == "f":
            raise SourceError(
                f"{self.title}: {self.image} holds floats with a scale_factor, expected packed "
                "integers or plain floats; decode it with xarray and store it again"
            )
        scale, offset = (attributes.get(name, d) for name, d in zip(_ENCODING, (1, 0), strict=True))
        return {"scale_factor": float(scale), "add_offset": float(offset)}

    def read_pixels(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read images [sample, y, x] or [sample, y, x, channel]; filled floats become NaN."""
        variable = self.pixels
        values = np.ascontiguousarray(self._computed(variable, start, stop))
        if self.dtype != values.dtype and self.dtype.kind == "u" and values.dtype.kind == "i":
            values = values.view(self.dtype.newbyteorder(values.dtype.byteorder))
        for fill in _fills(variable) if values.dtype.kind == "f" else ():
            values = np.where(values == fill, np.nan, values).astype(values.dtype)
        return as_pixels(values)

    def read_labels(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read labels [sample]: integers, as stored, or texts."""
        if self.labels is None:
            return np.full(stop - start, UNLABELLED, np.int32)
        values = self._computed(self.labels, start, stop)
        if values.dtype.kind in "OT":
            if not all(isinstance(value, str) for value in values.tolist()):
                raise SourceError(
                    f"{self.title}: {self.label} holds objects, expected codes or text"
                )
            values = values.astype(str)
        if values.dtype.kind not in "iuUS":
            raise SourceError(
                f"{self.title}: {self.label} holds {values.dtype}, expected integer codes or text"
            )
        return values

    def _computed(self, variable: xr.Variable, start: int, stop: int) -> npt.NDArray[Any]:
        with _reading(self.title):
            part = variable.isel({self.dims[0]: slice(start, stop)})
            ordered = part.transpose(*(dim for dim in self.dims if dim in part.dims))
            # one task reads one block: threads within it would be too many
            found: npt.NDArray[Any] = ordered.compute(scheduler="synchronous").values
            return found

    def label_blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        for start, stop in self._ranges((self.shape[0],), np.dtype("<U64")):
            yield start, self.read_labels(start, stop)

    def pixel_blocks(self) -> Iterator[npt.NDArray[Any]]:
        for start, stop in self._ranges(self.shape, self.dtype):
            yield self.read_pixels(start, stop)

    def _ranges(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
        step = block_length(shape, dtype)
        return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _fills(variable: xr.Variable) -> list[Any]:
    """Return the values that stand for missing ones."""
    found = {**variable.encoding, **variable.attrs}
    return [value for name in _FILL if name in found for value in np.ravel(found[name]).tolist()]


def _make_part(place: _Place | xr.Dataset, title: str, variables: Names, dims: Names) -> _Part:
    """Find out what things are called in a data set.

    Raises
    ------
    SourceError
        Where a name is not there, or cannot be guessed; says what there is.
    """
    dataset = _dataset(place)
    image = _find_image(dataset, variables)
    if image is None:
        wanted = variables.get("image", IMAGE.name)
        raise SourceError(
            f"{title}: has no variable '{wanted}', expected one with 3 or 4 dimensions; it holds "
            f"{_listed(dataset)}; name it: variables: {{image: NAME}}"
        )
    names = _find_dims(title, dataset.variables[image], dims)
    return _Part(place, title, image, _find_label(title, dataset, names[0], variables), names)


def _listed(dataset: xr.Dataset) -> str:
    found = [
        f"{name} ({', '.join(map(str, variable.dims))}) {variable.dtype}"
        for name, variable in dataset.variables.items()
    ]
    return ", ".join(found) or "no variable"


def _find_image(dataset: xr.Dataset, variables: Names) -> str | None:
    wanted = variables.get("image", IMAGE.name)
    if wanted in dataset.variables:
        return wanted
    fitting = [str(name) for name, v in dataset.variables.items() if v.ndim in (3, 4)]
    return fitting[0] if len(fitting) == 1 and "image" not in variables else None


def _find_dims(title: str, variable: xr.Variable, dims: Names) -> tuple[str, ...]:
    roles = (SAMPLE, *PIXEL_DIMS, CHANNEL)[: variable.ndim]
    names = {role: dims.get(role, role) for role in roles}
    left = [str(dim) for dim in variable.dims if dim not in names.values()]
    missing = [role for role in roles if names[role] not in variable.dims]
    if len(missing) == len(left) == 1 and missing[0] not in dims:
        names[missing[0]] = left[0]
        missing = []
    if variable.ndim not in (3, 4) or missing:
        raise SourceError(
            f"{title}: the images have the dimensions ({', '.join(map(str, variable.dims))}), "
            f"expected {', '.join(names.values())}; name them: dims: {{{roles[0]}: NAME, ...}}"
        )
    return tuple(names.values())


def _find_label(title: str, dataset: xr.Dataset, sample: str, variables: Names) -> str | None:
    wanted = variables.get("label", LABEL.name)
    if wanted in dataset.variables:
        if dataset.variables[wanted].dims != (sample,):
            raise ShapeError(
                f"{title}: {wanted} has the dimensions {dataset.variables[wanted].dims}, expected "
                f"one label for each image, ({sample},)"
            )
        return wanted
    fitting = [
        str(name)
        for name, v in dataset.data_vars.items()
        if v.dims == (sample,) and v.dtype.kind in "iuUSOT"
    ]
    if fitting or "label" in variables:
        raise SourceError(
            f"{title}: has no variable '{wanted}' for labels; {nearest(wanted, fitting)}; name it: "
            "variables: {label: NAME}"
        )
    return None


@dataclass(frozen=True)
class LabelledSource:
    """Splits of labelled arrays.

    Attributes
    ----------
    parts
        For each split the data sets that hold it, in order.
    labelling
        How labels become codes.
    unlabelled
        Stored labels that stand for none.
    full_scale
        The pixel value that counts as 1.
    provenance
        Where they come from.
    encoding
        `scale_factor` and `add_offset` of packed integers, by the CF conventions.
    """

    parts: Mapping[str, Sequence[_Part]]
    labelling: Labelling
    unlabelled: frozenset[int]
    full_scale: int
    provenance: Mapping[str, Any]
    encoding: Mapping[str, float] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelling.class_names

    def splits(self) -> dict[str, SplitInfo]:
        found = {}
        for name, parts in self.parts.items():
            count = sum(part.shape[0] for part in parts)
            found[name] = SplitInfo(count, parts[0].shape[1:], pixel_type(parts[0].dtype) or "")
        return found

    def read(self, split: str, start: int, stop: int) -> Block:
        """Read samples `start` to `stop` of a split.

        A chunk that a Zarr store lacks is read as its fill value, as Zarr defines it.

        Raises
        ------
        SourceError
            Where a file is missing or damaged.
        """
        parts = self.parts[split]
        counts = [part.shape[0] for part in parts]
        return joined(
            [
                self._read_part(parts[number], first, last)
                for number, first, last in in_parts(counts, start, stop)
            ]
        )

    def _read_part(self, part: _Part, start: int, stop: int) -> Block:
        labels = _without(part.read_labels(start, stop), self.unlabelled)
        origins = [f"{part.title}[{index}]" for index in range(start, stop)]
        return Block(part.read_pixels(start, stop), self.labelling.apply(labels), origins)

    def close(self) -> None:
        places = [part.place for parts in self.parts.values() for part in parts]
        _close([place for place in places if isinstance(place, _Place)])


def _without(labels: npt.NDArray[Any], unlabelled: frozenset[int]) -> npt.NDArray[Any]:
    """Return labels with -1 for those that stand for none."""
    if not unlabelled or labels.dtype.kind not in "iu":
        return labels
    return np.where(np.isin(labels, list(unlabelled)), UNLABELLED, labels.astype(np.int64))


def open_labelled(
    places: Places,
    variables: Names | None = None,
    dims: Names | None = None,
    class_names: Sequence[str] | None = None,
    split: str = "train",
) -> LabelledSource:
    """Open Zarr stores and NetCDF files.

    Parameters
    ----------
    places
        For each split its stores or files, in order; for None those whose groups are the splits.
    variables
        What `image` and `label` are called. Where there is no such variable, the only one with 3
        or 4 dimensions is the image.
    dims
        What `sample`, `y`, `x` and `channel` are called.
    class_names
        The name of each label code; default: the attribute `class_names`, else the labels'
        `flag_meanings`, else their distinct texts, sorted, else the codes themselves.
    split
        The split of a place of None without groups.

    Raises
    ------
    SourceError
        Where a place cannot be read, or what is wanted is not in it.
    ShapeError, LabelError
        Where things do not fit together, or a label is outside the classes.
    """
    parts: dict[str, list[_Part]] = {}
    for name, paths in places.items():
        for path in paths:
            _close([place for _, place in list(_opened) if place.path == path])
            for found, place in _splits_in(path, name, split, variables or {}).items():
                part = _make_part(place, place.title, variables or {}, dims or {})
                parts.setdefault(found, []).append(part)
    record = {name: [_record(part) for part in found] for name, found in parts.items()}
    return _make_source(parts, class_names, {"kind": "xarray", "splits": record})


def from_datasets(
    datasets: Mapping[str, xr.Dataset],
    variables: Names | None = None,
    dims: Names | None = None,
    class_names: Sequence[str] | None = None,
) -> LabelledSource:
    """Make a source of data sets, in memory or lazy, one for each split.

    The provenance holds the digest of the values; of dask arrays their names, which dask derives
    from what they are computed from.

    Parameters
    ----------
    datasets
        Split name -> data set.
    variables, dims, class_names
        As for `open_labelled`.
    """
    parts = {
        name: [_make_part(dataset, name, variables or {}, dims or {})]
        for name, dataset in datasets.items()
    }
    record = {name: [_content(found[0])] for name, found in parts.items()}
    return _make_source(parts, class_names, {"kind": "xarray", "splits": record})


def _splits_in(path: Path, name: str | None, default: str, variables: Names) -> dict[str, _Place]:
    """Return the group of each split of a store or file: all, or the one of that name."""
    place = _Place(path)
    with _reading(shown(path)):
        groups = _groups(place)
        fitting = [group for group in groups if _find_image(groups[group], variables) is not None]
        for dataset in groups.values():
            dataset.close()
    named = {group.strip("/").replace("/", "_"): group for group in fitting if group != _ROOT}
    if not named:
        return {name or default: place}
    if name is None:
        return {split: _Place(path, group) for split, group in named.items()}
    if name in named:
        return {name: _Place(path, named[name])}
    if len(named) > 1 and _ROOT not in fitting:
        raise SourceError(
            f"{shown(path)}: has the groups {', '.join(named)}, expected '{name}' or one only"
        )
    return {name: place if _ROOT in fitting else _Place(path, next(iter(named.values())))}


def _groups(place: _Place) -> dict[str, xr.Dataset]:
    try:
        found: dict[str, xr.Dataset] = place.open_with(xr.open_groups)
    except (ValueError, NotImplementedError):  # NetCDF 3 has no groups
        found = {_ROOT: place.open_with(xr.open_dataset)}
    return found


def _make_source(
    parts: Mapping[str, Sequence[_Part]],
    class_names: Sequence[str] | None,
    provenance: Mapping[str, Any],
) -> LabelledSource:
    everything = [part for found in parts.values() for part in found]
    if not everything:
        raise SourceError("no data set was given, expected one at least")
    for found in parts.values():
        _check_parts(found)
    encodings = [part.encoding for part in everything]
    different = [e for e in encodings if e != encodings[0]]
    if different:
        raise SourceError(
            f"{everything[0].title}: is packed with {encodings[0] or 'nothing'}, another split "
            f"with {different[0] or 'nothing'}; pack all splits alike"
        )
    labelling, unlabelled = _find_labelling(everything, class_names)
    scales = [_dataset(part.place).attrs.get("full_scale") for part in everything]
    given = [int(scale) for scale in scales if isinstance(scale, int | np.integer)]
    scale = max(given or [scale_of(part.dtype) for part in everything])
    return LabelledSource(parts, labelling, unlabelled, scale, provenance, encodings[0])


def _check_parts(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts:
        if pixel_type(part.dtype) is None:
            refuse_pixels(f"{part.title}: {part.image}", part.dtype, part.pixel_blocks())
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
            raise ShapeError(
                f"{part.title}: images of shape {part.shape[1:]} and {part.dtype}, expected "
                f"{first.shape[1:]} and {first.dtype} as in {first.title}"
            )


def _find_labelling(
    parts: Sequence[_Part], class_names: Sequence[str] | None
) -> tuple[Labelling, frozenset[int]]:
    """Return how labels become codes, and which stored labels stand for none."""
    flags = _flags(parts)
    names = class_names
    if names is None and flags is None:
        found = [_dataset(part.place).attrs.get("class_names") for part in parts]
        attribute = next((value for value in found if value is not None), None)
        names = None if attribute is None else [str(n) for n in np.ravel(attribute).tolist()]
    if flags is not None:
        names = list(flags) if names is None else names
    unlabelled = _unlabelled(parts, None if names is None else len(names), flags)
    blocks = (
        (start, _without(block, unlabelled))
        for part in parts
        for start, block in part.label_blocks()
    )
    if flags is None:
        return survey_labels(blocks, names), unlabelled
    return _flag_labelling(flags, names or [], blocks), unlabelled


def _flags(parts: Sequence[_Part]) -> dict[str, int] | None:
    """Return the stored value of each class where labels have CF `flag_meanings`."""
    for part in parts:
        attributes = {} if part.labels is None else part.labels.attrs
        if "flag_meanings" in attributes:
            meanings = str(attributes["flag_meanings"]).split()
            values = np.ravel(attributes.get("flag_values", range(len(meanings)))).tolist()
            if len(values) != len(meanings) or len(set(meanings)) != len(meanings):
                raise LabelError(
                    f"{part.title}: {part.label} has {len(meanings)} flag_meanings and "
                    f"{len(values)} flag_values, expected one value for each, named apart"
                )
            return {name: int(value) for name, value in zip(meanings, values, strict=True)}
    return None


def _flag_labelling(
    flags: Mapping[str, int],
    names: Sequence[str],
    blocks: Iterator[tuple[int, npt.NDArray[Any]]],
) -> Labelling:
    if len(names) != len(flags):
        raise LabelError(f"{len(names)} class names for {len(flags)} flag values, expected as many")
    codes = {value: code for code, value in enumerate(flags.values())}
    labelling = Labelling(tuple(names), {UNLABELLED: UNLABELLED, **codes})
    for _, block in blocks:
        labelling.apply(block)
    return labelling


def _unlabelled(
    parts: Sequence[_Part], classes: int | None, flags: Mapping[str, int] | None
) -> frozenset[int]:
    """Return the fill values of labels that cannot be classes.

    0, which Zarr fills with where nothing else is said, is a class like any other.
    """
    found = set()
    for part in parts:
        variable = part.labels
        if variable is None or variable.dtype.kind not in "iu":
            continue
        for fill in _fills(variable):
            outside = fill < 0 or fill == np.iinfo(variable.dtype).max
            if flags is not None:
                outside = fill not in flags.values()
            elif classes is not None:
                outside = fill < 0 or fill >= classes
            if outside:
                found.add(int(fill))
    return frozenset(found)


def _record(part: _Part) -> dict[str, Any]:
    """Return what a part is made of, and sizes and times of its files, for the provenance."""
    place = part.place
    assert isinstance(place, _Place)  # noqa: S101 # those in memory have `_content`
    names = {"image": part.image, "label": part.label, "dims": list(part.dims)}
    record = {"name": place.path.name, "group": place.group, **names}
    if not place.is_zarr:
        return {**record, "bytes": place.path.stat().st_size, **version_of(place.path)}
    return {**record, "files_sha256": _files_digest(place)}


def _files_digest(place: _Place) -> str:
    """Return the SHA-256 of the names, sizes and times of all files of a group."""
    digest = hashlib.sha256()
    folder = place.path / place.group.strip("/") if place.group != _ROOT else place.path
    if is_remote(place.path):
        remote: Any = folder
        files = remote.fs.find(remote.path, detail=True)
        for name in sorted(files):
            short = name.removeprefix(remote.path)
            digest.update(
                f"{short}\0{files[name]['size']}\0{remote_version(files[name])}\n".encode()
            )
        return digest.hexdigest()
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(top) / name
            found = path.stat()
            short = path.relative_to(folder).as_posix()
            digest.update(f"{short}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _content(part: _Part) -> dict[str, Any]:
    """Return what tells a data set in memory from another: digests, or the names of lazy arrays."""
    found: dict[str, Any] = {"image": part.image, "label": part.label, "dims": list(part.dims)}
    for role, variable in (("image", part.pixels), ("label", part.labels)):
        if variable is None:
            continue
        name = getattr(variable.data if variable.chunks is not None else None, "name", None)
        if name is not None:
            found[f"{role}_dask"] = name
            continue
        digest = hashlib.sha256(f"{part.dtype}{part.shape}{role}".encode())
        blocks = (b for _, b in part.label_blocks()) if role == "label" else part.pixel_blocks()
        for block in blocks:
            digest.update(np.ascontiguousarray(block).tobytes())
        found[f"{role}_sha256"] = digest.hexdigest()
    return found
