"""Writing job files: that of a run, and a commented one for images that nobody has described yet.

What the comments say of keys is what the settings say of them: it is written once.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_files import (
    find_job,
    given_keys,
    job_text,
    require_suffix,
    require_unwritten,
    write_new,
)
from pipeline.config.job_settings import JobSettings
from pipeline.config.search_settings import AuditChecks, NeighbourSettings
from pipeline.config.yaml_files import to_yaml
from pipeline.core.arguments import checked
from pipeline.core.blocks import WRONG_SIZE, SplitInfo
from pipeline.core.errors import ConfigError, PixsimError, StoreError, listed, printable
from pipeline.core.paths import locate
from pipeline.ingestion.request import find_images
from pipeline.report.opened import Run
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import open_source, release
from pipeline.sources.sample_index import ROWS_PER_GROUP, read_rows
from pipeline.storage import manifest
from pipeline.storage.sample_tables import conversions_in

_MODELS: dict[str, type[BaseModel]] = {
    "images": ImageSettings, "neighbours": NeighbourSettings, "audit": AuditChecks,
    "cluster": ClusterSettings,
}  # fmt: skip
_WIDTH = 96
_MOST_CLASSES, _LOOKED_AT = 100, 64
LABELS, FIT = "labels", "fit"  # what a job may lack to be run


@checked
def save_job(
    job: JobSettings, path: Path | str, run: Run | None = None, *, write: bool = True
) -> Path:
    """Write the file of a job: what is not the default, its name, and where it is written to.

    Parameters
    ----------
    job
        As `find_job`, `load_job` or `make_job` return.
    path
        The file to write. One that is there must hold this job, and is left as it is.
    run
        Its finished run: the splits that it chose are named in the file.
    write
        Whether to write; else what could not be written is refused, and no more.

    Returns
    -------
    The path of the file. What may hold secrets, such as `storage_options`, is not in it.

    Raises
    ------
    ConfigError
        Where there is another file, or it cannot be written.
    """
    file = locate(path)
    if run is not None:
        known = run.manifest["settings"]
        splits = {"fit": known["fit"], "evaluate": tuple(known["evaluate"])}
        job = job.model_copy(update=splits)
    require_unwritten(job, file)
    if write and not file.exists():
        write_new(file, job_text(job))
    return file


@checked
def init_job(
    source: Path | str,
    output: Path | str | None = None,
    overrides: Iterable[str] = (),
    *,
    say: Callable[[str], None] | None = None,
    told: Callable[[str], None] | None = None,
) -> Path:
    """Write a job file with comments on what there is and on every key.

    It runs as it is, unless there are no labels, or several splits and none plainly to be fitted.

    Parameters
    ----------
    source
        What `find_job` takes.
    output
        The file to write; default: `NAME.yml` in the working directory.
    overrides
        `key=value` texts that replace keys, see `load_job`.
    say
        Told, in a line, what a name was taken for.
    told
        Told, in a line, what the file is good for: which command takes it, what is to be set first.

    Returns
    -------
    The path of the file.

    Raises
    ------
    ConfigError
        Where there is such a file, or it cannot be written.
    SourceError, StoreError
        Where the source cannot be read.
    """
    job = find_job(source, overrides, None, say)
    file = Path(f"{job.name}.yml") if output is None else locate(output)
    require_suffix(file)
    if file.exists():
        raise ConfigError(
            f"{file}: exists already and was left as it is; name another file (--output) or "
            "remove it"
        )
    job, found = _look(job)
    write_new(file, "\n".join([*_header(file, job, found), *_keys(job, found), ""]))
    if told is not None:
        told(_use(_missing(job, found), file, printable(job.images.title)))
    return file


@dataclass(frozen=True)
class Found:
    """What there is.

    Attributes
    ----------
    class_names, splits
        As of a source.
    labels
        How many images of each label a split holds, where that is known.
    differing
        Lines about what differs among the images, and what brings it to one.
    """

    class_names: Sequence[str]
    splits: Mapping[str, SplitInfo]
    labels: Mapping[str, Mapping[str, int]]
    differing: Sequence[str] = ()


def _look(job: JobSettings) -> tuple[JobSettings, Found]:
    """Return what there is, and the job with what its images need to run."""
    store = find_images(job.images, job.storage_options)
    if store is not None:
        content = manifest.read_manifest(store, manifest.IMAGES)
        names = content["class_names"]
        splits = {
            name: SplitInfo(
                split["count"], tuple(split["shape"]), split["dtype"], any(split["labels"])
            )
            for name, split in content["splits"].items()
        }
        labels = {
            name: dict(zip(names, split["labels"], strict=True))
            for name, split in content["splits"].items()
        }
        return _chosen(job, splits), Found(names, splits, labels)
    source = open_source(job.images)
    try:
        splits, labels = dict(source.splits()), {}
        lines: list[str] = []
        if isinstance(source, EncodedSource):
            labels = {name: _count_labels(source, name, info) for name, info in splits.items()}
            changes, lines = _conversion(source)
            if changes:
                job = job.model_copy(update={"images": job.images.model_copy(update=changes)})
            if "resize" in changes:
                splits = {
                    name: replace(info, shape=(*changes["resize"], *info.shape[2:]))
                    for name, info in splits.items()
                }
        return _chosen(job, splits), Found(source.class_names, splits, labels, lines)
    finally:
        release(source)


def _count_labels(source: EncodedSource, split: str, info: SplitInfo) -> Counter[str]:
    """Count the labels of a split in the listing of a source."""
    counts: Counter[str] = Counter()
    for start in range(0, info.count, ROWS_PER_GROUP):
        rows = read_rows(source.listing, split, start, min(info.count, start + ROWS_PER_GROUP))
        counts.update(row.label for row in rows if row.label)
    return counts


def _chosen(job: JobSettings, splits: Mapping[str, SplitInfo]) -> JobSettings:
    """Return the job with its splits, where they can be chosen."""
    try:
        return job.with_splits({n: info.count * info.labelled for n, info in splits.items()})
    except StoreError:
        return job


def _conversion(source: EncodedSource) -> tuple[dict[str, Any], list[str]]:
    """Return the settings that bring images to one shape, where those looked at differ.

    `resize`, `mode` and `depth`, as far as they are needed; and a line on each.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    others: Counter[tuple[str, str]] = Counter()
    wrong, total = False, 0
    for split, info in source.splits().items():
        step = max(1, info.count // _LOOKED_AT)
        for at in range(0, info.count, step):
            try:
                block = source.read(split, at, at + 1)
            except PixsimError:
                continue
            total += 1
            for problem in block.problems.values():
                if problem.status == WRONG_SIZE:
                    wrong |= "set resize" in problem.detail
                    others.update(conversions_in(problem.detail).items())
            if block.sizes is not None and block.sizes[0].all():
                width, height = block.sizes[0].tolist()
                sizes[height, width] += 1
    known: dict[str, Any] = {}
    lines = []
    if wrong and len(sizes) > 1:
        known["resize"] = sizes.most_common(1)[0][0]
        heights, widths = (f"{min(side)} to {max(side)}" for side in zip(*sizes, strict=True))
        lines.append(
            f"heights {heights}, widths {widths} among {sizes.total():,} looked at: "
            "'resize' brings all to the commonest size"
        )
    for (key, value), count in sorted(others.items()):
        known[key] = int(value) if key == "depth" else value
        kind = {"L": "grey", "RGB": "RGB"}.get(value, f"{value} bits")
        lines.append(f"{count:,} of {total:,} looked at are not {kind}: '{key}' brings all to it")
    return known, lines


def _missing(job: JobSettings, found: Found) -> str:
    """Return what the job lacks to be run, or nothing."""
    counts = [found.labels.get(split) for split in found.splits]
    unlabelled = not found.class_names or not any(
        one is None or any(one.values()) for one in counts
    )
    if unlabelled:
        return LABELS
    return FIT if job.fit is None else ""


def _use(missing: str, file: Path, title: str, quote: str = "") -> str:
    """Return what a job file is good for."""
    run, audit = (f"{quote}pixsim {command} {file}{quote}" for command in ("run", "audit"))
    if missing == LABELS:
        return f"{title} has no labels, so it cannot be run; {audit} takes it"
    return f"set fit first, then {run} runs it" if missing else f"{run} runs it"


def _header(file: Path, job: JobSettings, found: Found) -> Iterator[str]:
    """Yield comments on what there is."""
    total = sum(info.count for info in found.splits.values())
    shape = next(iter(found.splits.values()))
    size = " x ".join(map(str, shape.shape))
    title = printable(job.images.title)
    use = _use(_missing(job, found), file, title, "'")
    lines = [
        *textwrap.wrap(
            f"A job of pixsim: {use}. A key behind '#' has its default; take the '#' away to "
            "change it.",
            _WIDTH - 2,
            break_long_words=False,
            break_on_hyphens=False,
        ),
        "",
        f"{title}: {total:,} images of {size}, {shape.dtype}",
    ]
    lines += [f"  {line}" for line in found.differing]
    for name, info in found.splits.items():
        lines.append(f"  {printable(name)}: {info.count:,} images{_counts(found, name)}")
    names = listed(map(printable, found.class_names), _MOST_CLASSES)
    lines += textwrap.wrap(
        f"{len(found.class_names):,} classes: {names}", _WIDTH - 2, initial_indent="  ",
        subsequent_indent="    ",
    )  # fmt: skip
    yield from (f"# {line}".rstrip() for line in lines)
    yield ""


def _counts(found: Found, split: str) -> str:
    """Return how many images of each class a split holds, from the fewest to the most."""
    counts = [count for count in found.labels.get(split, {}).values() if count]
    if not counts:
        return ""
    few, many = min(counts), max(counts)
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    return f", {each} of each of {len(counts):,} classes"


def _keys(job: JobSettings, found: Found) -> Iterator[str]:
    """Yield the keys of a job, those that are not the default as they are, with comments."""
    given = given_keys(job)
    for key, text in _docs(JobSettings).items():
        yield from _comment(text)
        if key == "fit" and _missing(job, found) == FIT:
            names = listed(map(printable, found.splits), _MOST_CLASSES)
            yield from _comment(
                "To be set first, without the '#': no split is plainly the one that prototypes are "
                f"made from; there are {names}."
            )
        if key in _MODELS:
            known = given.get(key)
            yield f"{'' if known is not None else '#'}{key}:"
            yield from _inner(_MODELS[key], known)
        elif key in given:
            yield f"{key}: {to_yaml(given[key])}"
        else:
            yield f"#{key}: {_default(JobSettings, key)}"
        yield ""


def _inner(model: type[BaseModel], known: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the keys of a mapping of settings; all behind a mark where it is not given."""
    for key, text in _docs(model).items():
        yield from _comment(re.split(r"(?<=\.) (?=[A-Z])", text)[0], "  ")
        if known is not None and key in known:
            yield f"  {key}: {to_yaml(known[key])}"
        else:
            yield f"{'  #' if known is not None else '#  '}{key}: {_default(model, key)}"


def _default(model: type[BaseModel], key: str) -> str:
    return to_yaml(model.model_fields[key].get_default(call_default_factory=True))


def _comment(text: str, indent: str = "") -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=mark)


def _docs(model: type[BaseModel]) -> dict[str, str]:
    """Return what settings say of each of their keys, in a line."""
    return {
        name: " ".join((field.description or "").split()).replace("`", "'")
        for name, field in model.model_fields.items()
    }
