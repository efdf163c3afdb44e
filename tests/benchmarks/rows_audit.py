"""What an audit finds of what was put into an image set, and how long it takes.

Copies: 500 test images of each kind are put into train, changed, no image twice; all pairs between
test and train are sorted by the audit's own score. A false alarm is a pair that was not put there,
so the copies that a set has of its own count as such. Labels: precision among as many images as
had their label changed, by the score of the audit; where images are equal, what is expected of
those that are drawn.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import xarray as xr

import pipeline
from benchmarks.changed_images import CHANGES, Pixels
from benchmarks.images import FURTHEST, TRAIN_TO_TEST
from benchmarks.measure import Contestant, MismatchError, race
from benchmarks.ours import remove_run
from benchmarks.results import Row, growth_row, note_row, share_row
from benchmarks.workbench import CIFAR, Workbench, cifar_store
from pipeline.core.errors import DatasetNotFoundError
from pipeline.core.schema import IMAGE, LABEL
from pipeline.jobs.audit_lists import ListTables
from pipeline.jobs.audit_pairs import PairFinder, Pairs
from pipeline.jobs.audit_plan import plan_audit
from pipeline.ops.audit_scores import misfit
from pipeline.sources.arrays import from_arrays
from pipeline.sources.catalog import open_dataset

try:
    from cleanlab.rank import get_label_quality_scores
except ImportError:  # it is installed by `make setup`
    get_label_quality_scores = None

K = 10
TRAIN, TESTS = 60_000, 10_000
COPIES = 500  # of each kind
FALSE_ALARMS = 100
FINDINGS = 400
RATES = (0.01, 0.05, 0.1)
SEEDS = (0, 1, 2)
MOST_TIME = 4.0
TURNS = 2
OURS, ALONE = "the audit", "its nearest neighbours alone"
CLEANLAB = "cleanlab, normalized margin"
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Images:
    """Images and labels of two splits, in memory."""

    title: str
    splits: Mapping[str, tuple[Pixels, Labels]]
    class_names: tuple[str, ...]


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure copies, wrong labels, known copies, and the time of a whole audit."""
    fashion, cifar = _fashion(bench), _cifar(bench)
    yield from _copies(bench, fashion)
    if cifar is None:
        yield note_row(CIFAR, "the archive is not at hand (PIXSIM_DATASETS)")
    else:
        yield from _copies(bench, cifar)
        yield from _known(bench)
    for images in (_mnist(bench), fashion):
        yield from [] if images is None else _wrong_labels(images)
    yield _time(bench, fashion)


def _cut(bench: Workbench, title: str, splits: Mapping[str, Any], names: Any) -> Images:
    counts = {"train": min(TRAIN, bench.count), "test": min(TESTS, bench.count // TRAIN_TO_TEST)}
    cut = {
        name: (np.ascontiguousarray(splits[name][0][:count]), splits[name][1][:count])
        for name, count in counts.items()
    }
    return Images(title, cut, tuple(names))


def _fashion(bench: Workbench) -> Images:
    inner, originals = slice(FURTHEST, -FURTHEST), bench.originals
    splits = {name: (x[:, inner, inner], y) for name, (x, y) in originals.splits.items()}
    return _cut(bench, originals.title, splits, originals.class_names)


def _mnist(bench: Workbench) -> Images | None:
    try:
        source = open_dataset("mnist")
    except DatasetNotFoundError:
        return None
    blocks = {name: source.read(name, 0, info.count) for name, info in source.splits().items()}
    source.close()
    splits = {name: (block.images, block.labels) for name, block in blocks.items()}
    return _cut(bench, "MNIST", splits, source.class_names)


def _cifar(bench: Workbench) -> Images | None:
    store = cifar_store(bench)
    if store is None:
        return None
    opened = {name: pipeline.open_images(store, name) for name in ("train", "test")}
    rng = np.random.default_rng(0)  # its images are in the order of their classes
    splits = {}
    for name, images in opened.items():
        order = rng.permutation(images.sizes["sample"])
        splits[name] = images[IMAGE.name].values[order], images[LABEL.name].values[order]
    return _cut(bench, "CIFAR-10", splits, opened["train"].attrs["class_names"])


def _settings(bench: Workbench, store: Path, output: Path, **checks: Any) -> dict[str, Any]:
    where = {"cluster": {"workers": bench.threads}, "device": "cpu"}
    return {"name": "audit", "images": str(store), "output": str(output), "k": K} | where | checks


def _store(bench: Workbench, name: str, images: Images) -> Path:
    path = bench.folder / f"audit-{name}.zarr"
    remove_run(path)
    bench.folder.mkdir(parents=True, exist_ok=True)
    return pipeline.ingest(from_arrays(dict(images.splits), list(images.class_names)), path)


# copies ------------------------------------------------------------------------------------------


def with_copies(images: Images, copies: int, seed: int = 0) -> tuple[Images, npt.NDArray[np.int64]]:
    """Put changed test images into train, behind its own; return the number of each in test.

    [kind * copies]; those of a kind one after the other, in the order of `CHANGES`.
    """
    rng = np.random.default_rng(seed)
    test, labels = images.splits["test"]
    drawn = rng.choice(len(test), (len(CHANGES), copies), replace=False)
    changed = [
        change(test[numbers], rng)
        for change, numbers in zip(CHANGES.values(), drawn, strict=True)
    ]  # fmt: skip
    train = tuple(
        np.concatenate([before, more])
        for before, more in zip(
            images.splits["train"], (np.concatenate(changed), labels[drawn.ravel()]), strict=True
        )
    )
    return Images(
        images.title, {**images.splits, "train": train}, images.class_names
    ), drawn.ravel()


def recall(kinds: npt.NDArray[np.int64], copies: int, false_alarms: int) -> npt.NDArray[np.float64]:
    """Return the share of each kind, [kind], among the pairs up to so many false alarms.

    `kinds`, [pair], best first: which kind of copy it is, an index into `CHANGES`, or -1.
    """
    before = np.cumsum(kinds < 0) <= false_alarms
    return np.bincount(kinds[before & (kinds >= 0)], minlength=len(CHANGES)) / copies


def _copies(bench: Workbench, images: Images) -> Iterator[Row]:
    tests, originals = len(images.splits["test"][0]), len(images.splits["train"][0])
    copies = min(COPIES, tests // (2 * len(CHANGES)))
    alarms = max(1, FALSE_ALARMS * tests // TESTS)
    injected, sources = with_copies(images, copies)
    store, output = _store(bench, "copies", injected), bench.run_folder("audit")
    content = _settings(bench, store, output, variants=["mirror"])
    audit = pipeline.run_audit(content)
    pairs, firsts = _scored(content, audit)
    place = pairs.second - firsts["train"] - originals
    real = (place >= 0) & (sources[np.maximum(place, 0)] == pairs.first - firsts["test"])
    kinds = np.where(real, place // copies, -1)
    what, against = f"copies in {images.title}", f"{copies} of them, {alarms} false alarms"
    for name, share in zip(CHANGES, recall(kinds, copies, alarms), strict=True):
        yield share_row(f"{what}: {name}", against, (share,))
    table = audit.table("pairs")
    table = table[(table["split"] == "test") & (table["kind"] == "exact")]
    place = table["other_sample"].to_numpy() - originals
    real = (place >= 0) & (sources[np.maximum(place, 0)] == table["sample"].to_numpy())
    found = int(np.count_nonzero(real & (place < copies)))
    last = pairs.score[kinds < 0][:alarms].min(initial=1)
    note = f"of {tests:,} test images among {originals:,}; false alarms score {last:.3f} or more"
    exact = f"{what}: found as kind 'exact'"
    yield share_row(exact, f"{copies} exact copies", (found / copies,), wanted=100, note=note)
    remove_run(output)


def _scored(content: Mapping[str, Any], audit: pipeline.Audit) -> tuple[Pairs, dict[str, int]]:
    """Return all scored pairs between test and train, best first; the first number of each split.

    The table of pairs ends at the threshold, and half of the test images are copies here.
    """
    settings = pipeline.make_audit(content)
    with pipeline.open_executor(settings.cluster) as executor:
        plan = plan_audit(settings, Path(content["images"]), executor.layout)
    names = list(plan.splits)
    finder = PairFinder(plan, (names.index("test"), names.index("train")))
    for part in ListTables(audit.path, plan.search).read():
        finder.add(part)
    return finder.found, dict(zip(names, plan.firsts, strict=True))


def _known(bench: Workbench) -> Iterator[Row]:
    """Count the pairs that people judged to be the same among the first findings."""
    store, output = cifar_store(bench), bench.run_folder("audit")
    file = Path(os.environ["PIXSIM_DATASETS"]) / "cifar10-jpeg" / "near_duplicates.csv"
    if store is None or not file.exists() or bench.count < TRAIN:
        yield note_row("known copies of CIFAR-10", f"need the list, and --images {TRAIN} or more")
        return
    with file.open(newline="") as lines:
        judged = [(row["image"], row["other"]) for row in csv.DictReader(lines)]
    known = {(first, second) for first, second in judged if second.startswith("train")}
    table = pipeline.run_audit(_settings(bench, store, output)).table("pairs")
    table = table[(table["split"] == "test") & (table["other_split"] == "train")][:FINDINGS]
    names = (table[column].str.rpartition(":")[2] for column in ("source", "other_source"))
    found = sum(pair in known for pair in zip(*names, strict=True))
    what = f"known copies of CIFAR-10, in the first {FINDINGS} pairs"
    first = f"{int(table['finding'].sum())} of the first {FINDINGS} pairs are findings"
    note = f"{found} of {len(known)} between test and train; {first}"
    yield share_row(what, f"{len(known)} known", (found / len(known),), note=note)
    remove_run(output)


# labels ------------------------------------------------------------------------------------------


def precision(score: npt.NDArray[np.float64], wrong: npt.NDArray[np.bool_]) -> float:
    """Return the share of wrong labels among as many of the highest scores as there are wrong ones.

    Of equal scores at the end any may be taken: it is the mean of all choices.
    """
    count = int(wrong.sum())
    least = np.partition(score, len(score) - count)[len(score) - count]
    above, equal = score > least, score == least
    return float((wrong[above].sum() + wrong[equal].mean() * (count - above.sum())) / count)


def with_noise(
    labels: Labels, rate: float, similar: npt.NDArray[np.int64] | None, seed: int
) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Change some labels: to any other class, or to the one that is `similar`, [class]."""
    rng = np.random.default_rng(seed)
    classes, changed = int(labels.max()) + 1, labels.copy()
    drawn = rng.choice(len(labels), round(rate * len(labels)), replace=False)
    if similar is None:
        changed[drawn] = (labels[drawn] + rng.integers(1, classes, len(drawn))) % classes
    else:
        changed[drawn] = similar[labels[drawn]]
    wrong = np.zeros(len(labels), bool)
    wrong[drawn] = True
    return changed, wrong


def _lazy(splits: Mapping[str, tuple[Pixels, Labels]]) -> xr.Dataset:
    """Return the images of splits, one after the other, as `open_images` returns them."""
    images, labels = (np.concatenate([both[at] for both in splits.values()]) for at in (0, 1))
    dims = ("sample", "y", "x", "channel")[: images.ndim]
    known = {LABEL.name: ("sample", labels), "sample": np.arange(len(images))}
    return xr.Dataset({IMAGE.name: (dims, images)}, known, {"full_scale": 255})


def _nearest(images: xr.Dataset) -> xr.Dataset:
    return pipeline.neighbours(images, k=K, metrics="l1", device="cpu").compute()


def _wrong_labels(images: Images) -> Iterator[Row]:
    labels = images.splits["train"][1]
    found = _nearest(_lazy({"train": images.splits["train"]}))["neighbour"].values[0]
    classes = len(images.class_names)
    among = np.zeros((classes, classes), np.int64)
    np.add.at(among, (labels[:, None], labels[found]), 1)
    np.fill_diagonal(among, 0)
    for kind, similar in (("any other", None), ("a similar class", among.argmax(1))):
        for rate in RATES:
            changed = [with_noise(labels, rate, similar, seed) for seed in SEEDS]
            mine = [precision(misfit(noisy, found, classes)[0], bad) for noisy, bad in changed]
            theirs = [
                precision(_margins(noisy, found, classes), bad)
                for noisy, bad in changed
                if get_label_quality_scores is not None
            ]
            what = f"{100 * rate:g} % of labels of {images.title}: {kind}"
            yield share_row(what, CLEANLAB, mine, theirs)
    if get_label_quality_scores is None:
        yield note_row(CLEANLAB, "it is not installed (make setup)")


def _margins(labels: Labels, found: npt.NDArray[np.int64], classes: int) -> Any:
    """Return cleanlab's score of each label by the shares of votes, the worst highest."""
    votes = (labels[found][:, :, None] == np.arange(classes)).mean(1)
    scores = get_label_quality_scores(
        labels, votes, method="normalized_margin", adjust_pred_probs=True
    )
    return -np.asarray(scores)


# time --------------------------------------------------------------------------------------------


def _time(bench: Workbench, images: Images) -> Row:
    store, output = _store(bench, "whole", images), bench.run_folder("audit")
    content = _settings(bench, store, output)
    order = [name for name, count in pipeline.open_store(store).splits.items() if count]
    both = xr.concat([pipeline.open_images(store, name) for name in order], "sample")
    contestants = [
        Contestant(OURS, lambda: pipeline.run_audit(content), after=partial(remove_run, output)),
        Contestant(ALONE, lambda: _nearest(both)),
    ]

    def check(results: Mapping[str, Any]) -> None:
        distance, neighbour = results[OURS].nearest()
        alone = results[ALONE]
        if not np.array_equal(neighbour, alone["neighbour"].values[0]) or not np.array_equal(
            distance, alone["distance"].values[0], equal_nan=True
        ):
            raise MismatchError("the audit lists other neighbours than a search of its own")

    with dask.config.set(scheduler="threads", num_workers=bench.threads):
        times = race(contestants, min(bench.repeats, TURNS), check)
    counts = " + ".join(f"{len(images.splits[name][0]):,}" for name in ("train", "test"))
    what = f"an audit of {counts} images of {images.title}"
    return growth_row(what, ALONE, times[OURS], times[ALONE], MOST_TIME)
