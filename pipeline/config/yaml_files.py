"""YAML files of settings: read with plain types only, refused with the key and the value.

A message holds what was met in a few words: a value may be a page long, or a maze of aliases.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.core.errors import ConfigError
from pipeline.core.messages import describe, nearest

# what lies under these keys may hold keys and passwords
_SECRETIVE = {"storage_options", "options", "dask"}


_NAMELESS = ("x-", ".")
_MERGE = "tag:yaml.org,2002:merge"
_MOST_KEYS = 10_000  # merges of merges may grow without end


# in C where PyYAML was built with it, which is several times as fast
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_SafeLoader):  # type: ignore[misc]
    """Plain types only, and no key twice: YAML's own loaders keep the last in silence.

    What a mapping merges (`<<: *other`) stands behind its own keys, and of several the first wins.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._merged: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what a mapping merges before its own keys, which are looked at before, once."""
        if id(node) not in self._merged:
            self._merged.add(id(node))
            own = [key for key, _ in node.value if key.tag != _MERGE]
            keys = [self.construct_object(key, deep=True) for key in own]
            for key in keys:
                if keys.count(key) > 1:
                    raise yaml.YAMLError(f"key {key!r} is given twice")
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise yaml.YAMLError(f"a mapping merges more than {_MOST_KEYS:,} keys")


def load_yaml(path: Path) -> Any:
    """Read a YAML file with plain types only."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # noqa: S506
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; expected a file such as {_example(path)}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from None


def _example(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("workflows")
    files = sorted(file.name for file in folder.glob("*.yml"))
    return f"{folder / nearest_file(path.name, files)}" if files else "workflows/digits.yml"


def nearest_file(name: str, files: Sequence[str]) -> str:
    """Return the file name most like `name`."""
    return (difflib.get_close_matches(name, files, n=1, cutoff=0.0) or list(files))[0]


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping of settings; keys `x-NAME` and `.NAME` are none."""
    content = load_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {describe(content)}, expected a mapping of settings")
    # of no meaning by themselves: what an anchor there names is merged elsewhere
    return {key: content[key] for key in content if not str(key).startswith(_NAMELESS)}


def refuse_unknown(
    content: Mapping[str, Any], model: type[BaseModel], where: str, prefix: str
) -> None:
    for key in content:
        if key not in model.model_fields:
            hint = nearest(str(key), model.model_fields)
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'; {hint}")


def _is_mapping(value: object) -> bool:
    return isinstance(value, Mapping)


def first_problem(error: ValidationError) -> str:
    """Return the first of the things that are wrong: the key, the value, what was expected."""
    problem = error.errors()[0]
    keys = [str(part) for part in problem["loc"]]
    if problem["type"] == "missing":
        return f"'{'.'.join(keys)}' is missing; every job needs it"
    where = ".".join(keys) or "the job"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    inner = problem["input"] if _is_mapping(problem["input"]) else ()
    if _SECRETIVE & {*keys, *inner}:
        return f"'{where}': {message}"
    if problem["type"] == "string_pattern_mismatch" and keys == ["device"]:
        message = "expected auto, cpu, cuda, cuda:N or torch:DEVICE"
    return f"'{where}' is {describe(problem['input'])}: {message}"
