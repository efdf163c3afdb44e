"""Dask's performance report: what the workers did and when, as a page of HTML."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.core.errors import ClusterError, ConfigError
from pipeline.execution.progress import Reporter
from pipeline.storage.atomic import require_file


def refuse_profile(path: Path, kind: str) -> None:
    """Raise an error where no report can be made, before anything is started.

    Raises
    ------
    ConfigError
        Where there are no worker processes, bokeh is not installed, or the folder is not there.
    """
    if kind == "threads":
        raise ConfigError(
            f"--profile {path}: dask makes its report of worker processes, not of threads; "
            "use --cluster local"
        )
    if find_spec("bokeh") is None:
        raise ConfigError(
            f"--profile {path}: dask draws its report with bokeh, which is not installed; "
            "pip install bokeh"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"--profile {path}: there is no folder {path.parent}; make it first")
    require_file(path, "--profile")


@contextmanager
def profiled(client: Any, path: Path | None, reporter: Reporter) -> Iterator[None]:
    """Write dask's performance report of what runs meanwhile, also where that fails."""
    if path is None:
        yield
        return
    distributed = importlib.import_module("distributed")
    report = distributed.performance_report(filename=str(path))
    with client.as_current():
        report.__enter__()
    try:
        yield
    finally:
        try:
            with client.as_current():
                report.__exit__(None, None, None)
            reporter.say(f"dask's performance report is in {path}")
        except Exception as error:
            # the scheduler may be gone, or lack bokeh: what went wrong first is what counts
            reporter.say(str(ClusterError(f"no performance report was made: {error}")))
