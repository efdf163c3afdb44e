"""A finished audit, opened: its summary, and its tables as data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError, SchemaError, nearest
from pipeline.core.exact import Float64Array, Int64Array
from pipeline.core.paths import locate
from pipeline.core.schema import METRIC
from pipeline.ops.graph import merge_nearest
from pipeline.storage import audit_files, manifest, tables
from pipeline.storage.atomic import read_json
from pipeline.storage.run_files import NEIGHBOURS, part_names


@dataclass(frozen=True)
class Audit:
    """The folder of a finished audit.

    Attributes
    ----------
    path
        The folder.
    storage_options
        fsspec's options for its URL and that of its image set.
    """

    path: Path
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", locate(self.path, self.storage_options))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was asked, from what, with which versions, and the digests of the outcome."""
        return manifest.read_manifest(self.path, manifest.AUDIT)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Counts, thresholds and histograms; see `audit.json`.

        Raises
        ------
        DamagedError
            Where the file is missing or was changed.
        """
        manifest.require_files(self.path, self.manifest, [audit_files.AUDIT_FILE])
        return dict(read_json(self.path / audit_files.AUDIT_FILE))

    def table(self, name: str) -> Any:
        """Return a table as a pandas data frame.

        Parameters
        ----------
        name
            `pairs`, `groups`, `labels`, `outliers` or `keep`.

        Raises
        ------
        InputError
            Where it is none of these.
        DamagedError
            Where the file is missing or was changed.
        """
        if name not in audit_files.TABLES:
            raise InputError(f"table: {nearest(name, audit_files.TABLES)}, not '{name}'")
        return self._frame(audit_files.table_file(name))

    def nearest(self, metric: str = "l1") -> tuple[Float64Array, Int64Array]:
        """Read the nearest images of each image, as they are, among those of all splits.

        Parameters
        ----------
        metric
            That of the audit.

        Returns
        -------
        Distances in units of full scale, [image, k], nearest first, NaN where there is none; and
        the numbers of these images, of equal distances the lower first, -1 where there is none.
        Images are numbered split after split, in the order of `summary["splits"]`.

        Raises
        ------
        SchemaError
            Where the audit measured by another metric.
        DamagedError
            Where a table is missing or was changed.
        """
        checks, splits = self.manifest["plan"]["checks"], self.summary["splits"]
        if metric != checks["metric"]:
            raise SchemaError(f"metric is {metric!r}, expected {checks['metric']!r}, the audit's")
        firsts = dict(zip(splits, np.cumsum([0, *splits.values()]).tolist(), strict=False))
        wanted = [f"{metric} in {name}" for name in splits]
        parts = []
        for file in part_names(len(self.manifest[NEIGHBOURS]["partitions"]), NEIGHBOURS):
            frame = self._frame(file, [METRIC, "neighbour", "neighbour_split", "distance"])
            frame = frame[frame[METRIC].isin(wanted)]
            sample = frame["neighbour"].to_numpy(np.float64, na_value=-1).astype(np.int64)
            split = frame["neighbour_split"].cat
            first = np.array([firsts[name] for name in split.categories])[split.codes]
            number = np.where(sample < 0, -1, first + sample)
            shape = -1, len(wanted) * checks["k"]
            lists = frame["distance"].to_numpy(np.float64).reshape(shape), number.reshape(shape)
            parts.append(merge_nearest(*lists, checks["k"]))
        distance, neighbour = (np.concatenate(each) for each in zip(*parts, strict=True))
        return distance, neighbour

    def _frame(self, file: str, columns: Sequence[str] | None = None) -> Any:
        return tables.read_frame(self.path / file, self.manifest["files"][file], columns)


@checked
def open_audit(path: Path | str, storage_options: Mapping[str, Any] | None = None) -> Audit:
    """Open a finished audit.

    Parameters
    ----------
    path
        The folder, or its URL.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Raises
    ------
    StoreError
        Where the folder is no audit, or was never finished.
    """
    audit = Audit(locate(path, storage_options), storage_options or {})
    _ = audit.manifest
    return audit
