"""A folder that holds another thing than is to be made there: what differs, and replacing it.

What is finished stays until the new is complete: it is moved below `.work`, which a finish removes
last. Each step can be cut short and is gone on with by the next command, since the plan names what
is to be moved. Behind a URL nothing can be moved; there it is removed before the new is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import hide_in
from pipeline.core.paths import is_remote, shown
from pipeline.storage.atomic import PARTIAL_SUFFIX, write_json
from pipeline.storage.audit_files import AUDIT_FILE, DROP_FILE, PAGE_FILE, TABLES, TAGS_FILE
from pipeline.storage.folders import exists, list_folder, remove_tree
from pipeline.storage.locks import Say
from pipeline.storage.manifest import APPEND, AUDIT, COPY, IMAGES, MANIFEST, PLAN, RUN, WORK
from pipeline.storage.run_files import (
    DISTANCES,
    HIGHLIGHTS_FILE,
    METRICS_FILE,
    NEIGHBOURS,
    PREDICTIONS,
    PROTOTYPES,
    REPORT_FILE,
)
from pipeline.storage.sample_lists import EXCLUDED, HELD_OUT

REPLACED = "replaced"  # below `.work`: what was finished, until the new is
REPLACES = "replaces"  # in the plan: what is to be moved there before anything is written

_MADE = {
    RUN: (PROTOTYPES, DISTANCES, PREDICTIONS, NEIGHBOURS, METRICS_FILE, HIGHLIGHTS_FILE,
          REPORT_FILE, EXCLUDED, HELD_OUT),
    AUDIT: (NEIGHBOURS, AUDIT_FILE, PAGE_FILE, DROP_FILE, TAGS_FILE,
            *(f"{name}.parquet" for name in TABLES)),
}  # fmt: skip
_LONGEST, _CONTEXT = 60, 20  # characters of a value in a message, and of them before a difference
_FOLLOWING = ("step", "neighbours_step", "chunk")  # no keys: they follow from others
_MOST_KEYS = 4
_HEX = 12


def finished_names(content: Mapping[str, Any]) -> list[str]:
    """Return what a finished folder may hold by its manifest, which comes first."""
    below = {name.partition("/")[0] for key in ("files", "arrays") for name in content.get(key, ())}
    return [MANIFEST, COPY, APPEND, *sorted(below - {MANIFEST, COPY})]


def is_made_name(kind: str, name: str) -> bool:
    """Tell whether a finished run or audit holds a file or folder of that name."""
    return name in (*_MADE[kind], MANIFEST, COPY, WORK)


def put_aside(path: Path, plan: Mapping[str, Any], say: Say) -> None:
    """Move what a plan replaces out of the way, in a folder that is held; then it is begun.

    Parameters
    ----------
    path
        The folder.
    plan
        The record of the new plan; `REPLACES` names what is moved.
    say
        Told where it is until the new is complete.
    """
    write_json(path / PLAN, plan)
    aside = path / WORK / REPLACED
    for name in plan[REPLACES]:
        if not exists(path / name):
            continue
        if is_remote(path):
            remove_tree(path / name)
        else:
            aside.mkdir(parents=True, exist_ok=True)
            (path / name).rename(aside / name)
    write_json(path / PLAN, {key: value for key, value in plan.items() if key != REPLACES})
    if not is_remote(path):
        say(f"{shown(path)} is replaced; until the new is complete the old is in {shown(aside)}")


def clear_begun(path: Path, kind: str) -> None:
    """Remove what was made of another plan that was not finished, in a folder that is held."""
    for name in _MADE.get(kind, ()):
        remove_tree(path / name)
    for name in list_folder(path / WORK):
        if name not in (REPLACED, Path(PLAN).name) and not name.endswith(PARTIAL_SUFFIX):
            remove_tree(path / WORK / name)


def conflict(path: Path, kind: str, plan: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the message for a folder that holds another thing: what differs, and what to do."""
    was, now_is = (json.loads(json.dumps(hide_in(dict(plain)))) for plain in (other, plan))
    every = list(_differences(was, now_is))
    found = [one for one in every if one[0][-1:] not in ([name] for name in _FOLLOWING)]
    texts = [f"'{'.'.join(k)}' there is {old}, here {new}" for k, old, new in found or every]
    if every and not found:
        texts = [f"{texts[0]}, which is no key and follows from the shards of the images"]
    if len(texts) > _MOST_KEYS:
        texts = [*texts[: _MOST_KEYS - 1], f"and {len(texts) - _MOST_KEYS + 1} keys more"]
    cure = "ingest --output, run --set images.store=PATH" if kind == IMAGES else "--output"
    return (
        f"{shown(path)}: holds another {kind.removeprefix('pixsim ')} "
        f"({'; '.join(texts) or 'it is of another kind'}); nothing in it was touched, choose "
        f"another place ({cure}), or replace what is there (--overwrite)"
    )


def _differences(was: Any, now_is: Any) -> Iterator[tuple[list[str], str, str]]:
    """Yield the keys that lead to each difference of two values, and both, shortened."""
    if isinstance(was, dict) and isinstance(now_is, dict):
        for key in [*now_is, *(key for key in was if key not in now_is)]:
            if was.get(key) != now_is.get(key):
                for keys, *both in _differences(was.get(key), now_is.get(key)):
                    yield [key, *keys], both[0], both[1]
        return
    yield [], *_shortened(was, now_is)


def _shortened(was: Any, now_is: Any) -> tuple[str, str]:
    """Return two values as texts; of long ones what is around their first difference."""
    first, second = (
        f"{value[:_HEX]}..." if _is_digest(value) else repr(value) for value in (was, now_is)
    )
    if max(len(first), len(second)) <= _LONGEST:
        return first, second
    if isinstance(was, list) and isinstance(now_is, list):
        return _counted(was, now_is), _counted(now_is, was)
    pairs = enumerate(zip(first, second, strict=False))
    alike = next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
    start = max(0, alike - _CONTEXT)
    return _cut(first, start), _cut(second, start)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _counted(values: Sequence[Any], others: Sequence[Any]) -> str:
    """Return how many values there are, and the first that the others do not have."""
    own = next((value for value in values if value not in others), None)
    return f"{len(values):,} values" + ("" if own is None else f" with {_cut(repr(own), 0)}")


def _cut(text: str, start: int) -> str:
    part = text[start : start + _LONGEST]
    return ("..." if start else "") + part + ("..." if start + _LONGEST < len(text) else "")
