"""The second pass of a job: every image is measured against the prototypes.

A task takes one step of samples: it reads its images, uses them and drops them. It holds no state:
called again with the same number it writes the same. `results` reads what all tasks wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import ClassSelection
from pipeline.core.errors import DamagedError
from pipeline.core.exact import Float64Array
from pipeline.core.host_memory import allocated_by
from pipeline.core.partitions import Concatenation
from pipeline.core.schema import DENOMINATOR, DISTANCE, LABEL, METRIC, NUMERATOR, SAMPLE
from pipeline.core.threads import OwnLock
from pipeline.kernels import backends
from pipeline.ops.distance_blocks import Reference, distances_block, make_reference
from pipeline.ops.leave_one_out import others_of
from pipeline.ops.predictions import ROW, predict_block
from pipeline.storage import run_files, tables
from pipeline.storage.claims import Token
from pipeline.storage.image_content import read_checked
from pipeline.storage.manifest import WORK
from pipeline.storage.run_files import DIGESTED, distance_columns, part_path, prototypes_digest
from pipeline.storage.sample_lists import ListedSamples, taken_of

# Writing takes copies of all distances of a task; one task of a process takes them at a time.
_WRITING = OwnLock()

# Bytes of distances that are predicted from at once.
_BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class EvaluatePartition:
    """Measures one step of samples and writes its distances and predictions.

    Called with the number of the step. Images of `left_out`, the split that prototypes are from,
    are measured without themselves. The prediction table is written last and says what was
    written; running a step twice writes the same. One that comes late, when the run is being put
    together or finished, writes nothing.
    """

    output: Path
    images: Path
    digest: str
    evaluate: Concatenation
    selection: ClassSelection
    metrics: tuple[str, ...]
    device: str
    write_distances: bool
    identity: str
    prototypes: str
    threads: int
    left_out: str | None = None
    taken: tuple[ListedSamples, ...] = ()

    @property
    def token(self) -> Token:
        """Lets it write."""
        return Token(self.output / WORK, self.identity, "measure")

    @property
    def _splits(self) -> list[str]:
        return [name for name, _ in self.evaluate.counts]

    def __call__(self, index: int) -> bool:
        """Do step `index`; return whether there was anything to do."""
        if self._is_done(index):
            return False
        self.token.require()
        images, samples = self._read(index)
        mine = taken_of(self.taken, self.evaluate.pieces(index))
        if not mine.all():
            images = images[mine]
        distance, rows = self._measure(images, samples, mine)
        del images
        notes = {"identity": self.identity, "distances": ""}
        self.token.require()
        if distance is not None:
            columns = {DISTANCE.name: distance, **samples}
            start, _ = self.evaluate.bounds(index)
            with _WRITING.held():
                run_files.write_distances(self.output / run_files.DISTANCES, start, columns)
                notes["distances"] = distances_digest(columns, self.metrics)
            del distance, columns
        measured = {name: values[mine] for name, values in samples.items()}
        table, notes["digest"] = self._table(rows, measured)
        tables.write_part(part_path(self.output, index), table, notes)
        return True

    def _measure(
        self,
        images: npt.NDArray[Any],
        samples: Mapping[str, npt.NDArray[Any]],
        mine: npt.NDArray[np.bool_],
    ) -> tuple[Float64Array | None, npt.NDArray[Any]]:
        """Measure the images of the samples that are `mine`, those that are taken.

        Return the distances of all samples, where they are written, NaN of those that are not
        taken; and records of those that are, [metric, sample].
        """
        leaves_out = self.left_out is not None
        reference = load_reference(self.output, self.prototypes, self.device, leaves_out)
        codes = np.array(self.selection.codes, np.int32)
        positions = self.selection.positions(samples[LABEL.name][mine])
        own = None
        if self.left_out is not None:
            fitted = samples["split"][mine] == self._splits.index(self.left_out)
            own = np.where(fitted, positions, -1)
        metrics, count = len(self.metrics), len(images)
        kept = np.empty((metrics, count, len(codes))) if self.write_distances else None
        rows = np.empty((metrics, count), ROW)
        step = max(1, _BLOCK_BYTES // (8 * metrics * len(codes)))
        for start in range(0, count, step * self.threads):
            part = slice(start, start + step * self.threads)
            without = None if own is None else own[part]
            distance = distances_block(images[part], reference, self.metrics, self.threads, without)
            rows[:, part] = predict_block(distance, codes, positions[part])
            if kept is not None:
                kept[:, part] = distance
        if kept is None or mine.all():
            return kept, rows
        every = np.full((metrics, len(mine), len(codes)), np.nan)
        every[:, mine] = kept
        return every, rows

    def _is_done(self, index: int) -> bool:
        kept = run_files.read_own_part(part_path(self.output, index), DIGESTED, self.identity)
        if kept is None or not self.write_distances:
            return kept is not None
        try:
            start, stop = self.evaluate.bounds(index)
            written = run_files.read_distances(self.output / run_files.DISTANCES, start, stop)
        except DamagedError:
            return False
        return distances_digest(written, self.metrics) == kept[1]["distances"]

    def _read(self, index: int) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
        pieces = list(self.evaluate.pieces(index))
        with allocated_by(backends.load(self.device).empty):
            read = [read_checked(self.images, self.digest, *piece) for piece in pieces]
        images = read[0][0] if len(read) == 1 else np.concatenate([image for image, _ in read])
        codes = [np.full(b - a, self._splits.index(name), np.int32) for name, a, b in pieces]
        return images, {
            LABEL.name: np.concatenate([label for _, label in read]),
            SAMPLE: np.concatenate([np.arange(a, b) for _, a, b in pieces]),
            "split": np.concatenate(codes),
        }

    def _table(
        self, records: npt.NDArray[Any], samples: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, Any], str]:
        """Return the prediction table of the step, and its digest.

        It has a row per metric and sample of the selected classes or without label: sample by
        sample, so that steps put end to end make the same table.
        """
        labels = samples[LABEL.name]
        kept = (self.selection.positions(labels) >= 0) | (labels < 0)
        chosen = slice(None) if kept.all() else kept
        times = len(self.metrics)
        columns = {
            name: np.repeat(samples[name][kept], times) for name in (SAMPLE, "split", "label")
        }
        columns[METRIC] = np.tile(np.arange(times, dtype=np.int32), int(kept.sum()))
        for name in ROW.names or ():  # of records all fields would be copied for each
            columns[name] = records[name][:, chosen].T.reshape(-1)
        names = self.selection.all_names
        missing = {name: np.isnan(columns[name]) for name in ("margin", "label_distance")}
        table = {
            SAMPLE: columns[SAMPLE],
            "split": tables.dictionary(columns["split"], self._splits),
            "label": tables.nullable(columns["label"], columns["label"] < 0),
            "label_name": tables.dictionary(columns["label"], names),
            METRIC: tables.dictionary(columns[METRIC], self.metrics),
            "predicted": columns["predicted"],
            "predicted_name": tables.dictionary(columns["predicted"], names),
            "distance": columns["distance"],
            "margin": tables.nullable(columns["margin"], missing["margin"]),
            "label_distance": tables.nullable(columns["label_distance"], missing["label_distance"]),
            "label_rank": tables.nullable(columns["label_rank"], columns["label_rank"] < 0),
        }
        return table, run_files.rows_digest({name: columns[name] for name in DIGESTED})


def distances_digest(columns: dict[str, npt.NDArray[Any]], metrics: tuple[str, ...]) -> str:
    """Return the digest of one shard of distances."""
    return run_files.rows_digest(distance_columns(columns, list(metrics)))


@lru_cache(maxsize=2)
def load_reference(output: Path, digest: str, device: str, leaves_out: bool = False) -> Reference:
    """Read a run's prototypes, once for all tasks of a process; they must have that digest.

    `leaves_out` says whether images are measured without themselves.
    """
    fractions = run_files.read_fractions(output / run_files.PROTOTYPES)
    if prototypes_digest(fractions) != digest:
        raise DamagedError(
            f"{output / run_files.PROTOTYPES}: was changed after it was written; remove "
            f"{output} and run the job again"
        )
    return make_reference(
        fractions[NUMERATOR.name].values,
        fractions[DENOMINATOR.name].values,
        str(fractions.attrs["pixel_dtype"]),
        int(fractions.attrs["full_scale"]),
        device,
        others_of(fractions) if leaves_out else None,
    )
