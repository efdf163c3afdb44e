"""Why one image was predicted as it was: how far it is from prototypes and other images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.classes import ClassSelection, select_classes
from pipeline.core.deferred import deferred
from pipeline.core.errors import InputError
from pipeline.core.exact import Float64Array
from pipeline.core.schema import (
    DENOMINATOR,
    IMAGE,
    LABEL,
    NEIGHBOUR,
    NEIGHBOUR_DISTANCE,
    NUMERATOR,
    PROTOTYPE,
    SAMPLE,
    UNLABELLED,
)
from pipeline.ops.distance_blocks import distances_block, make_reference
from pipeline.ops.leave_one_out import others_of
from pipeline.ops.neighbours import neighbours as search
from pipeline.ops.predictions import predict_block
from pipeline.report.opened import Run, open_run
from pipeline.report.shown_samples import Key, SampleReader
from pipeline.storage import image_store, manifest
from pipeline.storage.image_content import open_images, read_checked
from pipeline.storage.run_files import SPLIT
from pipeline.storage.sample_lists import EXCLUDED, HELD_OUT

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = deferred("xarray")


@dataclass(frozen=True)
class Neighbour:
    """One of the images that are nearest to an explained one.

    Attributes
    ----------
    split, sample
        Which image.
    image
        [y, x] or [y, x, channel].
    label_name
        The name of its class.
    distance
        How far it is from the explained image, in units of full scale, 0 to 1.
    """

    split: str
    sample: int
    image: npt.NDArray[Any]
    label_name: str
    distance: float


@dataclass(frozen=True)
class Explanation:
    """One image and how far it is from every prototype.

    Attributes
    ----------
    split, sample
        Which image.
    image
        [y, x] or [y, x, channel].
    full_scale
        The pixel value that counts as 1.
    label_name
        The name of its label, None where it has none.
    metrics, class_names
        The names along the axes of `distances`.
    distances
        [metric, class].
    predicted
        For each metric the name of the nearest class.
    prototypes
        [y, x] or [y, x, channel], in pixel values, by class name: those of the three nearest
        classes by each metric, and that of its label.
    neighbours
        For each metric the nearest images, the nearest first; empty where none were asked for.
    left_out
        Whether its distance to the class of its label is that to the prototype without it.
    """

    split: str
    sample: int
    image: npt.NDArray[Any]
    full_scale: int
    label_name: str | None
    metrics: tuple[str, ...]
    class_names: tuple[str, ...]
    distances: Float64Array
    predicted: dict[str, str]
    prototypes: dict[str, Float64Array]
    neighbours: dict[str, tuple[Neighbour, ...]] = field(default_factory=dict)
    left_out: bool = False

    @property
    def is_outside(self) -> bool:
        """Whether it has a label that is none of the run's classes, so that no prediction fits."""
        return self.label_name is not None and self.label_name not in self.class_names

    def ranked(self, metric: str) -> list[int]:
        """Return positions among the classes, the nearest first; classes without images are out.

        Raises
        ------
        InputError
            Where the run has no such metric.
        """
        if metric not in self.metrics:
            raise InputError(f"metric '{metric}', expected one of {', '.join(self.metrics)}")
        return _ranked(self.distances[self.metrics.index(metric)])


def _ranked(distances: Float64Array) -> list[int]:
    order = np.argsort(distances, kind="stable")
    return [int(position) for position in order if np.isfinite(distances[position])]


@checked
def explain(
    run: Path | str,
    split: str,
    sample: int,
    storage_options: Mapping[str, Any] | None = None,
    neighbours: int = 0,
) -> Explanation:
    """Measure one image of a run's image set against the run's prototypes.

    Where the run measured images of its fitted split without themselves, so is one of them here.

    Parameters
    ----------
    run
        The folder of the run, or its URL.
    split
        Any split of the image set.
    sample
        The index of the image in that split.
    storage_options
        fsspec's options for the URLs of the run and of its image set; default: credentials from
        the environment.
    neighbours
        How many of the nearest images to find as well, by each metric of the run; where there are
        fewer, all. Images of the run's classes are searched, in the splits that the run searched
        for neighbours, else in the one that its prototypes are from; the image itself is left out,
        and so is what the job left out or held out.

    Raises
    ------
    InputError
        Where there is no such split or sample, or the number of neighbours is negative.
    """
    if neighbours < 0:
        raise InputError(
            f"neighbours is {neighbours}, expected how many of the nearest images to show, 0 or "
            "more; leave it out to show none"
        )
    opened = open_run(run, storage_options)
    content = manifest.read_manifest(opened.images, manifest.IMAGES)
    count = image_store.require_split(content, split, opened.images)["count"]
    if not 0 <= sample < count:
        raise InputError(f"sample {sample} of split '{split}', expected 0 to {count - 1}")
    selection = select_classes(content["class_names"], opened.manifest["class_names"])
    measured = _measure(opened, content, selection, (split, sample))
    if not neighbours:
        return measured
    searched = _searched(opened, selection, (split, sample))
    reader = SampleReader(opened.images, content)
    return replace(measured, neighbours=_nearest(measured, searched, neighbours, reader))


def _measure(
    run: Run, content: Mapping[str, Any], selection: ClassSelection, key: Key
) -> Explanation:
    """Measure an image against all prototypes, without itself where the run did so."""
    split, sample = key
    images, labels = read_checked(run.images, content["digest"], split, sample, sample + 1)
    full_scale = content["full_scale"]
    prototypes = run.prototypes
    metrics = tuple(run.manifest["settings"]["metrics"])
    fractions = prototypes[NUMERATOR.name].values, prototypes[DENOMINATOR.name].values
    positions, own, others = selection.positions(labels), None, None
    if run.manifest["plan"].get("leave_one_out") and split == run.manifest["settings"]["fit"]:
        own, others = positions, others_of(prototypes)
    reference = make_reference(*fractions, str(images.dtype), full_scale, "cpu", others)
    distances = distances_block(images, reference, metrics, own=own)
    rows = predict_block(distances, np.array(selection.codes), positions)
    names = selection.all_names
    label = names[labels[0]] if labels[0] >= 0 else None
    near = {at for row in distances[:, 0] for at in _ranked(row)[:3]}
    near |= {selection.names.index(label)} if label in selection.names else set()
    return Explanation(
        split=split,
        sample=sample,
        image=images[0],
        full_scale=full_scale,
        label_name=label,
        metrics=metrics,
        class_names=selection.names,
        distances=distances[:, 0],
        predicted={
            metric: names[code]
            for metric, code in zip(metrics, rows["predicted"][:, 0].tolist(), strict=True)
        },
        prototypes={
            selection.names[at]: prototypes[PROTOTYPE.name][at].values for at in sorted(near)
        },
        left_out=own is not None and positions[0] >= 0,
    )


def _searched(run: Run, selection: ClassSelection, key: Key) -> xr.Dataset:
    """Return the images that are searched for the nearest of one, lazy.

    They are in the order in which a job numbers them, to which ties go: split after split, whose
    names are in the attribute `splits`; `split` (sample) is the position in it.
    """
    known = run.manifest["plan"].get("neighbours")
    lists = [listed for name in (EXCLUDED, HELD_OUT) if (listed := run.listed(name)) is not None]
    splits = known["among"] if known else [run.manifest["settings"]["fit"]]
    parts = []
    for code, split in enumerate(splits):
        images = open_images(run.images, split)
        labels = images[LABEL.name].values
        kept = selection.positions(labels) >= 0
        for listed in lists:
            kept[listed.samples_of(split)] = False
        if split == key[0]:
            kept[key[1]] = False
        coordinates = {LABEL.name: labels, SPLIT: np.full(len(labels), code, np.int32)}
        images = images.assign_coords({name: (SAMPLE, v) for name, v in coordinates.items()})
        parts.append(images.isel({SAMPLE: np.flatnonzero(kept)}))
    alike: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override"}
    searched = xr.concat(parts, SAMPLE, join="override", combine_attrs="override", **alike)
    return searched.assign_attrs(splits=list(splits))


def _nearest(
    measured: Explanation, searched: xr.Dataset, number: int, reader: SampleReader
) -> dict[str, tuple[Neighbour, ...]]:
    """Return by metric the nearest of the images that are searched, up to so many."""
    count = min(number, searched.sizes[SAMPLE])
    if not count:
        return dict.fromkeys(measured.metrics, ())
    image = xr.Dataset(
        {IMAGE.name: (searched[IMAGE.name].dims, measured.image[None])},
        {LABEL.name: (SAMPLE, np.full(1, UNLABELLED, np.int32))},
        {"full_scale": measured.full_scale},
    )
    lists = search(image, searched, count, measured.metrics, "cpu").compute()
    positions, distances = (lists[v.name].values[:, 0] for v in (NEIGHBOUR, NEIGHBOUR_DISTANCE))
    near = {name: searched[name].values[positions] for name in (SPLIT, SAMPLE, LABEL.name)}
    keys = np.stack([near[SPLIT], near[SAMPLE]], axis=-1).reshape(-1, 2).tolist()
    splits, names = searched.attrs["splits"], searched.attrs["class_names"]
    images = reader.images((splits[code], sample) for code, sample in keys)
    found = {}
    for metric, *columns in zip(measured.metrics, *near.values(), distances, strict=True):
        rows = zip(*(column.tolist() for column in columns), strict=True)
        found[metric] = tuple(
            Neighbour(splits[code], sample, images[splits[code], sample], names[label], distance)
            for code, sample, label, distance in rows
        )
    return found
