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
    is_hidden,
    is_image,
    judge,
)
from pipeline.storage.folders import exists, is_folder, list_folder

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "_classes.csv")
_CARD, _CARD_BYTES = "README.md", 2**22
_MOST_FOLDERS = 1000


def _folders(path: Path) -> dict[str, list[str]]:
    """Return the folders in a folder, each with the names of what is in it."""
    names = [n for n in list_folder(path) if not is_hidden(os.fsencode(n)) and "." not in n]
    return {n: list_folder(path / n) for n in names[:_MOST_FOLDERS] if is_folder(path / n)}


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
    found = [name for name, names in _folders(path).items() if _has_parquet(names)]
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
            except (ValueError, KeyError, TypeError, AttributeError):  # it is for people
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
    below = {} if any(is_image(os.fsencode(name)) for name in names) else _folders(path)
    containers = all(is_container(os.fsencode(name)) for name in below)
    if mine and containers and all(map(_has_images, below.values())):
        if len(mine) > 1:
            raise SourceError(
                f"{shown(path)}: is described by {listed(mine)}; give one of them, such as "
                f"{shown(path / mine[0])}"
            )
        return {None: path / mine[0]}
    tables = {
        split: [path / split / name for name in TABLES if name in inside]
        for split, inside in below.items()
        if any(name in TABLES for name in inside) or _has_images(inside)
    }
    if not tables or judge([os.fsencode(split) for split in tables]) != SPLITS:
        return {}
    if any(len(several) != 1 or not _has_images(below[s]) for s, several in tables.items()):
        return {}
    return {split: several[0] for split, several in tables.items()}


def _has_images(names: list[str]) -> bool:
    return any(is_image(os.fsencode(name)) for name in names)
