"""The files of an audit: tables of what was found, the lists of neighbours that it was found in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import ColumnDigest, json_digest
from pipeline.storage import tables
from pipeline.storage.folders import sizes_below
from pipeline.storage.manifest import file_hashes
from pipeline.storage.run_files import NEIGHBOURS, part_names

PAIRS = "pairs"
GROUPS = "groups"
LABELS = "labels"
OUTLIERS = "outliers"
KEEP = "keep"
TABLES = (PAIRS, GROUPS, LABELS, OUTLIERS, KEEP)
AUDIT_FILE = "audit.json"
PAGE_FILE = "audit.html"
DROP_FILE = "drop.txt"
TAGS_FILE = "tags.json"

Columns = Mapping[str, Any]


def table_file(name: str) -> str:
    """Return the file of a table of findings, below the folder of the audit."""
    return f"{name}.parquet"


def write_table(path: Path, name: str, columns: Columns, texts: Mapping[str, Any]) -> str:
    """Write a table of findings; return the digest of its rows.

    Parameters
    ----------
    path, name
        The folder of the audit, and which table.
    columns
        [row]; what decides the digest: numbers, codes, truths.
    texts
        Columns as they are written, in their order: those named as one of `columns` in its place,
        the others beside them, such as where an image came from, which does not decide what it is.
    """
    result = _digest(name, {key: np.asarray(values) for key, values in columns.items()})
    order = list(dict.fromkeys((*texts, *columns)))
    table = {key: texts.get(key, columns.get(key)) for key in order}
    notes = {"digest": result, "columns": " ".join(columns)}
    tables.write_part(path / table_file(name), table, notes)
    return result


def _digest(name: str, columns: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = ColumnDigest()
    digest.update(columns)
    return digest.result({"table": name})


def read_digest(path: Path, name: str) -> str:
    """Read a table of findings whole, and return the digest of what it holds now."""
    file = path / table_file(name)
    columns = tables.read_notes(file).get("columns", "").split()
    return _digest(name, tables.read_part(file, columns))


def audit_digest(digests: Mapping[str, str]) -> str:
    """Return the digest of an audit, from those of its lists of neighbours and of its tables."""
    return json_digest(dict(digests))


def list_audit_files(path: Path, parts: int) -> dict[str, Any]:
    """Return what the manifest of an audit says of its files."""
    lists = part_names(parts, NEIGHBOURS)
    named = [table_file(name) for name in TABLES]
    sizes = {f"{NEIGHBOURS}/{name}": size for name, size in sizes_below(path / NEIGHBOURS).items()}
    written = [*named, AUDIT_FILE, DROP_FILE, TAGS_FILE, *lists]
    return {
        "files": file_hashes(path, written),
        "arrays": {},
        "sizes": {name: sizes[name] for name in lists},
    }
