"""The lists of neighbours of an audit, read back: all findings are those of the files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import ColumnDigest
from pipeline.core.exact import Float64Array, Int64Array
from pipeline.core.schema import SAMPLE
from pipeline.core.threads import read_ahead
from pipeline.jobs.search_plan import Search
from pipeline.storage.run_files import DIGESTED_NEIGHBOURS, NEIGHBOURS, part_path, read_back


@dataclass(frozen=True)
class Lists:
    """The neighbours of consecutive images.

    Attributes
    ----------
    start
        The number of the first image, over all splits.
    distance, neighbour
        [image, measure, rank]; in units of full scale, NaN where there is none; the number of the
        neighbour, -1 where there is none.
    """

    start: int
    distance: Float64Array
    neighbour: Int64Array


class ListTables:
    """The tables of neighbours of an audit's folder, in order."""

    def __init__(self, path: Path, search: Search) -> None:
        self.path, self.search = path, search
        self.digest = ColumnDigest()
        self.parts: list[dict[str, object]] = []

    @cached_property
    def firsts(self) -> Int64Array:
        """The number of the first image of each split, [split]."""
        counts = [count for _, count in self.search.queries.counts]
        return np.cumsum([0, *counts])[:-1].astype(np.int64)

    def read(self) -> Iterator[Lists]:
        """Yield the lists of all images, in order; note digests and parts for the manifest.

        `DamagedError` where a table is not what was written.
        """
        steps = self.search.queries.steps
        for index, (rows, notes) in enumerate(read_ahead(self._table, steps)):
            start, stop = self.search.queries.bounds(index)
            self.digest.update(rows)
            part = {"start": start, "stop": stop, "rows": len(rows[SAMPLE])}
            self.parts.append(part | {"digest": notes["digest"]})
            shape = stop - start, len(self.search.measures), self.search.k
            split, sample = rows["neighbour_split"], rows["neighbour"]
            numbers = np.where(sample < 0, -1, self.firsts[split] + sample)
            yield Lists(start, rows["distance"].reshape(shape), numbers.reshape(shape))

    def _table(self, index: int) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
        return read_back(part_path(self.path, index, NEIGHBOURS), DIGESTED_NEIGHBOURS)
