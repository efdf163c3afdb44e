"""Why one image was predicted as it was: its distance to every prototype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.classes import select_classes
from pipeline.core.errors import InputError
from pipeline.core.exact import Float64Array
from pipeline.core.schema import DENOMINATOR, NUMERATOR, PROTOTYPE
from pipeline.ops.distances import distances_block, make_reference
from pipeline.ops.predictions import predict_block
from pipeline.report.opened import open_run
from pipeline.storage import image_store, manifest


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
) -> Explanation:
    """Measure one image of a run's image set against the run's prototypes.

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

    Raises
    ------
    InputError
        Where there is no such split or sample.
    """
    opened = open_run(run, storage_options)
    content = manifest.read_manifest(opened.images, manifest.IMAGES)
    count = image_store.require_split(content, split, opened.images)["count"]
    if not 0 <= sample < count:
        raise InputError(f"sample {sample} of split '{split}', expected 0 to {count - 1}")
    images, labels = image_store.read_images(opened.images, split, sample, sample + 1)
    prototypes = opened.prototypes
    metrics = tuple(opened.manifest["settings"]["metrics"])
    fractions = prototypes[NUMERATOR.name].values, prototypes[DENOMINATOR.name].values
    reference = make_reference(*fractions, str(images.dtype), content["full_scale"], "cpu")
    distances = distances_block(images, reference, metrics)
    selection = select_classes(content["class_names"], opened.manifest["class_names"])
    rows = predict_block(distances, np.array(selection.codes), selection.positions(labels))
    names = selection.all_names
    label = names[labels[0]] if labels[0] >= 0 else None
    near = {at for row in distances[:, 0] for at in _ranked(row)[:3]}
    near |= {selection.names.index(label)} if label in selection.names else set()
    return Explanation(
        split=split,
        sample=sample,
        image=images[0],
        full_scale=content["full_scale"],
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
    )
