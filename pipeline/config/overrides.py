"""Texts `key=value` that replace settings, as `--set` of the command line takes them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

from pipeline.config.cluster_settings import cluster_mapping
from pipeline.config.yaml_files import parse_yaml
from pipeline.core.errors import ConfigError, describe


def with_overrides(content: Any, overrides: Iterable[str]) -> Any:
    """Return a mapping with `key=value` texts put into it; see `load_job`."""
    if not isinstance(content, dict):
        return content
    changed = copy.deepcopy(content)
    for override in overrides:
        _override(changed, override)
    return changed


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"[\w.]+", key):
        raise ConfigError(f"--set {override}: expected KEY=VALUE, such as --set device=cpu")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ConfigError(f"--set {override}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    mapping = content
    for parent in parents:
        inner = mapping.setdefault(parent, {})
        if isinstance(inner, str):
            inner = {"source": inner} if parent == "images" else cluster_mapping(inner)
            mapping[parent] = inner
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: '{parent}' is {describe(inner)}, not a mapping")
        mapping = inner
    mapping[last] = value
