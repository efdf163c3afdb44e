"""Folders that tables describe: repositories of Hugging Face, and images with a table beside them.

A repository holds Parquet files in `data`, or in a folder for each of its configurations; its
`README.md` may say the names of the classes. Images of a folder are described by a table of a known
name in it: `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, or Roboflow's `_classes.csv`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.yaml_files import parse_yaml
from pipeline.core.errors import SourceError, listed
from pipeline.core.paths import shown
from pipeline.sources.file_names import (
    SPLITS,
    is_container,
    is_image,
    judge,
)
from pipeline.sources.own_outputs import holds_only_own
from pipeline.storage.folders import exists, is_folder, list_folder

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_classes.csv")
_CARD, _CARD_BYTES = "README.md", 2**22
_MOST_FOLDERS = 1000


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder but for hidden ones."""
    names = [name for name in list_folder(path) if "." not in name]
    folders = [name for name in names[:_MOST_FOLDERS] if is_folder(path / name)]
    return [name for name in folders if not holds_only_own(path / name)]


# Parquet -----------------------------------------------------------------------------------------


def parquet_folders(path: Path) -> dict[str | None, Path]:
    """Return the folder of Parquet files of each split of a repository; None: of all.

    Raises `SourceError` where there are several configurations. Empty where a folder has such files
    itself, or there are none below it.
    """
    if _has_parquet(list_folder(path)):
        return {}
    found = {name: below for name in _folders(path) if (below := _in_configuration(path / name))}
    if found and judge([os.fsencode(name) for name in found]) == SPLITS:
        return {name: path / name for name in found}
    if len(found) > 1:
        raise SourceError(
            f"{shown(path)}: holds {len(found)} configurations, {listed(found)}; give the folder "
            f"of one, such as {shown(path / next(iter(found)))}"
        )
    return next(iter(found.values()), {})


def _in_configuration(path: Path) -> dict[str | None, Path]:
    if _has_parquet(list_folder(path)):
        return {None: path}
    found = [name for name in _folders(path) if _has_parquet(list_folder(path / name))]
    if judge([os.fsencode(name) for name in found]) == SPLITS:
        return {name: path / name for name in found}
    return {}


def _has_parquet(names: list[str]) -> bool:
    return any(name.lower().endswith(".parquet") for name in names)


def card_names(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of columns, as the card of a file's repository says them."""
    for folder in path.parents[:3]:
        if exists(folder / _CARD):
            with (folder / _CARD).open("rb") as file:
                text = file.read(_CARD_BYTES).decode("utf-8", "replace")
            try:
                head = parse_yaml(text.partition("---")[2].partition("\n---")[0])
                return _features(head["dataset_info"], folder.name, path.parent.name)
            except (ValueError, LookupError, TypeError, AttributeError):  # it is for people
                return {}
    return {}


def _features(info: Any, *configurations: str) -> dict[str, tuple[str, ...]]:
    several = info if isinstance(info, list) else [info]
    mine = [one for one in several if one.get("config_name") in configurations]
    names: dict[str, tuple[str, ...]] = {}
    for feature in (mine or several)[0]["features"]:
        kind = feature.get("dtype")
        if isinstance(kind, Mapping) and "class_label" in kind:
            of_code = kind["class_label"]["names"]
            names[feature["name"]] = tuple(str(of_code[key]) for key in sorted(of_code, key=int))
    return names


# tables beside images ----------------------------------------------------------------------------


def tables_beside(path: Path) -> dict[str | None, Path]:
    """Return the table of each split of a folder of images, None: of all; empty where none is.

    Images that lie in folders of classes are described by these.
    """
    names = list_folder(path)
    mine = [name for name in TABLES if name in names]
    folders = _folders(path)
    if mine and not _has_images(names):
        plain = all(is_container(os.fsencode(name)) for name in folders)
        mine *= plain and all(_has_images(list_folder(path / name)) for name in folders)
    if len(mine) > 1:
        raise SourceError(
            f"{shown(path)}: is described by {listed(mine)}; give one of them, such as "
            f"{shown(path / mine[0])}"
        )
    if mine or _has_images(names) or judge(list(map(os.fsencode, folders))) != SPLITS:
        return {None: path / mine[0]} if mine else {}
    tables = {s: [path / s / t for t in TABLES if exists(path / s / t)] for s in folders}
    images = [s for s in folders if tables[s] or _has_images(list_folder(path / s))]
    one_each = all(len(tables[s]) == 1 and _has_images(list_folder(path / s)) for s in images)
    return {s: tables[s][0] for s in images} if images and one_each else {}


def _has_images(names: list[str]) -> bool:
    return any(is_image(os.fsencode(name)) for name in names)
