"""Images that are labelled arrays already: Zarr stores and NetCDF files.

The names of variables and dimensions are mapped to those that pixsim uses, and ranges are read
lazily, in the order (sample, y, x[, channel]). See `xarray_files` for what values mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.classes import class_flags
from pipeline.core.errors import LabelError, ShapeError, SourceError, nearest
from pipeline.core.paths import shown
from pipeline.core.schema import CHANNEL, IMAGE, LABEL, PIXEL_DIMS, SAMPLE, UNLABELLED
from pipeline.sources.array_names import IMAGE_WORDS, LABEL_WORDS, pick_splits
from pipeline.sources.array_source import (
    ArrayPart,
    ArraySource,
    Parts,
    all_parts,
    check_parts,
    remarks_on,
    scale_of,
    survey_parts,
)
from pipeline.sources.labels import Labelling, check_form
from pipeline.sources.notes import Notes
from pipeline.sources.xarray_files import (
    FILLS,
    PACKED,
    ROOT,
    Meaning,
    StoredGroup,
    find_group,
    groups_in,
    meaning_of,
    reading,
)

_TEXT = np.dtype("<U64")  # for texts of any length: about what one takes
# what dimensions are usually called, beside their own names
_USUAL_DIMS = {
    SAMPLE: (
        "samples", "time", "n", "batch", "index", "id", "image", "images", "obs", "record",
        "frame", "example",
    ),
    PIXEL_DIMS[0]: ("lat", "latitude", "height", "row", "rows", "h", "northing"),
    PIXEL_DIMS[1]: ("lon", "longitude", "width", "col", "cols", "column", "w", "easting"),
    CHANNEL: ("channels", "band", "bands", "c"),
}  # fmt: skip

Names = Mapping[str, str]


@dataclass(frozen=True)
class StoredVariable:
    """A variable of images, or of labels, that lies in a group.

    `dims` are the names of sample, y, x and, where there are channels, channel; `shape` is in this
    order; `meaning` says what stored values mean.
    """

    group: StoredGroup
    variable: str
    title: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    meaning: Meaning
    is_label: bool = False

    @property
    def name(self) -> str:
        return f"variable '{self.variable}'"

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.meaning.dtype

    @property
    def stored(self) -> xr.Variable:
        return self.group.dataset().variables[self.variable]

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read samples `start` to `stop`, decoded; filled floats become NaN."""
        with reading(self.group.title):
            part = self.stored.isel({self.dims[0]: slice(start, stop)})
            ordered = part.transpose(*(dim for dim in self.dims if dim in part.dims), ...)
            # one task reads one block: threads within it would be too many
            values = np.ascontiguousarray(ordered.compute(scheduler="synchronous").values)
            if not self.is_label:  # labels are read before the images that they belong to
                self.group.require_unchanged()
        return self.meaning.apply(values)

    def close(self) -> None:
        self.group.close()


def open_labelled(
    paths: Mapping[str | None, Sequence[Path]],
    variables: Names | None = None,
    dims: Names | None = None,
    class_names: Sequence[str] | None = None,
    split: str = "train",
) -> ArraySource:
    """Open Zarr stores and NetCDF files.

    A chunk that a Zarr store lacks is read as its fill value, as Zarr defines it.

    `paths` are for each split its stores or files, in order; for None those whose groups are the
    splits, or that without groups are `split`. `variables` say what `image` and `label` are called
    (default: the only variable with 3 or 4 dimensions is the image), `dims` what `sample`, `y`, `x`
    and `channel` are. `class_names` are by default the attribute `class_names`, else the labels'
    `flag_meanings`, else their distinct texts, sorted, else the codes themselves.
    """
    groups: dict[str, list[StoredGroup]] = {}
    for name, several in paths.items():
        for path in several:
            for part, group in _splits_in(path, name, split, variables or {}).items():
                groups.setdefault(part, []).append(group)
    return make_source(groups, variables or {}, dims or {}, class_names)


def _splits_in(
    path: Path, name: str | None, default: str, variables: Names
) -> dict[str, StoredGroup]:
    """Return the group of each split of a store or file: all, or the one of that name."""
    with reading(shown(path)):
        groups = groups_in(path)
        fitting = [group for group in groups if _find_image(groups[group], variables) is not None]
        for dataset in groups.values():
            dataset.close()
    named = {group.strip("/").replace("/", "_"): group for group in fitting if group != ROOT}
    if not named or (name is not None and name not in named and ROOT in fitting):
        return {name or default: find_group(path)}
    picked = pick_splits(f"{shown(path)}: has the groups", named, name)
    return {split: find_group(path, group) for split, group in picked.items()}


def make_source(
    groups: Mapping[str, Sequence[StoredGroup]],
    variables: Names,
    dims: Names,
    class_names: Sequence[str] | None,
) -> ArraySource:
    """Make a source of the groups of each split; other parameters as of `open_labelled`."""
    notes = Notes()
    parts = {
        name: [_make_part(group, variables, dims, notes) for group in several]
        for name, several in groups.items()
    }
    if not parts:
        raise SourceError("no data set was given, expected one at least")
    check_parts(parts)
    images = [_variables(part)[0] for part in all_parts(parts)]
    first = images[0]
    for image in images:
        packed, other = first.meaning.encoding, image.meaning.encoding
        if packed != other:
            raise SourceError(
                f"{first.title}: is packed with {packed or 'nothing'}, {image.title} with "
                f"{other or 'nothing'}; pack all splits alike, or decode them with xarray"
            )
    labelling, fills = _find_labelling(parts, class_names)
    scales = [image.group.dataset().attrs.get("full_scale") for image in images]
    given = [int(scale) for scale in scales if isinstance(scale, int | np.integer)]
    splits = {name: [_provenance(part) for part in several] for name, several in parts.items()}
    return ArraySource(
        parts,
        labelling,
        max(given or [scale_of(image.dtype) for image in images]),
        {"kind": "xarray", "splits": splits},
        first.meaning.encoding,
        fills,
        remarks_on(parts, labelling, notes),
    )


def _variables(part: ArrayPart) -> tuple[StoredVariable, StoredVariable | None]:
    return cast(StoredVariable, part.images), cast(StoredVariable | None, part.labels)


def _provenance(part: ArrayPart) -> dict[str, Any]:
    images, labels = _variables(part)
    return {
        **images.group.describe(),
        "image": images.variable,
        "label": None if labels is None else labels.variable,
        "dims": list(images.dims),
    }


# names -------------------------------------------------------------------------------------------


def _make_part(group: StoredGroup, variables: Names, dims: Names, notes: Notes) -> ArrayPart:
    """Find out what things are called in a group."""
    dataset, title = group.dataset(), group.title
    image = _find_image(dataset, variables)
    if image is None:
        holds = ", ".join(sorted(_spelled(dataset, dataset.variables))) or "no variable"
        raise SourceError(
            f"{title}: has no variable '{variables.get('image', IMAGE.name)}', expected one with 3 "
            f"or 4 dimensions; it holds {holds}; name it: variables: {{image: NAME}}"
        )
    pixels = dataset.variables[image]
    names = _find_dims(title, pixels, dims)
    label = _find_label(title, dataset, names[0], variables)
    # in Zarr's second format all arrays have a fill value
    is_zarr_2 = "filters" in pixels.encoding and "serializer" not in pixels.encoding
    meaning = meaning_of(title, image, pixels, is_zarr_2)
    shape = tuple(pixels.sizes[dim] for dim in names)
    used = {image, label, *names}
    unused = [n for n, v in dataset.variables.items() if n not in used and names[0] in v.dims]
    if unused:
        notes.remarks.append(f"{title}: left out {', '.join(_spelled(dataset, unused))}")
    images, labels = StoredVariable(group, image, title, names, shape, meaning), None
    if label is not None:
        stored, where = dataset.variables[label], f"{title}: {label}"
        packed = stored.attrs if PACKED & set(stored.attrs) else {}
        as_label = Meaning(_label_type(stored), decoding=packed)
        labels = StoredVariable(group, label, where, names, stored.shape, as_label, is_label=True)
    return ArrayPart(images, labels, gaps=meaning.gaps)


def _spelled(dataset: xr.Dataset, names: Iterable[Hashable]) -> list[str]:
    """Return variables with their dimensions and types, for messages."""
    variables = {name: dataset.variables[name] for name in names}
    return [f"{n} ({', '.join(map(str, v.dims))}) {v.dtype}" for n, v in variables.items()]


def _label_type(variable: xr.Variable) -> np.dtype[Any]:
    return _TEXT if variable.dtype.kind in "OT" else variable.dtype


def _find_image(dataset: xr.Dataset, variables: Names) -> str | None:
    """Return the variable of the images, None where it is not there and cannot be guessed."""
    wanted = variables.get("image", IMAGE.name)
    if wanted in dataset.variables:
        return wanted
    if "image" in variables:
        return None
    fitting = [str(name) for name, v in dataset.variables.items() if v.ndim in (3, 4)]
    usual = [name for name in fitting if name.lower() in IMAGE_WORDS]
    chosen = usual if len(usual) == 1 else fitting
    return chosen[0] if len(chosen) == 1 else None


def _find_dims(title: str, variable: xr.Variable, dims: Names) -> tuple[str, ...]:
    """Return what the dimensions are called: as given, as usual, or the one that is left over."""
    roles = (SAMPLE, *PIXEL_DIMS, CHANNEL)[: variable.ndim]
    names = {role: dims.get(role, role) for role in roles}
    for role in roles:
        if names[role] in variable.dims or role in dims:
            continue
        left = [str(dim) for dim in variable.dims if dim not in names.values()]
        usual = [dim for dim in left if dim.lower() in _USUAL_DIMS[role]]
        names[role] = usual[0] if len(usual) == 1 else role
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
    along = [
        str(n) for n, v in dataset.variables.items() if v.dims[:1] == (sample,) and n != sample
    ]
    usual = [name for name in along if name.lower() in LABEL_WORDS]
    if wanted not in dataset.variables and "label" not in variables and len(usual) == 1:
        wanted = usual[0]
    if wanted in dataset.variables:
        labels = dataset.variables[wanted]
        if labels.dims[:1] != (sample,):
            raise ShapeError(
                f"{title}: {wanted} has the dimensions {labels.dims}, expected one label for each "
                f"image, ({sample},)"
            )
        shape = labels.shape
        check_form(f"{title}: {wanted}", dataset.sizes[sample], shape, _label_type(labels))
        return wanted
    flat = {n: v for n, v in dataset.data_vars.items() if n in along and v.ndim == 1}
    fitting = [str(n) for n, v in flat.items() if v.dtype.kind in "biuUSOT" or n in usual]
    if fitting or "label" in variables:
        raise SourceError(
            f"{title}: has no variable '{wanted}' for labels; {nearest(wanted, fitting)}; name it: "
            "variables: {label: NAME}"
        )
    return None


# classes -----------------------------------------------------------------------------------------


def _find_labelling(
    parts: Parts, class_names: Sequence[str] | None
) -> tuple[Labelling, frozenset[Any]]:
    """Return how labels become codes, and which stored labels stand for none."""
    everything = all_parts(parts)
    labels = [labels for _, labels in map(_variables, everything) if labels is not None]
    flags = _flags(labels)
    fills = _label_fills(labels, flags)
    if flags is None:
        attributes = (images.group.dataset().attrs for images, _ in map(_variables, everything))
        named = (a["class_names"] for a in attributes if a.get("class_names") is not None)
        if class_names is None and (first := next(named, None)) is not None:
            class_names = [str(name) for name in np.ravel(first).tolist()]
        return survey_parts(parts, class_names, fills), fills
    names = tuple(flags if class_names is None else class_names)
    if len(names) != len(flags):
        raise LabelError(f"{len(names)} class names for {len(flags)} flag values, expected as many")
    codes = {value: code for code, value in enumerate(flags.values())}
    labelling = Labelling(names, {UNLABELLED: UNLABELLED, **codes})
    for part in everything:
        for block in part.label_blocks(fills):
            labelling.apply(*block)
    return labelling, fills


def _flags(labels: Sequence[StoredVariable]) -> dict[str, int] | None:
    """Return the stored value of each class where labels have CF `flag_meanings`.

    Those that pixsim writes beside `class_names` say no more than these, and are not returned.
    """
    for variable in labels:
        attributes = variable.stored.attrs
        if "flag_masks" in attributes:
            raise LabelError(
                f"{variable.title} has flag_masks, bits that several of may be set; "
                "expected one class for each image: write the code of one class instead"
            )
        if "flag_meanings" in attributes:
            meanings = str(attributes["flag_meanings"]).split()
            values = np.ravel(attributes.get("flag_values", range(len(meanings)))).tolist()
            if len(values) != len(meanings) or len(set(meanings)) != len(meanings):
                raise LabelError(
                    f"{variable.title} has {len(meanings)} flag_meanings and {len(values)} "
                    "flag_values, expected one value for each, named apart"
                )
            if not _are_own(meanings, values, variable.group.dataset().attrs.get("class_names")):
                return {name: int(value) for name, value in zip(meanings, values, strict=True)}
    return None


def _are_own(meanings: list[str], values: list[Any], class_names: Any) -> bool:
    """Tell whether flags are those of the attribute `class_names`."""
    if class_names is None:
        return False
    own = class_flags(dict(enumerate(map(str, np.ravel(class_names).tolist()))))
    return (meanings, values) == (own["flag_meanings"].split(" "), own["flag_values"].tolist())


def _label_fills(
    labels: Sequence[StoredVariable], flags: Mapping[str, int] | None
) -> frozenset[Any]:
    """Return the fill values of labels, but for those that are flags.

    0, which Zarr fills with by default, is a class like any other.
    """
    fills: set[Any] = set()
    known = () if flags is None else flags.values()
    for variable in labels:
        if not variable.meaning.decoding:
            attributes = variable.stored.attrs
            values = [v for key in FILLS for v in np.ravel(attributes.get(key, ())).tolist()]
            fills |= {v for v in values if v != 0 and v == v and v not in known}
    return frozenset(fills)
