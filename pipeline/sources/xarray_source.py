"""Images that are labelled arrays already: Zarr stores, NetCDF files, `xarray.Dataset` objects.

Names are mapped to those that pixsim uses, and ranges are read lazily.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline.core.errors import LabelError, SourceError
from pipeline.core.schema import UNLABELLED
from pipeline.core.urls import shown
from pipeline.sources.array_parts import (
    PartedSource,
    check_parts,
    label_blocks,
    remarks_on,
    survey_parts,
    without,
)
from pipeline.sources.arrays import scale_of
from pipeline.sources.cf_conventions import FILLS, PACKED
from pipeline.sources.labels import Labelling
from pipeline.sources.xarray_groups import ROOT, Group, find_group, groups_in, reading
from pipeline.sources.xarray_parts import LabelledPart, Names, find_image, left_out, make_part


def open_labelled(
    places: Mapping[str | None, Sequence[Path]],
    variables: Names | None = None,
    dims: Names | None = None,
    class_names: Sequence[str] | None = None,
    split: str = "train",
) -> PartedSource:
    """Open Zarr stores and NetCDF files.

    A chunk that a Zarr store lacks is read as its fill value, as Zarr defines it.

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
    parts: dict[str, list[LabelledPart]] = {}
    for name, paths in places.items():
        for path in paths:
            for found, group in _splits_in(path, name, split, variables or {}).items():
                part = make_part(group, group.title, variables or {}, dims or {})
                parts.setdefault(found, []).append(part)
    return _make_source(parts, class_names)


def from_datasets(
    datasets: Mapping[str, xr.Dataset],
    variables: Names | None = None,
    dims: Names | None = None,
    class_names: Sequence[str] | None = None,
) -> PartedSource:
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
        name: [make_part(dataset, name, variables or {}, dims or {})]
        for name, dataset in datasets.items()
    }
    return _make_source(parts, class_names)


def _splits_in(path: Path, name: str | None, default: str, variables: Names) -> dict[str, Group]:
    """Return the group of each split of a store or file: all, or the one of that name."""
    with reading(shown(path)):
        groups = groups_in(path)
        fitting = [group for group in groups if find_image(groups[group], variables) is not None]
        for dataset in groups.values():
            dataset.close()
    named = {group.strip("/").replace("/", "_"): group for group in fitting if group != ROOT}
    if not named:
        return {name or default: find_group(path)}
    if name is None:
        return {split: find_group(path, group) for split, group in named.items()}
    if name in named:
        return {name: find_group(path, named[name])}
    if len(named) > 1 and ROOT not in fitting:
        raise SourceError(
            f"{shown(path)}: has the groups {', '.join(named)}, expected '{name}' or one only"
        )
    return {name: find_group(path, ROOT if ROOT in fitting else next(iter(named.values())))}


def _make_source(
    parts: Mapping[str, Sequence[LabelledPart]], class_names: Sequence[str] | None
) -> PartedSource:
    everything = [part for several in parts.values() for part in several]
    if not everything:
        raise SourceError("no data set was given, expected one at least")
    check_parts(parts)
    encodings = [part.encoding for part in everything]
    different = [e for e in encodings if e != encodings[0]]
    if different:
        raise SourceError(
            f"{everything[0].title}: is packed with {encodings[0] or 'nothing'}, "
            f"{everything[encodings.index(different[0])].title} with "
            f"{different[0] or 'nothing'}; pack all splits alike, or decode them with xarray"
        )
    labelling, fills = _find_labelling(parts, class_names)
    scales = [part.dataset.attrs.get("full_scale") for part in everything]
    given = [int(scale) for scale in scales if isinstance(scale, int | np.integer)]
    scale = max(given or [scale_of(part.dtype) for part in everything])
    provenance = {
        "kind": "xarray",
        "splits": {name: [part.describe() for part in several] for name, several in parts.items()},
    }
    remarks = [
        f"{p.title}: left out {', '.join(rest)}" for p in everything if (rest := left_out(p))
    ]
    remarks += remarks_on(parts, labelling)
    return PartedSource(parts, labelling, scale, provenance, encodings[0], fills, tuple(remarks))


# classes -----------------------------------------------------------------------------------------


def _find_labelling(
    parts: Mapping[str, Sequence[LabelledPart]], class_names: Sequence[str] | None
) -> tuple[Labelling, frozenset[Any]]:
    """Return how labels become codes, and which stored labels stand for none."""
    everything = [part for several in parts.values() for part in several]
    flags = _flags(everything)
    names = class_names
    if names is None:
        names = _attribute_names(everything) if flags is None else list(flags)
    fills = _label_fills(everything, flags)
    if flags is None:
        return survey_parts(parts, names, fills).labelling(), fills
    return _flag_labelling(flags, names or [], everything, fills), fills


def _attribute_names(parts: Sequence[LabelledPart]) -> list[str] | None:
    """Return the names in the first attribute `class_names`, if there is one."""
    for part in parts:
        found = part.dataset.attrs.get("class_names")
        if found is not None:
            return [str(name) for name in np.ravel(found).tolist()]
    return None


def _flags(parts: Sequence[LabelledPart]) -> dict[str, int] | None:
    """Return the stored value of each class where labels have CF `flag_meanings`."""
    for part in parts:
        attributes = {} if part.labels is None else part.labels.attrs
        if "flag_masks" in attributes:
            raise LabelError(
                f"{part.title}: {part.label} has flag_masks, bits that several of may be set; "
                "expected one class for each image: write the code of one class instead"
            )
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
    parts: Sequence[LabelledPart],
    fills: frozenset[Any],
) -> Labelling:
    if len(names) != len(flags):
        raise LabelError(f"{len(names)} class names for {len(flags)} flag values, expected as many")
    codes = {value: code for code, value in enumerate(flags.values())}
    labelling = Labelling(tuple(names), {UNLABELLED: UNLABELLED, **codes})
    for part in parts:
        for start, block in label_blocks([part]):
            labelling.apply(without(block, fills), part.label_title, start)
    return labelling


def _label_fills(parts: Sequence[LabelledPart], flags: Mapping[str, int] | None) -> frozenset[Any]:
    """Return the fill values of labels, but for those that are flags.

    0, which Zarr fills with where nothing else is said, is a class like any other.
    """
    found: set[Any] = set()
    for part in parts:
        variable = part.labels
        if variable is None or PACKED & set(variable.attrs):
            continue
        known = () if flags is None else flags.values()
        fills = [v for key in FILLS for v in np.ravel(variable.attrs.get(key, ())).tolist()]
        found |= {fill for fill in fills if fill != 0 and fill == fill and fill not in known}
    return frozenset(found)
