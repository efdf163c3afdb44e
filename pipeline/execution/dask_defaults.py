"""What pixsim asks of dask where dask's own configuration does not say otherwise.

Dask reads files (`~/.config/dask/*.yaml`, `/etc/dask`) and environment variables (`DASK_*`), and a
program may set values in Python. All of these win: what is asked here takes the place of dask's own
defaults only, and goes when the job ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask.config

ALWAYS: dict[str, Any] = {
    "distributed": {
        # a job without workers fails, instead of waiting for ever
        "scheduler": {"no-workers-timeout": "10 minutes"},
        # the plan keeps a worker below its limit; one that is paused while it holds would not go on
        "worker": {"memory": {"pause": False, "terminate": 1.0}},
    }
}


@contextmanager
def dask_defaults(*asked: Mapping[str, Any]) -> Iterator[None]:
    """Put values into dask's configuration where the user did not, for as long as this is open.

    Parameters
    ----------
    asked
        Nested mappings; the first that says something counts.
    """
    given, defaults = dask.config.collect(), dask.config.merge(*dask.config.defaults)
    changed: dict[str, Any] = {}
    for values in reversed([*asked, ALWAYS]):
        for section in values:
            changed.setdefault(section, copy.deepcopy(dask.config.config.get(section, {})))
        for section, inner in values.items():
            whole = {section: changed[section]}
            _put({section: inner}, whole, given, defaults, dask.config.config)
            changed[section] = whole[section]
    with dask.config.set(changed):
        yield


def _put(
    asked: Mapping[str, Any], into: dict[str, Any], given: object, defaults: object, now: object
) -> None:
    """Put values into a configuration but for what is given, or was set since dask's defaults."""
    for key, value in asked.items():
        name = dask.config.canonical_name(key, into)
        mine, usual, current = (_inner(level, name) for level in (given, defaults, now))
        if isinstance(value, Mapping) and isinstance(into.get(name, {}), dict):
            into[name] = into.get(name) or {}
            _put(value, into[name], mine, usual, current)
        elif mine is _NOTHING and current in (usual, _NOTHING):
            into[name] = copy.deepcopy(value)


_NOTHING = object()


def _inner(level: object, key: str) -> Any:
    """Return what a level of a configuration has under a key, spelled either way."""
    if not isinstance(level, Mapping):
        return _NOTHING
    return level.get(dask.config.canonical_name(key, level), _NOTHING)
