"""The phases of a command, by the functions that they begin with."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

# where a function is looked up, its name, and the phase that it begins
_BEGINNINGS = (
    ("pipeline.ingestion.ingest", "_fill", "plan"),
    ("pipeline.ingestion.ingest", "write_partitions", "partitions"),
    ("pipeline.ingestion.ingest", "finish", "tally"),
    ("pipeline.ingestion.steps", "compact", "bad samples"),
    ("pipeline.ingestion.steps", "write_samples", "samples"),
    ("pipeline.ingestion.steps", "write_duplicates", "duplicates"),
    ("pipeline.ingestion.steps", "consolidate", "finish"),
    ("pipeline.ingestion.append", "_write_shards", "append"),
    ("pipeline.ingestion.append", "_commit", "commit"),
    ("pipeline.jobs.job", "run_plan", "begin"),
    ("pipeline.jobs.job", "_fit", "fit"),
    ("pipeline.jobs.job", "_evaluate", "evaluate"),
    ("pipeline.jobs.job", "find_neighbours", "neighbours"),
    ("pipeline.jobs.job", "_finish", "finish of the run"),
    ("pipeline.jobs.audit", "write_neighbours", "search of the audit"),
    ("pipeline.jobs.audit", "write_findings", "findings"),
    ("pipeline.jobs.audit", "with_page", "page of the audit"),
)
INGEST = ("plan", "partitions", "tally", "bad samples", "samples", "duplicates", "finish")
APPEND = ("append", "commit")
RUN = ("begin", "fit", "evaluate", "neighbours", "finish of the run")
AUDIT = ("search of the audit", "findings", "page of the audit")


def announce(entered: Callable[[str], None]) -> None:
    """Have `entered` called with each phase that this process begins."""
    for place, name, phase in _BEGINNINGS:
        module = importlib.import_module(place)
        setattr(module, name, _announced(getattr(module, name), phase, entered))


def _announced(
    function: Callable[..., Any], phase: str, entered: Callable[[str], None]
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        entered(phase)
        return function(*arguments, **keywords)

    return call
