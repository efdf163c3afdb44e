"""Growing an image set: new samples are added whole, or not at all.

The new samples are first ingested beside the store, in `.append`, with all the checks of any
ingest. Then they are written behind the samples of the store: new shards, and the last shard of
a split once more, with the new samples after the old ones. No reader sees them before the manifest
says so, which is written last; until then the store is, and digests to, what it was. The same
command again goes on wherever it was stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConflictError, ShapeError
from pipeline.core.partitions import ceil_div
from pipeline.core.paths import is_remote, shown
from pipeline.core.schema import UNLABELLED
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.ingestion.duplicates import stored_records
from pipeline.ingestion.plan import stored_templates
from pipeline.ingestion.steps import Content, commit
from pipeline.storage import image_store, manifest, tables
from pipeline.storage.atomic import copy_file, flush
from pipeline.storage.claims import Token
from pipeline.storage.folders import exists, list_folder, remove_tree
from pipeline.storage.image_content import read_checked
from pipeline.storage.locks import held
from pipeline.storage.sample_tables import SAMPLES


def append_path(path: Path) -> Path:
    """Return where samples are ingested before they are added to the store at `path`."""
    return path / manifest.APPEND / manifest.ADDED


def append_images(
    path: Path,
    fill: Callable[[Path, Mapping[str, Any]], None],
    executor: Executor,
    reporter: Reporter,
) -> Path:
    """Add to an image set the samples that `fill` ingests, given a path for them and its manifest.

    `ConflictError` where other samples were begun to be added and not finished, `ShapeError` where
    the new images have another shape, type or scale.
    """
    manifest.read_manifest(path, manifest.IMAGES)  # nothing is locked that is none
    with held(path, "append", reporter.say):
        base = manifest.read_manifest(path, manifest.IMAGES)
        aside = append_path(path)
        try:
            fill(aside, base)
        except ConflictError:
            raise ConflictError(
                f"{shown(path)}: other samples were begun to be added to it and not finished; "
                f"{manifest.append_cure(path)}"
            ) from None
        added = manifest.read_manifest(aside, manifest.IMAGES)
        if any(_is_same(added, one) for one in (base, *base.get("appended", []))):
            reporter.say(f"{shown(path)} holds these samples already")
            manifest.clear(path)
        else:
            try:
                growth = plan_growth(path, base, added)
            except ShapeError:
                _discard(aside)  # nothing of it is in the image set, and others may be added
                raise
            fingerprints = _write_shards(path, aside, growth, executor, reporter)
            _commit(path, aside, growth, fingerprints)
        _discard(aside)
    return path


def _is_same(added: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Tell whether new samples are those that a record says were ingested before."""
    alike = manifest.same_source(added["provenance"], known["provenance"])
    return added["identity"] == known["identity"] or (
        alike and added["settings"] is not None and added["settings"] == known["settings"]
    )


def _discard(aside: Path) -> None:
    """Remove new samples that are in the image set, last what says which they are.

    As long as that is there, the same command after a removal cut short sees that it is done.
    """
    for name in list_folder(aside):
        if name != manifest.MANIFEST:
            remove_tree(aside / name)
    remove_tree(aside.parent)


@dataclass(frozen=True)
class Growth:
    """What an image set will be with the new samples.

    `codes` has for each class of the new samples its code in the grown image set, and -1 at the
    end, for none; the names of new classes come last.
    """

    base: Mapping[str, Any]
    added: Mapping[str, Any]
    class_names: tuple[str, ...]
    codes: npt.NDArray[np.int32]
    templates: Mapping[str, image_store.SplitTemplate]

    def before(self, split: str) -> int:
        """Return how many samples the split has without the new ones."""
        return int(self.base["splits"].get(split, {"count": 0})["count"])

    @property
    def attributes(self) -> dict[str, Any]:
        kept = {name: self.base[name] for name in ("full_scale", "provenance")}
        return {"class_names": list(self.class_names)} | kept


def plan_growth(path: Path, base: Mapping[str, Any], added: Mapping[str, Any]) -> Growth:
    """Work out what an image set will be with new samples; see `Growth`."""
    for key in ("full_scale", "encoding"):
        if base.get(key) != added.get(key):
            raise ShapeError(
                f"{shown(path)}: the new images have {key} {added.get(key)}, expected "
                f"{base.get(key)} as those there; make them alike, or a store of their own"
            )
    names = [*base["class_names"]]
    names += [name for name in added["class_names"] if name not in names]
    codes = [names.index(name) for name in added["class_names"]]
    templates = stored_templates(base)
    for split, new in stored_templates(added).items():
        old = templates.get(split)
        like = old or next(iter(templates.values()))
        if (new.shape, new.dtype) != (like.shape, like.dtype):
            raise ShapeError(
                f"{shown(path)}: the new images of '{split}' are {list(new.shape)} {new.dtype}, "
                f"expected {list(like.shape)} {like.dtype} as those there; resize them"
            )
        templates[split] = replace(old, count=old.count + new.count) if old else new
    return Growth(base, added, tuple(names), np.array([*codes, UNLABELLED], np.int32), templates)


def _write_shards(
    path: Path, aside: Path, growth: Growth, executor: Executor, reporter: Reporter
) -> dict[str, list[str]]:
    """Write the new samples behind the old ones; nothing that the manifest names changes.

    It returns the fingerprints of the files of all images and labels, those that stay included.
    """
    new = {k: t for k, t in growth.templates.items() if k not in growth.base["splits"]}
    if new:
        image_store.create_images(path, growth.attributes, new, growth.base.get("encoding"))
    touched = []
    for split, template in growth.templates.items():
        shard = template.layout.shard
        first = growth.before(split) // shard
        last = ceil_div(template.count, shard) if template.count > growth.before(split) else first
        touched += [(split, number) for number in range(first, last)]
    task = AppendPartition(path.absolute(), aside.absolute(), growth, tuple(touched))
    with reporter.phase("append", len(touched)) as phase, task.token.issued():
        written = executor.map(task, len(touched), phase)
    splits = (split for split, _ in touched)
    marks = image_store.by_array(growth.templates, zip(splits, written, strict=True))
    for split, template in growth.templates.items():
        for name in image_store.array_names(split):
            kept = growth.base["arrays"].get(name, [])
            if marks[name]:  # the last shard, where it was not full, is one of them
                kept = kept[: growth.before(split) // template.layout.shard]
            marks[name] = [*kept, *marks[name]]
    return marks


@dataclass(frozen=True)
class AppendPartition:
    """The task of one shard with new samples; running it twice changes nothing.

    One that comes late writes nothing: by then there may be more samples in its shard.
    """

    path: Path
    aside: Path
    growth: Growth
    touched: tuple[tuple[str, int], ...]

    @property
    def token(self) -> Token:
        """Lets it write."""
        return Token(self.path / manifest.APPEND, self.growth.added["identity"], "append")

    def __call__(self, index: int) -> tuple[str, str]:
        """Write shard `index` of those that are touched: old samples first, then new ones."""
        self.token.require()
        split, number = self.touched[index]
        template, before = self.growth.templates[split], self.growth.before(split)
        start = number * template.layout.shard
        stop = min(start + template.layout.shard, template.count)
        images, added = image_store.read_images(
            self.aside, split, max(start - before, 0), stop - before
        )
        labels = self.growth.codes[added]
        if start < before:
            old = read_checked(self.path, self.growth.base["digest"], split, start, before)
            images, labels = np.concatenate([old[0], images]), np.concatenate([old[1], labels])
        self.token.require()
        return image_store.write_images(self.path, split, start, images, labels, template.count)


def _commit(path: Path, aside: Path, growth: Growth, fingerprints: Mapping[str, list[str]]) -> None:
    """Make the new samples part of the image set; the manifest, written last, is what counts."""
    saved = aside.parent / SAMPLES
    if not exists(saved):
        copy_file(path / SAMPLES, saved)
        if not is_remote(path):
            flush(aside.parent)
    image_store.grow_images(path, growth.attributes, growth.templates)
    tables.join(
        path / SAMPLES,
        [(saved, None), (aside / SAMPLES, lambda rows: _renumbered(rows, growth))],
    )
    base, added = growth.base, growth.added
    left_out = Counter(base["samples"]["left_out"]) + Counter(added["samples"]["left_out"])
    listed = base["samples"]["listed"] + added["samples"]["listed"]
    entry = {
        **{key: added[key] for key in ("identity", "provenance", "settings")},
        "listed": added["samples"]["listed"],
        "splits": {name: split["count"] for name, split in added["splits"].items()},
    }
    about = {
        **{key: base[key] for key in ("identity", "plan", "full_scale", "provenance", "settings")},
        **({"encoding": base["encoding"]} if base.get("encoding") else {}),
        "class_names": list(growth.class_names),
        "appended": [*base.get("appended", []), entry],
        "samples": {"listed": listed, "left_out": dict(left_out)},
    }
    content = Content(about, growth.templates, fingerprints)
    commit(path, content, partial(stored_records, path), base)


def _renumbered(rows: tables.TableRows, growth: Growth) -> dict[str, Any]:
    """Return the columns of new samples as they are in the grown image set."""
    numbers, labels = rows.integers("sample"), rows.integers("label")
    before = np.array([growth.before(split) for split in rows.texts("split")], np.int64)
    return {
        "sample": tables.nullable(numbers + before, numbers < 0),
        "label": tables.nullable(growth.codes[labels], labels < 0),
    }
