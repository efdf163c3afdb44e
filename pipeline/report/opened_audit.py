"""A finished audit, opened: its summary, and its tables as data frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError, nearest
from pipeline.core.paths import locate
from pipeline.storage import audit_files, manifest, tables
from pipeline.storage.atomic import read_json


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
        file = audit_files.table_file(name)
        return tables.read_frame(self.path / file, self.manifest["files"][file])


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
