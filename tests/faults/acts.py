"""What the state machine does to one store and one run, and what it expects of them, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pipeline
from faults.scenes import RESULT, SHARD, STORE
from pipeline.core.errors import PixsimError

Arrays = dict[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]]
CLASSES = ("ant", "bee", "cat")
SPECS = range(5)


def arrays_of(spec: int) -> Arrays:
    """Return the images and labels of a source, by split; some have a split of their own."""
    rng = np.random.default_rng(spec)
    counts = {"train": 4 + 3 * spec, "test": 3 + spec % 3} | ({"extra": 2} if spec % 2 else {})
    return {
        split: (
            rng.integers(0, 256, (count, 4, 3), np.uint8),
            np.arange(count, dtype=np.int32) % len(CLASSES),
        )
        for split, count in counts.items()
    }


def write_sources(folder: Path) -> None:
    """Write every source as a file of arrays."""
    for spec in SPECS:
        content: dict[str, Any] = {"class_names": np.array(CLASSES)}
        for split, (images, labels) in arrays_of(spec).items():
            content |= {f"{split}_images": images, f"{split}_labels": labels}
        np.savez(folder / f"{spec}.npz", **content)


def joined(specs: Sequence[int]) -> Arrays:
    """Return what a store holds to which these sources were added, one after the other."""
    found: Arrays = {}
    for spec in specs:
        for split, (images, labels) in arrays_of(spec).items():
            before = found.get(split, (images[:0], labels[:0]))
            found[split] = np.concatenate([before[0], images]), np.concatenate([before[1], labels])
    return found


def ingest(spec: int, append: bool) -> None:
    """Make the store from a source, or add the source to it."""
    pipeline.ingest(f"{spec}.npz", STORE, SHARD, append=append)


def run() -> None:
    """Run the job on the store."""
    settings = {"name": "r", "images": STORE, "output": RESULT, "device": "cpu"}
    pipeline.run_job(pipeline.make_job({**settings, "distances": "write"}))


def verify(name: str, repair: bool) -> list[str]:
    """Return which files of the store or the run are damaged, or were."""
    return [f"{name}/{damage.file}" for damage in pipeline.verify(name, repair=repair)]


def attempt(act: Callable[[], Any]) -> tuple[Any, str]:
    """Return what an act returns and "", or None and the error that it was refused with."""
    try:
        return act(), ""
    except PixsimError as error:
        return None, f"{type(error).__name__}: {error}"


def check_store(specs: Sequence[int]) -> str:
    """Compare the store with the images that must be there; return what differs."""
    expected = joined(specs)
    pipeline.digest(STORE)
    found = pipeline.describe(STORE)["splits"]
    if list(found) != list(expected):
        return f"splits {list(found)}, expected {list(expected)}"
    for split, (images, labels) in expected.items():
        opened = pipeline.open_images(STORE, split)
        if not np.array_equal(opened["image"].values, images):
            return f"other images in {split}"
        if not np.array_equal(opened["label"].values, labels):
            return f"other labels in {split}"
    return ""


def check_run(specs: Sequence[int]) -> str:
    """Compare the run with distances and predictions computed here; return what differs."""
    expected, labels = distances_of(specs)
    pipeline.digest(RESULT)
    opened = pipeline.open_run(RESULT)
    found = opened.distances
    if not np.allclose(found.values, expected, rtol=1e-12, atol=0):
        return "other distances"
    for place, metric in enumerate(("l1", "l2")):
        right = np.count_nonzero(expected[place].argmin(axis=1) == labels)
        if opened.metrics[metric]["accuracy"] != right / len(labels):
            return f"another accuracy by {metric}"
    rows = opened.predictions.compute()
    if len(rows) != expected.shape[0] * expected.shape[1]:
        return f"{len(rows)} predictions"
    nearest = expected.argmin(axis=2).T.reshape(-1)
    return "" if rows["predicted"].tolist() == nearest.tolist() else "other predictions"


def distances_of(specs: Sequence[int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Return the distances of the test images to the class means, [metric, sample, class].

    Also their labels. From integers, divided at the end, so that equal distances are equal.
    """
    arrays = joined(specs)
    images, labels = arrays["train"]
    tests = arrays["test"][0].astype(np.int64).reshape(len(arrays["test"][0]), -1)
    pixels = images.astype(np.int64).reshape(len(images), -1)
    size = pixels.shape[1]
    found = np.empty((2, len(tests), len(CLASSES)))
    for code in range(len(CLASSES)):
        mine = pixels[labels == code]
        differences = len(mine) * tests - mine.sum(axis=0)
        full = len(mine) * 255
        found[0, :, code] = np.abs(differences).sum(axis=1) / (full * size)
        found[1, :, code] = np.sqrt((differences**2).sum(axis=1) / (full**2 * size))
    return found, arrays["test"][1]


def checker(name: str, specs: Sequence[int]) -> Callable[[], str]:
    """Return what checks the store or the run."""
    return partial(check_store if name == STORE else check_run, tuple(specs))
