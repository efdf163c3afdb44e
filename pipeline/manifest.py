"""The record that makes a store or a run complete, and the plan that it starts from.

A folder under construction holds `.work/plan.json`: what is being made, so that the same
command resumes it and another one is refused. When everything is there, `manifest.json` is
written, last; only then is the folder an image set or a run.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.digests import json_digest
from pipeline.errors import (
    ConflictError,
    DamagedError,
    IncompleteError,
    RemoteError,
    StoreError,
)
from pipeline.files import PARTIAL_SUFFIX, read_json, storage_errors, write_json
from pipeline.places import exists, files_below, is_folder, remove_tree
from pipeline.urls import shown

FORMAT_VERSION = 1
IMAGES = "pixsim image set"
RUN = "pixsim run"
MANIFEST = "manifest.json"
WORK = ".work"
_LIBRARIES = ("pixsim", "numpy", "numba", "dask", "xarray", "zarr", "pyarrow", "torch")


def versions() -> dict[str, str]:
    """Return the versions of Python, the system and the libraries that shape a result."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def now() -> str:
    """Return the time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def kind_of(path: Path) -> str | None:
    """Return `IMAGES` or `RUN` where `path` holds a finished one, else None.

    Raises
    ------
    RemoteError
        Where a remote place does not let itself be read, which says nothing of what it holds.
    """
    try:
        kind = read_json(path / MANIFEST).get("kind")
    except RemoteError:
        raise
    except (OSError, ValueError, AttributeError):
        return None
    return kind if kind in (IMAGES, RUN) else None


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """Read the manifest of a finished image set or run.

    Raises
    ------
    StoreError
        Where `path` is no such folder.
    IncompleteError
        Where it was started but never finished.
    DamagedError
        Where the manifest cannot be read.
    """
    if not is_folder(path):
        raise StoreError(f"{path}: no such folder, expected a {kind}")
    if not exists(path / MANIFEST):
        if exists(path / WORK / "plan.json"):
            raise IncompleteError(
                f"{path}: this {kind} is incomplete, its {MANIFEST} was never written; "
                "run the same command that started it again, it goes on where it stopped"
            )
        hint = " (a Zarr store without it may be half written)" if _looks_like_zarr(path) else ""
        raise IncompleteError(
            f"{path}: holds no {MANIFEST}, expected a finished {kind}{hint}; "
            "make it anew with 'pixsim ingest' or 'pixsim run'"
        )
    try:
        content = read_json(path / MANIFEST)
        found, version = content["kind"], content["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path / MANIFEST}: cannot be read ({error}); make it anew") from error
    if found != kind:
        raise StoreError(f"{path}: is a {found}, expected a {kind}")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path}: has format {version}, expected {FORMAT_VERSION}; "
            "make it anew, or use the version of pixsim that wrote it"
        )
    return dict(content)


def _looks_like_zarr(path: Path) -> bool:
    return exists(path / "zarr.json")


def write_manifest(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Finish a folder: write its manifest, then drop what was needed to get there."""
    header = {"kind": kind, "format_version": FORMAT_VERSION, "finished": now()}
    write_json(path / MANIFEST, header | dict(content) | {"versions": versions()})
    with storage_errors(path):
        remove_tree(path / WORK)


def identity(content: Mapping[str, Any]) -> str:
    """Return a digest of what decides a result; equal plans make equal results."""
    return json_digest(dict(content))


def start(
    path: Path,
    kind: str,
    plan: Mapping[str, Any],
    continues: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] | None = None,
) -> dict[str, Any] | None:
    """Begin, resume or recognise a folder.

    Parameters
    ----------
    path
        The folder of the store or run.
    kind
        `IMAGES` or `RUN`.
    plan
        What decides the content; compared with what the folder holds already.
    continues
        Tells of an unfinished folder's plan and this one whether to go on with this one.

    Returns
    -------
    The manifest where the folder holds the finished result of the same plan; else None, and
    the folder is ready to be filled.

    Raises
    ------
    ConflictError
        Where the folder holds anything else. It is left as it is.
    """
    mine = identity(plan)
    if exists(path / MANIFEST):
        done = read_manifest(path, kind)
        if done.get("identity") == mine:
            remove_tree(path / WORK)
            return done
        raise ConflictError(_conflict(path, kind, plan, done.get("plan", {})))
    record = path / WORK / "plan.json"
    if exists(record):
        begun = _read_record(record, path)
        same = begun["identity"] == mine and begun["kind"] == kind
        if same:
            return None
        other = begun.get("plan", {})
        if begun.get("kind") != kind or continues is None or not continues(other, plan):
            raise ConflictError(_conflict(path, kind, plan, other))
    elif exists(path) and not _is_untouched(path):
        raise ConflictError(
            f"{path}: exists and is no {kind}; nothing in it was touched, "
            "choose another place or remove it"
        )
    write_json(record, {"kind": kind, "identity": mine, "started": now(), "plan": dict(plan)})
    return None


def read_plan(path: Path, kind: str) -> dict[str, Any]:
    """Return the record of a folder that was begun and is not finished.

    Raises
    ------
    IncompleteError
        Where it was not begun.
    ConflictError
        Where it is finished.
    """
    record = path / WORK / "plan.json"
    if exists(path / MANIFEST):
        raise ConflictError(f"{shown(path)}: this {kind} is finished, there is nothing left to do")
    if not exists(record):
        raise IncompleteError(
            f"{shown(path)}: was not begun, expected a planned {kind}; plan it first"
        )
    return _read_record(record, path)


def _read_record(record: Path, path: Path) -> dict[str, Any]:
    try:
        begun = dict(read_json(record))
        _ = begun["identity"], begun["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{record}: cannot be read ({error}); remove {path} and run the command again"
        ) from error
    return begun


def require_same(path: Path, kind: str, begun: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Raise `ConflictError` unless a folder was begun with this plan."""
    if begun["identity"] != identity(plan) or begun["kind"] != kind:
        raise ConflictError(_conflict(path, kind, plan, begun.get("plan", {})))


def _is_untouched(path: Path) -> bool:
    """Tell whether a folder holds no file but what a start that was cut short leaves."""
    return is_folder(path) and all(name.endswith(PARTIAL_SUFFIX) for name in files_below(path))


def _conflict(path: Path, kind: str, plan: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = [*plan, *(key for key in other if key not in plan)]
    differing = [key for key in keys if plan.get(key) != other.get(key)] or ["kind"]
    key = differing[0]
    was, now_is = (_short(value) for value in (other.get(key), plan.get(key)))
    return (
        f"{path}: holds another {kind.removeprefix('pixsim ')} ('{key}' there is {was}, "
        f"here {now_is}); nothing in it was touched, choose another place or remove it"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
