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
    digest = ColumnDigest()
    digest.update({key: np.asarray(values) for key, values in columns.items()})
    result = digest.result({"table": name})
    order = list(dict.fromkeys((*texts, *columns)))
    table = {key: texts.get(key, columns.get(key)) for key in order}
    tables.write_part(path / table_file(name), table, {"digest": result})
    return result


def audit_digest(digests: Mapping[str, str]) -> str:
    """Return the digest of an audit, from those of its lists of neighbours and of its tables."""
    return json_digest(dict(digests))


def read_findings(path: Path, name: str) -> dict[str, npt.NDArray[Any]]:
    """Read a table of findings, see `tables.read_part`."""
    return tables.read_part(path / table_file(name))


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
