"""What pixsim itself wrote below a folder of images, which is none of its images.

Who works in the folder of the images has `data` there, with stores, runs and audits. They are known
by their records, finished or not, wherever they lie; downloads by their place.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.config.job_settings import load_environment
from pipeline.core.paths import is_remote
from pipeline.storage.folders import exists, is_folder, list_folder
from pipeline.storage.lock_files import LOCK
from pipeline.storage.manifest import COPY, MANIFEST, NAMES, RECORDS, WORK, made_in

NOTHING_YET = "about to be made"
_DOWNLOADS = "downloads"
_MOST_LOOKED_AT, _MOST_LEVELS = 1000, 3


def own_kind(folder: Path) -> str | None:
    """Return what of pixsim's a folder is, such as `run`; None where it is another's."""
    kind = made_in(folder)
    if kind is not None:
        return NAMES[kind] if any(exists(folder / name) for name in RECORDS) else NOTHING_YET
    if folder.name == _DOWNLOADS and not is_remote(folder):
        downloads = load_environment().data / _DOWNLOADS
        if downloads.exists() and downloads.samefile(folder):
            return _DOWNLOADS
    return None


def may_be_own(names: Collection[str]) -> bool:
    """Tell by the names in a folder whether it can be one that pixsim wrote."""
    return not {MANIFEST, COPY, WORK, LOCK}.isdisjoint(names)


def holds_only_own(folder: Path, levels: int = _MOST_LEVELS) -> bool:
    """Tell whether a folder is pixsim's, or holds nothing but hidden files and such folders."""
    if own_kind(folder) is not None:
        return True
    names = [name for name in list_folder(folder)[:_MOST_LOOKED_AT] if not name.startswith(".")]
    return bool(names and levels) and all(
        is_folder(folder / name) and holds_only_own(folder / name, levels - 1) for name in names
    )
