"""Options that several commands share, in groups."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

import pipeline
from pipeline import output

_FLAG = Parameter(negative=())
_SEVERAL = Parameter(consume_multiple=True, negative=())
OUTPUT = Parameter(name=["--output", "-o"])
Output = Annotated[str | None, OUTPUT]
Override = Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True, negative=())]


def _whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """Read a whole number; cyclopts would round `1.5`."""
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"'{text}', expected a whole number, such as 10") from None


WholeNumber = Annotated[int, Parameter(converter=_whole_number)]


@Parameter(name="*")
@dataclass(frozen=True)
class Printed:
    """What is printed, and how.

    Attributes
    ----------
    format
        text; json: one document with all that is known; csv: the tables, of several in one the
        first column names each.
    quiet
        Print nothing but errors, and what --format asks for.
    """

    format: Literal["text", "json", "csv"] = "text"
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False

    @property
    def reporter(self) -> Any:
        """What prints notices and the progress, to stderr."""
        return pipeline.make_reporter(quiet=self.quiet)

    def show(self, content: Any, parts: Iterable[output.Part]) -> None:
        """Print a result: lines and tables as text, or its content."""
        if self.format != "text":
            output.write(content, parts, self.format)
        elif not self.quiet:
            output.show(parts)

    def note(self, text: str) -> None:
        """Print a line about a result, such as the file of a picture."""
        if not self.quiet:
            print(text, file=None if self.format == "text" else sys.stderr)


@Parameter(name="*")
@dataclass(frozen=True)
class IngestPieces:
    """What of an ingest is done, and in which pieces.

    Attributes
    ----------
    append
        Add the samples to the store, all of them or none.
    overwrite
        Replace the store where it was made from something else; the old one stays until the new is
        complete.
    only
        One step: plan; N or N:M, partitions; finish.
    shard
        Images per shard; default: some MB's worth.
    """

    append: Annotated[bool, _FLAG] = False
    overwrite: Annotated[bool, _FLAG] = False
    only: str | None = None
    shard: WholeNumber | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Placement:
    """Where to, and where tasks run.

    Attributes
    ----------
    output
        The folder to write, instead of the job's.
    cluster
        threads, local, a scheduler's address, or a file of workflows/clusters.
    """

    output: Output = None
    cluster: str | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class JobOptions(Placement):
    """What replaces keys of a job that have options of their own.

    Attributes
    ----------
    output
        The run folder; default: the job's, data/runs/NAME.
    cluster
        threads, local, a scheduler's address, or a file of workflows/clusters.
    fit
        The split that prototypes are made from; default: train, or the only one.
    evaluate
        The split or splits that are measured; default: test, else valid or val, else that of --fit.
    classes
        The classes to tell apart; default: all.
    without
        A table of samples to leave out, or a folder with keep.parquet.
    """

    fit: str | None = None
    evaluate: Annotated[list[str] | None, _SEVERAL] = None
    classes: Annotated[list[str] | None, _SEVERAL] = None
    without: str | None = None

    def changes(self) -> dict[str, Any]:
        """Return the keys of a job that are given."""
        return {
            "output": self.output, "cluster": self.cluster, "exclude": self.without,
            "fit": self.fit, "evaluate": self.evaluate, "classes": self.classes,
        }  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True)
class Again:
    """What becomes of what the folder holds already.

    Attributes
    ----------
    resume
        Go on with what it holds of the same; else it must be new or empty.
    overwrite
        Replace what it holds of another, store and folder; the old stays until the new is complete.
    """

    resume: bool = True
    overwrite: Annotated[bool, _FLAG] = False


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions(Again):
    """What else is written of a run.

    Attributes
    ----------
    save_job
        Write the job file that the run amounts to, with the splits that were chosen.
    profile
        An HTML file for dask's performance report.
    """

    save_job: Path | None = None
    profile: Path | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class Explained:
    """What else is shown of an explained image.

    Attributes
    ----------
    neighbours
        How many of the nearest images to show, by each metric of the run; default: none.
    pixels
        ROWS,COLS to show as a shaded table, such as 5:25,4:24.
    picture
        A PNG or SVG file to draw: image, prototypes, differences, nearest, distances, pixels.
    """

    neighbours: WholeNumber = 0
    pixels: str | None = None
    picture: Path | None = None


NO_PIECES, NOWHERE_ELSE, AS_IT_IS = IngestPieces(), Placement(), JobOptions()
GO_ON, ONLY_RUN, ONLY_DISTANCES, AS_TEXT = Again(), RunOptions(), Explained(), Printed()
