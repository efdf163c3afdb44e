"""A set of encoded image files as a source: a listing, a way to fetch bytes, and a conversion.

Wherever the files are, reading is one thing: rows of the listing, the bytes of each, an image of
each. What is wrong with one sample never stops the others: it is a `Problem` of its row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import (
    LABEL_UNKNOWN,
    OK,
    SEVERAL_FRAMES,
    UNREADABLE,
    Block,
    Problem,
    SplitInfo,
)
from pipeline.core.digests import json_digest, sample_hashes
from pipeline.core.errors import LabelError, SourceError, nearest
from pipeline.core.schema import UNLABELLED
from pipeline.images.conversion import Conversion
from pipeline.images.decoders import Decoders
from pipeline.images.decoding import Decoded, decode, probe
from pipeline.images.headers import RefusedError
from pipeline.sources import sample_index
from pipeline.sources.fetch import too_large
from pipeline.sources.labels import check_named, class_names_of, code_of
from pipeline.sources.notes import Notes, lines_of
from pipeline.sources.quantize import Packing
from pipeline.sources.sample_index import Sample
from pipeline.storage.manifest import DECODERS

MAX_BYTES = 2**28
_PROBED = 16
_PROBED_AT_ONCE = 64
_MOST_PROBED = 4096
_REASONS = 3
_SHOWN_CLASSES = 20
_SHOWN_LABEL = 100


class Fetcher(Protocol):
    """Gets the bytes of samples; small, and travels to worker processes."""

    def fetch(
        self, rows: Sequence[Sample], files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them."""
        ...

    def close(self) -> None:
        """Close what was left open in this process."""
        ...


class Reader(Protocol):
    """Walks an input once, and says how its samples are fetched."""

    @property
    def kind(self) -> str: ...

    @property
    def title(self) -> str:
        """The name of the input, or its URL, without secrets."""
        ...

    def fetcher(self) -> Fetcher: ...

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield splits and rows for the listing, in final order; fill in the notes meanwhile."""
        ...


@dataclass(frozen=True)
class EncodedSource:
    """Encoded image files, listed.

    Attributes
    ----------
    listing, fetcher
        The folder of the listing, and what gets the bytes of samples.
    conversion, max_bytes, shape, dtype
        As of `open_encoded`; and of the images, after the conversion.
    labels_are_codes
        The labels are integers of a table whose classes were named elsewhere, so that they are
        codes also where names are digits.
    remarks
        What was decided by the layout of the input, and what was left out; a line each.
    unlabelled
        There are no labels at all, and none are missing.
    decoders
        What must decode them, where that is to be recorded.
    packing
        How floats are given as uint16.
    """

    listing: Path
    fetcher: Fetcher
    conversion: Conversion
    class_names: tuple[str, ...]
    max_bytes: int
    shape: tuple[int, ...]
    dtype: str
    labels_are_codes: bool = False
    provenance: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    unlabelled: bool = False
    decoders: Decoders | None = None
    packing: Packing | None = None

    @property
    def given_type(self) -> str:
        """The type of the images that are given: of floats that are packed `uint16`."""
        return self.dtype if self.packing is None else "uint16"

    @property
    def full_scale(self) -> int:
        is_float = self.given_type.startswith("float")
        return 1 if is_float else int(np.iinfo(self.given_type).max)

    @property
    def encoding(self) -> Mapping[str, float]:
        """What pixel values mean, where floats are packed."""
        return {} if self.packing is None else self.packing.encoding

    def splits(self) -> dict[str, SplitInfo]:
        known = sample_index.index(self.listing)
        without = known.get("unlabelled_splits", ())
        return {
            split: SplitInfo(count, self.shape, self.given_type, split not in without)
            for split, count in known["splits"]
        }

    def moved(self, folder: Path) -> EncodedSource:
        """Return the same source with its listing in another folder."""
        return replace(self, listing=folder)

    def decoded_by(self, decoders: Decoders | None) -> EncodedSource:
        """Return the same source with what decodes its images, and that in its provenance."""
        plain = {key: value for key, value in self.provenance.items() if key != DECODERS}
        if decoders is not None:
            plain[DECODERS] = decoders.describe()
        return replace(self, decoders=decoders, provenance=plain)

    def packed_by(self, packing: Packing) -> EncodedSource:
        """Return the same source with its floats packed, and that in its provenance."""
        provenance = {**self.provenance, "packing": packing.describe()}
        return replace(self, packing=packing, provenance=provenance)

    def read(self, split: str, start: int, stop: int) -> Block:
        images = np.empty((stop - start, *self.shape), self.given_type)
        return self.read_into(images, split, start)

    def read_into(self, images: npt.NDArray[Any], split: str, start: int) -> Block:
        """Read samples of a split from `start` on into `images`, as many as that has.

        Raises
        ------
        ConfigError
            Where other libraries than those that were chosen decode in this process.
        """
        if self.decoders is not None:
            self.decoders.require()
        rows = sample_index.read_rows(self.listing, split, start, start + len(images))
        images = images[: len(rows)]
        sizes = np.zeros((len(rows), 2), np.int32)
        # an image is hashed while it is in the processor's cache
        hashes = np.empty(len(rows), "V32")
        labels, problems = _labels(rows, self.class_names, self.labels_are_codes)
        remarks: dict[int, str] = {}
        for row, data in _fetched(self.fetcher, self.listing, rows, problems, self.max_bytes):
            target = images[row]
            decoded = self._decoded(data, target)
            if isinstance(decoded, Problem):
                problems[row] = decoded
            else:
                if decoded.image is not target:
                    target[:] = decoded.image
                sizes[row] = decoded.width, decoded.height
                hashes[row : row + 1] = sample_hashes(images[row : row + 1])
                if decoded.several:
                    remarks[row] = SEVERAL_FRAMES
        for row, problem in problems.items():
            labels[row], sizes[row] = UNLABELLED, (problem.width, problem.height)
            images[row] = 0
        bad, origins = sorted(problems), [row.origin for row in rows]
        hashes[bad] = sample_hashes(images[bad])
        sorted_problems = {row: problems[row] for row in bad}
        return Block(images, labels, origins, sorted_problems, sizes, hashes, remarks)

    def _decoded(self, data: bytes | Problem, target: npt.NDArray[Any]) -> Decoded | Problem:
        """Decode an image, into the target where that goes."""
        if isinstance(data, Problem):
            return data
        pack = None if self.packing is None else partial(_packed, self.packing)
        return decode(data, self.conversion, (self.shape, self.dtype), pack, target)

    def extremes(self, split: str, start: int, stop: int) -> tuple[float, float] | None:
        """Return the lowest and highest value in the files of some samples, as they are."""
        rows, unchanged = sample_index.read_rows(self.listing, split, start, stop), Conversion()
        unchanged = replace(unchanged, max_pixels=self.conversion.max_pixels)
        problems = _labels(rows, self.class_names, self.labels_are_codes)[1]
        known = []
        for _, data in _fetched(self.fetcher, self.listing, rows, problems, self.max_bytes):
            image = data if isinstance(data, Problem) else decode(data, unchanged)
            if isinstance(image, Decoded) and image.image.dtype == self.dtype:
                known += [float(image.image.min()), float(image.image.max())]
        return (min(known), max(known)) if known else None

    def close(self) -> None:
        """Close the files that reading left open in this process."""
        self.fetcher.close()
        sample_index.close(self.listing)


def _packed(packing: Packing, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pack floats; `RefusedError` where some are out of the range."""
    lowest, highest = float(image.min()), float(image.max())
    if lowest < packing.lowest or highest > packing.highest:
        raise RefusedError(
            UNREADABLE,
            f"has values from {lowest:g} to {highest:g}, expected {packing.lowest:g} to "
            f"{packing.highest:g}; give a value_range that holds all values, or clip them",
        )
    return packing.apply(image)


def open_encoded(
    reader: Reader,
    folder: Path,
    conversion: Conversion | None = None,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> EncodedSource:
    """List the samples of an input and return them as a source.

    Parameters
    ----------
    reader
        A `FolderReader`, `TarReader`, `ParquetReader` or `ListReader`.
    folder
        Where the listing is written; it belongs to the source and must stay.
    conversion
        How images are brought to one shape; default: not at all.
    class_names
        The name of each label code; default: what the input says, else the labels that occur,
        as numbers where all are, else sorted as text.
    max_bytes
        Of one image file; more is refused before it is read.

    Raises
    ------
    SourceError
        Where there are no samples, or the first ones cannot be read.
    LabelError
        Where there are more labels than classes could be, or none where labels are to be.
    """
    conversion = conversion or Conversion()
    sample_index.close(folder)
    notes = Notes()
    with sample_index.writing(folder) as writer:
        for split, rows in reader.batches(notes):
            writer.add(split, rows)
        writer.finish(reader.kind, notes)
    return reopen_encoded(reader, folder, conversion, class_names, max_bytes)


def reopen_encoded(
    reader: Reader,
    folder: Path,
    conversion: Conversion,
    class_names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> EncodedSource:
    """Return the source of a listing that was made before; all else as of `open_encoded`."""
    known = sample_index.index(folder)
    if not known["splits"]:
        raise SourceError(f"{reader.title}: holds no samples; correct the path")
    named = tuple(class_names or known["class_names"] or ())
    if named and not known["labels_are_text"]:
        check_named(known["labels"], named, reader.title)
    names = named or class_names_of(known["labels"], reader.title, known["labels_are_text"])
    if not names and not known.get("unlabelled", False):
        raise LabelError(
            f"{reader.title}: none of its samples has a label, so that there are no classes; write "
            "labels where they are to be, or say with class_names which classes there are"
        )
    fetcher = reader.fetcher()
    shape, dtype = _find_shape(reader.title, folder, fetcher, conversion, max_bytes)
    provenance = {
        "kind": reader.kind,
        "place": reader.title,
        "listing": json_digest([known["digests"], known["splits"]]),
        "conversion": conversion.describe(),
        "ignored": known["ignored"],
    }
    codes = bool(named) and known["integers"]
    return EncodedSource(
        folder, fetcher, conversion, names, max_bytes, shape, dtype, codes, provenance,
        lines_of(known, len(known["splits"]), len(names)), known.get("unlabelled", False),
    )  # fmt: skip


def _code(label: str, class_names: tuple[str, ...], integers: bool) -> int | Problem:
    """Return the code of a label: its name's, unless it is an integer, else the number it is."""
    code = code_of(label, class_names, by_index=integers)
    if code is not None:
        return code
    label = label if len(label) <= _SHOWN_LABEL else f"{label[:_SHOWN_LABEL]}..."
    known = nearest(label, class_names[:_SHOWN_CLASSES])
    return Problem(
        LABEL_UNKNOWN,
        f"has the label '{label}', expected one of {len(class_names)} class names or their "
        f"codes; {known}",
    )


def _labels(
    rows: Sequence[Sample], class_names: tuple[str, ...], integers: bool
) -> tuple[Any, dict[int, Problem]]:
    """Return the codes of rows, and what is known to be wrong from the listing alone."""
    known = {
        label: _code(label, class_names, integers) for label in {row.label for row in rows} if label
    }
    labels = np.full(len(rows), UNLABELLED, np.int32)
    problems = _listed_problems(rows)
    for row, sample in enumerate(rows):
        code = known.get(sample.label or "", UNLABELLED)
        if isinstance(code, Problem):
            problems.setdefault(row, code)
        elif row not in problems:
            labels[row] = code
    return labels, problems


def _listed_problems(rows: Sequence[Sample]) -> dict[int, Problem]:
    return {n: Problem(r.status, r.detail or "") for n, r in enumerate(rows) if r.status != OK}


def _fetched(
    fetcher: Fetcher,
    folder: Path,
    rows: Sequence[Sample],
    problems: Mapping[int, Problem],
    limit: int,
) -> Iterator[tuple[int, bytes | Problem]]:
    """Yield the bytes of the rows that have no problem yet, and are not too large."""
    good = [row for row in range(len(rows)) if row not in problems]
    wanted = [row for row in good if rows[row].size <= limit]
    yield from ((row, too_large(rows[row].size, limit)) for row in good if rows[row].size > limit)
    if wanted:
        files = sample_index.index(folder)["files"]
        for index, data in fetcher.fetch([rows[row] for row in wanted], files, limit):
            yield wanted[index], data


def _find_shape(
    title: str, folder: Path, fetcher: Fetcher, conversion: Conversion, limit: int
) -> tuple[tuple[int, ...], str]:
    """Return shape and dtype of most of the first samples."""
    shapes: Counter[tuple[tuple[int, ...], str]] = Counter()
    reasons: list[str] = []
    tried = 0
    for split, start, stop in _first_ranges(folder):
        if tried >= _MOST_PROBED or shapes.total() >= _PROBED:
            break
        rows = sample_index.read_rows(folder, split, start, stop)
        wrong = _listed_problems(rows)
        reasons += [f"{rows[row].origin} {problem.detail}" for row, problem in wrong.items()]
        tried += len(rows)
        for row, data in _fetched(fetcher, folder, rows, wrong, limit):
            shape = probe(data, conversion) if isinstance(data, bytes) else data
            if isinstance(shape, Problem):
                reasons.append(f"{rows[row].origin} {shape.detail}")
            else:
                shapes[shape] += 1
            if shapes.total() >= _PROBED:
                break
    if not shapes:
        raise SourceError(
            f"{title}: none of the first {tried:,} images can be read: "
            f"{'; '.join(reasons[:_REASONS])}"
        )
    return shapes.most_common(1)[0][0]


def _first_ranges(folder: Path) -> Iterator[tuple[str, int, int]]:
    for split, count in sample_index.index(folder)["splits"]:
        for start in range(0, count, _PROBED_AT_ONCE):
            yield split, start, min(count, start + _PROBED_AT_ONCE)
