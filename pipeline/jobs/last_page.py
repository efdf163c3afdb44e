"""The page that a run or an audit ends with: one that cannot be made loses nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import PixsimError
from pipeline.core.paths import shown
from pipeline.execution.progress import Reporter


def with_page(
    make: Callable[[dict[str, Any]], Mapping[str, Any]],
    content: dict[str, Any],
    path: Path,
    reporter: Reporter,
    cure: str = "",
) -> dict[str, Any]:
    """Make a page of what is written and checked by now; return what the manifest will say.

    Parameters
    ----------
    make
        Writes the page, and returns the content that it is given with the page.
    content
        What the manifest says without a page.
    path
        Where it is written.
    reporter
        Told where it is, or why it could not be made.
    cure
        What tries it again.
    """
    name = path.stem
    try:
        whole = dict(make(content))
    except PixsimError:
        raise  # what was written is not there; the same command goes on from here
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk
        reporter.say(f"the {name} was not made ({type(error).__name__}: {error}){cure}")
        return content
    reporter.say(f"{name} in {shown(path)}")
    return whole
