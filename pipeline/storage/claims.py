"""Who may fill a folder, and with which plan: it is begun, resumed, recognised or refused.

Tasks hold no lock, and one may come late: a worker that was thought dead wakes up, dask runs a task
twice, a cluster starts an array job again. By then the folder may be finished, or be filled by
another plan, and what the task writes would replace what a manifest names. So the command that
fills a folder issues a token before its tasks begin, a small file that names the plan and the
stage, and revokes it once the last has ended. Every task requires it before it begins, and again
right before it writes, which costs one small read each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack

from pipeline.core.digests import json_digest
from pipeline.core.errors import ConflictError, DamagedError, IncompleteError, StoreError
from pipeline.core.paths import ABSENT, is_remote, shown
from pipeline.storage.atomic import PARTIAL_SUFFIX, read_json, require_writable, sweep, write_json
from pipeline.storage.folders import (
    exists,
    files_below,
    is_folder,
    list_folder,
    remove_file,
    remove_tree,
)
from pipeline.storage.locks import Say, held, is_lock, print_nothing
from pipeline.storage.manifest import (
    COPY,
    DECODERS,
    MANIFEST,
    PLAN,
    WORK,
    as_recorded_at_first,
    clear,
    find_manifest,
    lost,
    now,
)
from pipeline.storage.replacing import (
    REPLACED,
    REPLACES,
    clear_begun,
    conflict,
    finished_names,
    put_aside,
)

_ELSEWHERE = "nothing in it was touched, choose another place"
FENCE_FILE = "token.json"


class Terms(TypedDict, total=False):
    """What may be done with what a folder holds; see `recognise`."""

    resume: bool
    overwrite: bool


class Successor(Protocol):
    """What may take the place of an unfinished folder that was begun with another plan."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """Where it comes from, in plain values, kept beside the plan."""
        ...

    def follows(self, begun: Mapping[str, Any]) -> bool:
        """Tell whether it may take the place of what a record says was begun."""
        ...

    def clear(self, path: Path, begun: Mapping[str, Any]) -> None:
        """Remove what was made of that."""
        ...


def identity(content: Mapping[str, Any]) -> str:
    """Return a digest of what decides a result; equal plans make equal results.

    The libraries that decode (`DECODERS` of the source) are recorded and decide nothing: a store
    is known again where they are newer, or where it was made before they were recorded. A resize
    counts as what it was recorded as at first.
    """
    if isinstance(source := content.get("source"), Mapping):
        kept = {key: value for key, value in source.items() if key != DECODERS}
        content = {**content, "source": as_recorded_at_first(kept)}
    return json_digest(as_recorded_at_first(content))


@contextmanager
def claimed(
    path: Path,
    kind: str,
    plan: Mapping[str, Any],
    say: Say,
    **terms: Unpack[Terms],
) -> Iterator[dict[str, Any] | None]:
    """Hold a folder to fill it, and begin or resume it; or recognise it.

    Takes what `recognise` does, and `say`, called about the lock of a dead process and what is
    replaced; yields what `start` returns. Nothing is written to a folder that is refused. One that
    is finished is not locked. `InUseError` says that another process holds it.
    """
    done = recognise(path, kind, plan, **terms)
    if done is not None:
        tidy(path)
        yield done
        return
    with held(path, kind.removeprefix("pixsim "), say):
        # another process may have had it in the meantime
        yield start(path, kind, plan, None, say, **terms)


def tidy(path: Path) -> None:
    """Remove what a process left that was killed after it wrote the manifest."""
    names = list_folder(path)
    if not any(name == WORK or is_lock(name) for name in names):
        return
    # not where somebody uses it or it cannot be written to: it is finished all the same
    with suppress(OSError), held(path, "tidy up", wait=False):
        clear(path)


def start(
    path: Path,
    kind: str,
    plan: Mapping[str, Any],
    successor: Successor | None = None,
    say: Say = print_nothing,
    **terms: Unpack[Terms],
) -> dict[str, Any] | None:
    """Begin or resume a folder that is held, or return the manifest as `recognise` does.

    Where nothing is returned the folder is ready to be filled; what was there and is replaced is
    put aside.
    """
    done = recognise(path, kind, plan, successor, **terms)
    if done is not None:
        clear(path)
        return done
    mine = identity(plan)
    content = {"kind": kind, "identity": mine, "started": now(), "plan": dict(plan)}
    content |= {} if successor is None else {"origin": successor.origin}
    old = find_manifest(path, kind, _ELSEWHERE)
    if old is not None:
        remove_tree(path / WORK / REPLACED)  # of one that was finished since
        put_aside(path, content | {REPLACES: finished_names(old)}, say)
        return None
    begun = _begun(path)
    if begun is not None:
        sweep(path, only_dead=True)
        if begun.get(REPLACES):  # cut short while it was put aside
            put_aside(path, begun, say)
        if begun["identity"] == mine:
            return None
        if successor is not None:
            successor.clear(path, begun)
        else:
            clear_begun(path, kind)
            say(f"{shown(path)} was begun with other settings and not finished: it is made anew")
    write_json(path / PLAN, content)
    return None


def recognise(
    path: Path,
    kind: str,
    plan: Mapping[str, Any],
    successor: Successor | None = None,
    *,
    resume: bool = True,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Tell whether a folder holds, or may be filled with, what a plan makes; change nothing.

    Parameters
    ----------
    path
        The folder of the store or run.
    kind
        `IMAGES` or `RUN`.
    plan
        What decides the content; compared with what the folder holds already.
    successor
        Tells whether this plan may replace another that was not finished.
    resume
        Whether the folder may hold the same, finished or begun.
    overwrite
        Whether it may hold another of its kind, which is replaced.

    Returns
    -------
    The manifest where the folder holds the finished result of the same plan; else None.

    Raises
    ------
    ConflictError
        Where the folder holds anything else. It is left as it is.
    """
    if not resume:
        require_unused(path)
    mine = identity(plan)
    done = find_manifest(path, kind, _ELSEWHERE)
    if done is not None:
        if done.get("identity") == mine:
            return done
        if overwrite:
            return None
        raise ConflictError(conflict(path, kind, plan, done.get("plan", {})))
    begun = _begun(path)
    if begun is None:
        if _is_free(path, kind):
            return None
        return recognise(path, kind, plan, successor, resume=resume, overwrite=overwrite)
    follows = overwrite or (successor is not None and successor.follows(begun))
    if begun["kind"] == kind and (begun["identity"] == mine or follows):
        return None
    raise ConflictError(conflict(path, kind, plan, begun.get("plan", {})))


def _begun(path: Path) -> dict[str, Any] | None:
    """Return the record of a folder that was begun and is not finished, where there is one."""
    try:
        begun = dict(read_json(path / PLAN))
        _ = begun["identity"], begun["kind"]
    except ABSENT:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(
            f"{path / PLAN}: cannot be read ({error}); remove {path} and run the command again"
        ) from error
    return begun


def _is_free(path: Path, kind: str) -> bool:
    """Refuse what is neither finished nor begun and holds anything.

    False where another process began it since it was looked at, so that it is to be looked at anew.
    """
    was_finished = exists(path / COPY)
    if not was_finished and (not exists(path) or _is_untouched(path)):
        return True
    if exists(path / MANIFEST) or exists(path / PLAN):
        return False
    if was_finished:
        raise IncompleteError(lost(path, kind))
    raise ConflictError(
        f"{path}: exists and is no {kind}; nothing in it was touched, "
        "choose another place or remove it"
    )


def could_hold(path: Path, kind: str) -> bool:
    """Tell whether a folder is finished; refuse one in which no plan of a kind can be made.

    Raises `ConflictError` as `recognise` does, whatever the plan is.
    """
    if exists(path / MANIFEST):
        return True
    begun = _begun(path)
    if begun is None:
        return not _is_free(path, kind) and could_hold(path, kind)
    if begun["kind"] != kind:
        raise ConflictError(conflict(path, kind, {"kind": kind}, {"kind": begun["kind"]}))
    return False


def plan_there(path: Path, kind: str) -> dict[str, Any]:
    """Return the plan of what a folder holds, finished or begun; nothing where there is none."""
    record = find_manifest(path, kind, _ELSEWHERE) or _begun(path) or {}
    return dict(record.get("plan", {}))


def refuse_other(path: Path, kind: str, known: Mapping[str, Any]) -> None:
    """Raise `ConflictError` where a folder holds what differs from a plan in what is known of it.

    As `recognise`, before all of the plan is known.
    """
    plan = {**plan_there(path, kind), **known}
    recognise(path, kind, {key: value for key, value in plan.items() if value is not None})


def require_place(path: Path, *, lock: bool = False) -> None:
    """Raise `StoreError` where a folder is not finished and cannot be written to.

    Done before any work is done for it. A remote one is not looked at, since only a write tells
    there, unless `lock` asks to lock it for a moment; `InUseError` says that another process holds
    it.
    """
    if is_remote(path):
        if lock and not exists(path / MANIFEST):
            with held(path, "look whether it can be written to"):
                pass
        return
    with suppress(OSError):  # what cannot be looked at cannot be written to either
        if exists(path / MANIFEST) or (exists(path) and not is_folder(path)):
            return  # it is finished, or something else, which is refused elsewhere
    require_writable(path)


@contextmanager
def only_if_filled(path: Path) -> Iterator[None]:
    """Remove a local folder, and those made above it, where it was not there and is left empty."""
    missing = [] if is_remote(path) else [p for p in (path, *path.parents) if not p.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def require_unused(path: Path) -> None:
    """Raise `ConflictError` where a folder holds anything."""
    if exists(path) and not _is_untouched(path):
        raise ConflictError(
            f"{shown(path)}: holds something already, and was not to be resumed; nothing in it was "
            "touched, choose another place, remove it, or let it be resumed"
        )


def read_plan(path: Path, kind: str) -> dict[str, Any]:
    """Return the record of a folder that was begun and is not finished.

    Raises `IncompleteError` where it was not begun, and `ConflictError` where it is finished.
    """
    if exists(path / MANIFEST):
        raise ConflictError(f"{shown(path)}: this {kind} is finished, there is nothing left to do")
    begun = _begun(path)
    if begun is None:
        raise IncompleteError(
            f"{shown(path)}: was not begun, expected a planned {kind}; plan it first"
        )
    return begun


def require_same(path: Path, kind: str, begun: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Raise `ConflictError` unless a folder was begun with this plan."""
    if begun["identity"] != identity(plan) or begun["kind"] != kind:
        raise ConflictError(conflict(path, kind, plan, begun.get("plan", {})))


def _is_untouched(path: Path) -> bool:
    """Tell whether a folder holds no file but what a start that was cut short leaves."""
    return is_folder(path) and all(
        is_lock(name) or any(part.endswith(PARTIAL_SUFFIX) for part in name.split("/"))
        for name in files_below(path)
    )


@dataclass(frozen=True)
class Token:
    """What lets the tasks of one stage of a plan write; small enough to travel in each of them."""

    folder: Path  # where the command that fills a folder keeps what it works with
    identity: str  # of the plan
    stage: str  # what the tasks do

    @property
    def _content(self) -> dict[str, str]:
        return {"identity": self.identity, "stage": self.stage}

    def issue(self) -> None:
        """Let tasks write from now on; those of any other stage or plan no longer may.

        No task outlives a power cut, so the disk may have it later.
        """
        write_json(self.folder / FENCE_FILE, self._content, lasting=False)

    def revoke(self) -> None:
        """Let no task write any more."""
        remove_file(self.folder / FENCE_FILE)

    @contextmanager
    def issued(self) -> Iterator[None]:
        """Let tasks write for a while."""
        self.issue()
        yield
        self.revoke()

    def require(self) -> None:
        """Raise `StoreError` unless this stage of this plan may write."""
        try:
            content = read_json(self.folder / FENCE_FILE)
        except (*ABSENT, ValueError):
            content = None
        if content != self._content:
            raise StoreError(
                f"{shown(self.folder.parent)}: holds no array or table that this task may write "
                f"('{self.stage}'): it is finished by now, or filled by another command; nothing "
                "was written, begin with that command's first step where it is not finished"
            )
