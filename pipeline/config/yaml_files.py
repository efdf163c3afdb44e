"""YAML files of settings: read with plain types only, refused with the key and the value; written.

A message shows a value in a few words: it may be a page long, or a maze of aliases.
"""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver

from pipeline.core.errors import ConfigError, describe, nearest

# what lies under these keys may hold keys and passwords
_SECRETIVE = {"storage_options", "options", "dask"}

_NAMELESS = ("x-", ".")
_MERGE = "tag:yaml.org,2002:merge"
_MOST_KEYS = 10_000  # merges of merges may grow without end
_MOST_BYTES = 2**22  # which take half a minute
_ENDS_OF_LINES = frozenset("\x85\u2028\u2029")
# YAML 1.1 has `y` and `n` for booleans, ruamel.yaml numbers such as `1e3` and `-_1`: what is called
# so (an axis, a class, a commit) stays a text
_TEXT = re.compile(r"[yYnN=]|[-+.]_.*|[-+]?[\d_]+[eE][-+]?\d+|[-+]?[\d_]*\.[\d_]*[eE]\d+")


class _Resolver(VersionedResolver):
    """Scalars as in YAML 1.1, whatever version a file names: `010` is 8, `on` is true."""

    processing_version = (1, 1)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and _TEXT.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)


class _Constructor(SafeConstructor):
    """Plain types only, and no key twice.

    What a mapping merges (`<<: *other`) stands behind its own keys, and of several the first wins.
    """

    def flatten_mapping(self, node: MappingNode) -> None:
        """Refuse a key given twice without showing its values; ruamel.yaml would show them."""
        known: set[Hashable] = set()
        for key_node, _ in node.value if node.merge is None else ():
            key = None if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if key_node.tag == _MERGE or not isinstance(key, Hashable):
                continue
            if key in known:
                text = f"{key!r:.100} is given twice"
                raise MarkedYAMLError(problem=text, problem_mark=key_node.start_mark)
            known.add(key)
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise YAMLError(f"a mapping merges more than {_MOST_KEYS:,} keys")


def parse_yaml(text: str) -> Any:
    """Parse YAML with plain types only.

    Raises
    ------
    ValueError
        Where it is none, with the reason and its line in one line.
    """
    parser = YAML(typ="safe", pure=True)
    parser.Constructor, parser.Resolver = _Constructor, _Resolver
    try:
        return parser.load(text)
    except Exception as error:  # whatever a parser raises of a text that is none
        raise ValueError(_reason(error)) from None


class _Representer(SafeRepresenter):
    """Writes what a parser would take for the end of a line as an escape."""

    def text(self, value: str) -> Any:
        style = '"' if not _ENDS_OF_LINES.isdisjoint(value) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Representer.add_representer(str, _Representer.text)


def to_yaml(value: Any) -> str:
    """Return plain values as YAML on one line, which `parse_yaml` reads as the same values.

    Examples
    --------
    >>> to_yaml({"classes": ["3", "a cat"], "k": 5, "near": None})
    "{classes: ['3', a cat], k: 5, near: null}"
    """
    writer, text = YAML(typ="safe", pure=True), io.StringIO()
    writer.Resolver, writer.version, writer.Representer = _Resolver, (1, 1), _Representer
    writer.default_flow_style = True
    writer.brace_single_entry_mapping_in_flow_sequence, writer.width = True, sys.maxsize
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.representer.ignore_aliases = lambda _: True
    writer.dump([value], text)  # in brackets, so that all of it is on one line
    return text.getvalue().partition("[")[2][:-2]


def _reason(error: Exception) -> str:
    """Return why a text is no YAML, without the lines around it, which may hold secrets."""
    if not isinstance(error, MarkedYAMLError):
        return " ".join(str(error).split()) or type(error).__name__
    mark = error.problem_mark or error.context_mark
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    tab = ": indent with blanks, not with tabs" if "'\\t'" in str(error.problem) else ""
    return " ".join(part for part in (error.context, error.problem) if part) + where + tab


def load_yaml(path: Path, key: str = "") -> Any:
    """Read a YAML file with plain types only.

    Parameters
    ----------
    path
        The file.
    key
        What files of its kind have a key of: where there is no such file, one of them is suggested.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"holds {size:,} bytes, expected {_MOST_BYTES:,} at most")
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; {_instead(path, key)}") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {reason}") from None


def _instead(path: Path, key: str) -> str:
    """Return the file most like a missing one, of its folder or `workflows`, or what makes one."""
    for folder in (path.parent, Path("workflows")):
        files = [file.name for file in sorted(folder.glob("*.yml")) if _has_key(file, key)]
        near = difflib.get_close_matches(path.name, files, n=1, cutoff=0.0) or files
        if near:
            return f"expected a file such as {folder / near[0]}"
    return "'pixsim init SOURCE' writes a job file" if key else "correct the path"


def _has_key(path: Path, key: str) -> bool:
    """Tell whether a file looks like YAML with a key at the top; every file, without one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return not key or re.search(rf"^[\"']?{key}[\"']?\s*:", text, re.MULTILINE) is not None


def load_mapping(path: Path, key: str = "") -> dict[str, Any]:
    """Read a YAML file of settings, as `load_yaml`; keys `x-NAME` and `.NAME` are none."""
    content = load_yaml(path, key)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {describe(content)}, expected a mapping of settings")
    # of no meaning by themselves: what an anchor there names is merged elsewhere
    return {name: content[name] for name in content if not str(name).startswith(_NAMELESS)}


def refuse_unknown(
    content: Mapping[str, Any], model: type[BaseModel], where: str, prefix: str
) -> None:
    for key in content:
        if key not in model.model_fields:
            hint = _hint(str(key), model)
            raise ConfigError(f"{where}: unknown key '{prefix}{key}'; {hint}")


# what keys are often called that have another name here
_MEANT = {
    "source": ("path", "paths", "folder", "directory", "dir", "file", "files", "url", "uri", "data",
               "dataset", "place", "location"),
    "resize": ("size", "shape", "image_size", "height", "width"),
    "mode": ("color", "colour", "colors", "grey", "gray", "channels"),
    "depth": ("bits", "dtype"),
    "images": ("source", "path", "data", "dataset", "input"),
    "fit": ("train", "train_split"),
    "evaluate": ("test", "test_split", "validate", "valid", "val"),
    "exclude": ("without", "ignore", "skip"),
    "neighbours": ("neighbors", "knn"),
    "output": ("out", "folder", "path"),
    "k": ("n", "n_neighbors", "n_neighbours", "neighbors", "neighbours"),
    "kind": ("type",),
    "workers": ("n_workers", "processes", "nodes"),
}  # fmt: skip


def _hint(key: str, model: type[BaseModel]) -> str:
    """Return the key that is meant: by its meaning, by where it belongs, or by its letters."""
    known = model.model_fields
    meant = [name for name in known if key.casefold() in _MEANT.get(name, ())]
    for name, field in known.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and key in inner.model_fields:
            meant.append(f"{name}.{key}")
    return f"did you mean '{meant[0]}'?" if meant else nearest(key, known)


_EXPECTED = {
    "int_type": "expected a whole number, such as 10",
    "int_parsing": "expected a whole number, such as 10",
    "int_from_float": "expected a whole number, such as 10",
    "float_type": "expected a number, such as 0.5",
    "float_parsing": "expected a number, such as 0.5",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "tuple_type": "expected a list, such as [a, b]",
    "too_short": "expected at least 1",
}


def first_problem(error: ValidationError) -> str:
    """Return the first of the things that are wrong: the key, the value, what was expected."""
    problem = error.errors()[0]
    keys = [str(part) for part in problem["loc"]]
    if problem["type"] == "missing":
        return f"'{'.'.join(keys)}' is missing; every job needs it"
    where = ".".join(keys) or "the job"
    message = _EXPECTED.get(problem["type"], "{}").format(problem["msg"])
    message = message.removeprefix("Value error, ").replace("Input should be ", "expected ")
    message = message[:1].lower() + message[1:]
    given: object = problem["input"]
    inner = given if isinstance(given, Mapping) else ()
    if _SECRETIVE & {*keys, *inner}:
        return f"'{where}': {message}"
    if problem["type"] == "string_pattern_mismatch" and keys == ["device"]:
        message = "expected auto, cpu, cuda, cuda:N or torch:DEVICE"
    return f"'{where}' is {describe(problem['input'])}: {message}"
