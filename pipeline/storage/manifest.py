"""The record that makes a store or a run complete, and the plan that it starts from.

A folder under construction holds `.work/plan.json`: what is being made, so that the same
command resumes it and another one is refused. When everything is there, `manifest.json` is
written, last; only then is the folder an image set or a run.

The manifest identifies every other file: it has the SHA-256 of each document and table (`files`),
and the fingerprints of the files of each array (`arrays`, see `shards.fingerprint`), whose chunks
have checksums of their own. It ends with a checksum of itself, and has a copy, `.manifest.json`,
written before it: what was in a damaged folder is known, and made again.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from pipeline.core.digests import json_digest
from pipeline.core.errors import DamagedError, IncompleteError, StoreError, hide_in
from pipeline.core.paths import ABSENT, is_remote, shown
from pipeline.storage.atomic import flush, flush_named, read_json, sweep, write_json
from pipeline.storage.blobs import open_binary
from pipeline.storage.folders import exists, is_folder, remove_tree
from pipeline.storage.lock_files import LOCK, holder_of
from pipeline.storage.locks import check, put_away

FORMAT_VERSION = 2
IMAGES = "pixsim image set"
RUN = "pixsim run"
AUDIT = "pixsim audit"
NAMES = {IMAGES: "image set", RUN: "run", AUDIT: "audit"}
MANIFEST = "manifest.json"
COPY = ".manifest.json"
WORK = ".work"
PLAN = f"{WORK}/plan.json"
APPEND, ADDED = ".append", "store"
DECODERS, PACKING, IGNORED = "decoders", "packing", "ignored"
# of a source: what follows from the rest of it, and which files lay beside its images
_UNDECIDED = (DECODERS, PACKING, IGNORED)
RESIZE_METHOD = "Pillow resize, bilinear, antialiased"
_FORMER_RESIZE_METHOD = "torchvision v2 resize, bilinear, antialias"  # which gives the same bits
_LIBRARIES = ("pixsim", "numpy", "numba", "dask", "xarray", "zarr", "pyarrow", "torch")


def as_recorded_at_first(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return a provenance with the resize of its conversion as older versions named it."""
    conversion = provenance.get("conversion")
    resize = conversion.get("resize") if isinstance(conversion, Mapping) else None
    if not isinstance(resize, Mapping) or resize.get("method") != RESIZE_METHOD:
        return dict(provenance)
    former = {**resize, "method": _FORMER_RESIZE_METHOD}
    return {**provenance, "conversion": {**provenance["conversion"], "resize": former}}


def same_source(provenance: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell whether two records of sources are of the same images, whatever lies beside them."""
    first, second = (
        {key: value for key, value in as_recorded_at_first(known).items() if key not in _UNDECIDED}
        for known in (provenance, other)
    )
    return json_digest(first) == json_digest(second)


@cache
def versions() -> Mapping[str, str]:
    """Return the versions of Python, the system and the libraries that shape a result.

    They are read once: that takes longer than all else in a manifest.
    """
    known = {"python": platform.python_version(), "platform": sys.platform}
    for name in _LIBRARIES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = "not installed"
    return known


def now() -> str:
    """Return the time in UTC, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def kind_of(path: Path) -> str | None:
    """Return `IMAGES` or `RUN` where `path` holds a finished one, else None.

    A manifest that cannot be read is an error: that says nothing of what the folder is.
    """
    try:
        kind = read_json(path / MANIFEST).get("kind")
    except (*ABSENT, ValueError, AttributeError):
        return None
    return kind if kind in (IMAGES, RUN, AUDIT) else None


RECORDS = (MANIFEST, COPY, PLAN)
_KIND = re.compile(rb'"kind": "(pixsim [a-z ]+)"')
_HEAD = 4096  # bytes of a record, which begins with its kind


def made_in(path: Path) -> str | None:
    """Return the kind of what is, or is about to be, in a folder; None where it is none of ours.

    It may be finished, begun or locked to be begun; nothing is checked.
    """
    for name in (*RECORDS, LOCK):
        try:
            with open_binary(path / name) as file:
                head = file.read(_HEAD)
        except ABSENT:
            continue
        found = _KIND.search(head)
        if found is not None:
            return found[1].decode()
        what = "" if name != LOCK else f"pixsim {holder_of(head).what}"
        if what in NAMES:
            return what
    return None


def made_around(path: Path) -> tuple[Path, str] | None:
    """Return the folder that a local path lies in and its kind, where that is one of ours."""
    if is_remote(path):
        return None
    for folder in (*path.parents, *path.absolute().parents):
        with suppress(OSError):
            if (kind := made_in(folder)) is not None:
                return folder, kind
    return None


def find_manifest(path: Path, kind: str, cure: str = "") -> dict[str, Any] | None:
    """Read the manifest of an image set or run; None where there is none.

    `cure` is what to do about one of another kind, where that is not to be read.
    """
    try:
        content = _read_record_of(path / MANIFEST)
    except ABSENT:
        return None
    if content["kind"] != kind:
        raise StoreError(
            f"{shown(path)}: is a {content['kind']}, expected a {kind}; "
            f"{cure or _cure(path, content['kind'], kind)}"
        )
    return content


def _cure(path: Path, kind: str, expected: str | None) -> str:
    """Return the command that takes what a folder holds, or makes what was expected of it."""
    if kind == IMAGES and expected in (RUN, AUDIT):
        return f"'pixsim {NAMES[expected]} {shown(path)}' makes one of it"
    return f"'pixsim show {shown(path)}' prints what it holds"


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
    content = find_manifest(path, kind)
    if content is not None:
        return content
    refuse_other_place(path, kind)
    if exists(path / PLAN):
        raise IncompleteError(
            f"{shown(path)}: this {kind} is incomplete, its {MANIFEST} was never written; "
            "run the same command that started it again, it goes on where it stopped"
        )
    if exists(path / COPY):
        raise IncompleteError(lost(path, kind))
    raise not_finished(path, kind)


def refuse_other_place(path: Path, kind: str | None = None) -> None:
    """Raise `StoreError` where a path is no folder, or lies in one that pixsim made.

    `kind` is that of what was expected there; None: any.
    """
    expected = f"a {kind}" if kind else "an image set, a run or an audit"
    is_there = is_folder(path)
    if not is_there or made_in(path) is None:
        known = made_around(path)
        if known is not None and exists(path):
            folder, other = known
            cure = f"give {folder}" if kind in (None, other) else _cure(folder, other, kind)
            raise StoreError(
                f"{shown(path)}: lies in the {NAMES[other]} {folder}, expected {expected}; {cure}"
            )
    if not is_there:
        what = "is a file" if exists(path) else "no such folder"
        raise StoreError(f"{shown(path)}: {what}, expected {expected}; correct the path")


def not_finished(path: Path, kind: str | None = None) -> IncompleteError:
    """Return the error for a folder without a manifest; `kind` as of `refuse_other_place`."""
    expected = f"a finished {kind}" if kind else "a finished image set, run or audit"
    if exists(path / "zarr.json"):
        hint = " (a Zarr store without it may be half written)"
        cure = "make it anew with 'pixsim ingest' or 'pixsim run'"
    else:
        command = {None: "run", IMAGES: "ingest"}.get(kind, NAMES.get(kind or "", ""))
        hint, cure = "", f"'pixsim {command} {shown(path)}' makes one, where it holds images"
    return IncompleteError(f"{shown(path)}: holds no {MANIFEST}, expected {expected}{hint}; {cure}")


def _read_record_of(file: Path) -> dict[str, Any]:
    """Read a manifest or its copy, and check that it is as it was written."""
    cure = repair_cure(file.parent)
    try:
        content = dict(read_json(file))
        version, checksum = content["format_version"], content.pop("checksum", None)
        _ = content["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{shown(file)}: cannot be read ({error}); {cure}") from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{shown(file.parent)}: has format {version}, expected {FORMAT_VERSION}; "
            "make it anew, or use the version of pixsim that wrote it"
        )
    if json_digest(content) != checksum:
        raise DamagedError(f"{shown(file)}: was changed after it was written; {cure}")
    return content


def read_either(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the manifest of a finished folder or, where it is damaged, its copy.

    Returns it, and what is wrong with it or with its copy, by file name. Where both cannot be read
    that is a `DamagedError`.
    """
    contents, wrong = [], {}
    for name in (MANIFEST, COPY):
        try:
            contents.append(_read_record_of(path / name))
        except FileNotFoundError:
            wrong[name] = "is missing"
        except DamagedError as error:
            wrong[name] = str(error).removeprefix(f"{shown(path / name)}: ").partition(";")[0]
    if not contents:
        raise DamagedError(
            f"{shown(path)}: neither {MANIFEST} ({wrong[MANIFEST]}) nor its copy {COPY} "
            f"({wrong[COPY]}) can be read; make it anew"
        )
    if len(contents) == 2 and contents[0] != contents[1]:
        wrong[COPY] = f"is not that of {MANIFEST}"
    return contents[0], wrong


def lost(path: Path, kind: str) -> str:
    """Return the message for a finished folder whose manifest is gone, and its copy is not."""
    return (
        f"{shown(path)}: its {MANIFEST} is missing, expected a finished {kind}; {repair_cure(path)}"
    )


def draft(kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest will be: its content, when it was finished, and the versions."""
    header = {"kind": kind, "format_version": FORMAT_VERSION, "finished": now()}
    return header | dict(content) | {"versions": dict(versions())}


def write_manifest(
    path: Path, kind: str, content: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> None:
    """Finish a folder: write its manifest, then drop what was needed to get there.

    `content` is what the manifest says, or a draft of it, with `files` and `arrays`; `before` the
    manifest that is there already, where the folder grows. `InUseError` says that another process
    took the folder over from this one.
    """
    check(path)
    sweep(path)
    put_manifest(path, draft(kind, content), before)
    clear(path)


def clear(path: Path) -> None:
    """Remove what making a finished folder that is held left; what resists, the next command tries.

    The folder is finished all the same.
    """
    for remove, target in ((remove_tree, path / WORK), (sweep, path), (put_away, path)):
        with suppress(OSError):
            remove(target)


def put_manifest(
    path: Path, content: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> None:
    """Write a whole manifest, closed with its checksum, and its copy before it.

    What it names is on the disk before it is; what the manifest `before` it names as well lasts
    already.
    """
    flush_named(path, content, before)
    plain = cast(dict[str, Any], hide_in(dict(content)))
    signed = plain | {"checksum": json_digest(plain)}
    write_json(path / COPY, signed)
    write_json(path / MANIFEST, signed)
    if not is_remote(path):
        flush(path)  # what it took to get here is removed next


def file_hash(file: Path) -> str:
    with open_binary(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]


def file_hashes(path: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of files below a folder, as a manifest records them."""
    return {name: file_hash(path / name) for name in names}


def require_files(path: Path, content: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise `DamagedError` where files of a finished folder are not those of its manifest.

    Where samples are being added to an image set, these may be those of the grown one already; they
    are not checked then.
    """
    for name in names:
        try:
            digest = file_hash(path / name)
        except FileNotFoundError:
            digest = ""
        if digest != content["files"].get(name) and not exists(path / APPEND):
            was = "was changed after it was written" if digest else "is missing"
            raise DamagedError(f"{shown(path / name)}: {was}; {repair_cure(path)}")


def repair_cure(path: Path) -> str:
    """Return what to do where something of a finished folder is damaged."""
    return f"'pixsim verify {shown(path)} --repair' finds and mends what is damaged"


def append_cure(path: Path) -> str:
    """Return what to do where samples were begun to be added to an image set and not finished.

    Once they are ingested some of them may be in the image set already.
    """
    begun = path / APPEND
    cure = "run that command again, to complete it"
    return cure if exists(begun / ADDED / MANIFEST) else f"{cure}, or remove {shown(begun)}"
