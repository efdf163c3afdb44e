"""Lists of samples of an image set: which a job leaves out, and those that it holds out.

A list comes from a table that somebody made, with the columns `split` (text) and `sample` (its
index there), perhaps `keep` (rows with true are not meant) and `reason` (text). A run keeps its own
copy, such a table as well, from which its tasks look samples up: a task carries the file's path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import array_digest, json_digest
from pipeline.core.errors import ConflictError, DamagedError, InputError, SchemaError, SourceError
from pipeline.core.exact import Int64Array
from pipeline.core.paths import ABSENT, is_path_like, locate, shown
from pipeline.storage import tables
from pipeline.storage.atomic import read_json
from pipeline.storage.folders import exists, is_folder
from pipeline.storage.manifest import MANIFEST, repair_cure

EXCLUDED, HELD_OUT = "excluded.parquet", "held_out.parquet"
KEEP = "keep.parquet"
"""The table of a folder that says of samples whether they are to be kept."""
UNREADABLE = "unreadable"
"""The reason of what could not be ingested, which has no index in an image set."""

_KINDS = {"split": "text", "sample": "integer", "keep": "boolean", "reason": "text"}
_SPELLED = {"text": "texts", "integer": "integers", "boolean": "true or false"}
_NO_REASON, _OTHER_REASONS = "no reason given", "other reasons"
_MOST_REASONS = 20  # that are counted one by one


@dataclass(frozen=True, eq=False)
class SampleList:
    """Some samples of an image set.

    Attributes
    ----------
    samples
        Split -> [row]; indices in it, ascending, each once; only splits with any.
    reasons
        Split -> [row]; codes into `texts`, -1 where no reason is given.
    texts
        The reasons.
    """

    samples: Mapping[str, Int64Array]
    reasons: Mapping[str, npt.NDArray[np.int32]]
    texts: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(map(len, self.samples.values()))

    def samples_of(self, split: str) -> Int64Array:
        """Return the indices of the samples of a split, ascending."""
        return self.samples.get(split, np.empty(0, np.int64))

    @property
    def digest(self) -> str:
        """That of the samples, whatever the reasons and their order in the table."""
        return json_digest({name: array_digest(rows) for name, rows in self.samples.items()})

    def counts(self) -> dict[str, dict[str, Any]]:
        """Return for each split `count` and, by reason, `reasons`: the most frequent ones."""
        found = {}
        for split, codes in self.reasons.items():
            numbers = np.bincount(codes + 1, minlength=len(self.texts) + 1).tolist()
            names = (_NO_REASON, *self.texts)
            known = sorted((-n, name) for name, n in zip(names, numbers, strict=True) if n)
            reasons = {name: -n for n, name in known[:_MOST_REASONS]}
            if len(known) > _MOST_REASONS:
                reasons[_OTHER_REASONS] = len(codes) - sum(reasons.values())
            found[split] = {"count": len(codes), "reasons": reasons}
        return found

    def write(self, path: Path, source: str) -> None:
        """Write it as a table that notes what it was made from."""
        names = list(self.samples)
        codes = np.repeat(np.arange(len(names)), [len(self.samples[name]) for name in names])
        columns = {
            "split": tables.dictionary(codes, names),
            "sample": np.concatenate([np.empty(0, np.int64), *self.samples.values()]),
            "reason": tables.dictionary(
                np.concatenate([np.empty(0, np.int32), *self.reasons.values()]), self.texts
            ),
        }
        tables.write_part(path, columns, {"source": source, "digest": self.digest})


@dataclass(frozen=True)
class ListedSamples:
    """The copy of a list in the folder of a run, as tasks carry it.

    `taken` says whether a pass takes these samples and no others, or all others.
    """

    path: Path
    digest: str
    taken: bool

    def taken_of(self, split: str, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Tell which samples of a range are taken, [sample]."""
        listed = _read_copy(self.path, self.digest).get(split, np.empty(0, np.int64))
        first, last = np.searchsorted(listed, (start, stop))
        mask = np.full(stop - start, not self.taken)
        mask[listed[first:last] - start] = self.taken
        return mask


def taken_of(
    lists: Sequence[ListedSamples], pieces: Iterable[tuple[str, int, int]]
) -> npt.NDArray[np.bool_]:
    """Tell which samples of ranges (split, start, stop) a pass takes by all lists, [sample]."""
    masks = []
    for split, start, stop in pieces:
        mask = np.ones(stop - start, bool)
        for each in lists:
            mask &= each.taken_of(split, start, stop)
        masks.append(mask)
    return np.concatenate([np.empty(0, bool), *masks])


@lru_cache(maxsize=4)
def _read_copy(path: Path, digest: str) -> Mapping[str, Int64Array]:
    """Read the copy of a list, once for all tasks of a process; it must have that digest."""
    rows = read_copy(path)
    if rows.digest != digest:
        raise DamagedError(f"{shown(path)}: was changed after it was written; run the job again")
    return rows.samples


def read_copy(path: Path) -> SampleList:
    """Read the copy of a list in the folder of a run."""
    try:
        return _listed(tables.read_given(path), shown(path))
    except (SourceError, SchemaError) as error:
        raise DamagedError(f"{error}; {repair_cure(path.parent)}") from error


def find_table(path: Path) -> Path:
    """Return the table that a path means: itself, or that of a folder with one.

    Raises
    ------
    SourceError
        Where it is a folder without such a table.
    """
    if not is_folder(path):
        return path
    if not exists(path / KEEP):
        raise SourceError(
            f"{shown(path)}: is a folder without {KEEP}, expected one with it, or a table of "
            "samples in a file .parquet or .csv"
        )
    return path / KEEP


def read_list(
    given: Path | str | Any,
    content: Mapping[str, Any] | None,
    options: Mapping[str, Any] | None = None,
) -> SampleList:
    """Read a list of samples of an image set.

    Parameters
    ----------
    given
        A folder with a table `keep.parquet`, or a table: a Parquet or CSV file, or one in memory.
    content
        The manifest of the image set; None where it is not made yet, and samples not checked.
    options
        fsspec's options for a URL.

    Raises
    ------
    SourceError, SchemaError
        Where it cannot be read, or lacks a column, has another type in one, or nothing in a row.
    InputError
        Where the image set has no such split or sample.
    ConflictError
        Where a manifest beside the table says that it is about another image set.
    """
    if not is_path_like(given):
        rows, title = tables.take_given(given), "the table"
    else:
        path = find_table(locate(given, options))
        rows, title = tables.read_given(path), shown(path)
        if content is not None:
            _require_same_images(path, content)
    found = _listed(rows, title)
    if content is None:
        return found
    for split, samples in found.samples.items():
        _require_samples(split, samples, content, title)
    return found


def _listed(rows: tables.TableRows, title: str) -> SampleList:
    """Sort the rows of a table into a list; of several about one sample the first is kept."""
    rows = _of_samples(rows)
    for name in ("split", "sample", "keep", "reason"):
        _check_column(rows, name, title)
    if "keep" in rows.table.column_names:
        rows = rows.where(~np.asarray(rows.table.column("keep").to_numpy(), bool))
    if not rows.table.num_rows:
        return SampleList({}, {})
    codes, splits = rows.coded("split")
    samples = rows.integers("sample")
    reasons, texts = np.full(len(codes), -1, np.int32), list[str]()
    if "reason" in rows.table.column_names:
        reasons, texts = rows.coded("reason")
    listed, whys = {}, {}
    for split, code in sorted(zip(splits, range(len(splits)), strict=True)):
        mine = codes == code
        listed[split], first = np.unique(samples[mine], return_index=True)
        whys[split] = reasons[mine][first]
    return SampleList(listed, whys, tuple(texts))


def _of_samples(rows: tables.TableRows) -> tables.TableRows:
    """Leave out what was never a sample of the image set: unreadable, and without an index."""
    names = rows.table.column_names
    if not {"sample", "reason"} <= set(names) or rows.kind("sample") != "integer":
        return rows
    if rows.kind("reason") != "text" or not rows.table.column("sample").null_count:
        return rows
    codes, texts = rows.coded("reason")
    unread = codes == (texts.index(UNREADABLE) if UNREADABLE in texts else len(texts))
    return rows.where(~(unread & (rows.integers("sample") < 0)))


def _check_column(rows: tables.TableRows, name: str, title: str) -> None:
    """Raise `SchemaError` unless a column is there, of its type, and full; some may be missing."""
    names, expected = rows.table.column_names, _SPELLED[_KINDS[name]]
    if name not in names:
        if name in ("keep", "reason"):
            return
        raise SchemaError(
            f"{title}: has no column '{name}' (it has {', '.join(names) or 'none'}), expected one "
            f"of {expected}; the columns of such a table are split and sample, and perhaps keep "
            "and reason"
        )
    if not rows.table.num_rows or (name == "reason" and rows.kind(name) == "null"):
        return
    if rows.table.column(name).null_count and name != "reason":
        raise SchemaError(
            f"{title}: column '{name}' is empty in {rows.table.column(name).null_count:,} rows, "
            f"expected {expected} in each; fill them in, or remove these rows"
        )
    if rows.kind(name) != _KINDS[name]:
        raise SchemaError(
            f"{title}: column '{name}' holds {rows.kind(name)}, expected {expected}; convert it"
        )


def _require_samples(
    split: str, samples: Int64Array, content: Mapping[str, Any], title: str
) -> None:
    if split not in content["splits"]:
        known = ", ".join(content["splits"])
        raise InputError(
            f"{title}: names split '{split}', expected one of the image set: {known}; correct it, "
            "or take the table of this image set"
        )
    count = content["splits"][split]["count"]
    wrong = samples[(samples < 0) | (samples >= count)]
    if len(wrong):
        raise InputError(
            f"{title}: names sample {wrong[0]} of '{split}', expected 0 to {count - 1}; correct "
            "it, or take the table of this image set"
        )


def _require_same_images(table: Path, content: Mapping[str, Any]) -> None:
    """Compare the image set with that of a manifest that lies beside a table, where one does."""
    try:
        digest = read_json(table.parent / MANIFEST)["images"]["digest"]
    except (*ABSENT, ValueError, KeyError, TypeError):
        return  # it is no folder of ours
    if digest != content["digest"]:
        raise ConflictError(
            f"{shown(table)}: is about an image set with digest {digest}, expected "
            f"{content['digest']}, that of the images here; make it again from these, or take "
            "those that it was made from"
        )


def copied_from(path: Path) -> str | None:
    """Return what the copy of a list was made from; None where there is no copy."""
    return tables.read_notes(path).get("source")
