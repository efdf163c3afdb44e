"""Input as nobody should have to read it: bombs, lies, damage, and other things by name.

Image files come with the statuses that they may end with; `OK` stands for a decoded image.
Containers (archives, tables, arrays, lists, stores, job files) are written below a folder and come
with how their ingest must end.
"""

from __future__ import annotations

from pathlib import Path

from hostile.archives import archive_cases
from hostile.cases import NAMES, Case, small
from hostile.folders import write_specials, write_strange_names
from hostile.idx_files import idx_cases
from hostile.image_files import Hostile, hostile_files
from hostile.job_files import job_cases
from hostile.numpy_files import numpy_cases
from hostile.tables import list_cases, parquet_cases
from hostile.zarr_stores import zarr_cases

__all__ = [
    "NAMES",
    "Case",
    "Hostile",
    "hostile_files",
    "small",
    "write_containers",
    "write_specials",
    "write_strange_names",
]


def write_containers(root: Path, trap: Path) -> list[Case]:
    """Write all containers below `root`; what makes the folder `trap` was run as code."""
    found: list[Case] = []
    for name, make in {
        "archives": archive_cases,
        "numpy": lambda folder: numpy_cases(folder, trap),
        "parquet": parquet_cases,
        "lists": list_cases,
        "idx": idx_cases,
        "zarr": lambda folder: zarr_cases(folder, trap),
        "jobs": job_cases,
    }.items():
        (root / name).mkdir(parents=True)
        found += make(root / name)
    return found
