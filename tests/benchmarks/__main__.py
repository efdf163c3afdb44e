"""`make bench`, or `PYTHONPATH=tests python -m benchmarks`: one table of ours beside its peers.

Every row races ours and its peers in one process, in turns and with equal threads, after their
results were compared; a mismatch ends everything. The image sets are made where they are missing
and kept. The targets were set for two cores.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.machine import cores, describe_machine
from benchmarks.measure import MismatchError, SkippedError, equal_threads
from benchmarks.report import print_report, write_json
from benchmarks.results import Row, note_row
from benchmarks.workbench import Workbench

# Each is a module with a function `rows`, imported when asked for: peers take seconds to import.
GROUPS = {
    "distances": "benchmarks.rows_distances",
    "means": "benchmarks.rows_means",
    "medians": "benchmarks.rows_medians",
    "job": "benchmarks.rows_job",
    "decode": "benchmarks.rows_decode",
    "planning": "benchmarks.rows_planning",
    "growth": "benchmarks.rows_growth",
    "command": "benchmarks.rows_command",
    "neighbours": "benchmarks.rows_neighbours",
    "audit": "benchmarks.rows_audit",
    "scaling": "benchmarks.rows_scaling",
    "device": "benchmarks.rows_device",
    "pictures": "benchmarks.pictures",
}
IMAGES = 600_000
LEAST_IMAGES = 2_000
REPEATS = 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rows", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="NAME",
        help=f"only these: {', '.join(GROUPS)}",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements here")
    parser.add_argument(
        "--images", type=int, default=IMAGES, metavar="N",
        help=f"train images of the set that most rows read, {LEAST_IMAGES} or more (default "
        "%(default)s); targets are for the default",
    )  # fmt: skip
    parser.add_argument(
        "--repeat", type=int, default=REPEATS, metavar="N",
        help="turns of each contestant (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=cores(), metavar="N",
        help="threads of each contestant (default: one a core, here %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER",
        help="where image sets are made and kept (default: bench in $PIXSIM_DATA, or in data)",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER",
        help="where pictures are drawn (default: pictures in --data)",
    )  # fmt: skip
    return parser


def _workbench(options: argparse.Namespace) -> Workbench:
    folder = options.data or Path(os.environ.get("PIXSIM_DATA", "data")) / "bench"
    return Workbench(
        count=options.images,
        repeats=options.repeat,
        threads=options.threads,
        folder=folder.absolute(),
        pictures=(options.pictures or folder / "pictures").absolute(),
    )


def _measure(groups: Sequence[str], bench: Workbench) -> Iterator[Row]:
    for group in groups:
        started = time.perf_counter()
        sys.stderr.write(f"measuring {group} ... ")
        sys.stderr.flush()
        try:
            yield from importlib.import_module(GROUPS[group]).rows(bench)
        except SkippedError as reason:
            yield note_row(group, f"not measured: {reason}")
        sys.stderr.write(f"{time.perf_counter() - started:.0f} s\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; return 1 where a result differs from a peer's, else 0."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.images < LEAST_IMAGES or options.repeat < 1 or options.threads < 1:
        parser.error(f"expected --images {LEAST_IMAGES} or more, --repeat and --threads 1 or more")
    bench = _workbench(options)
    rows: list[Row] = []
    try:
        with equal_threads(bench.threads):
            rows.extend(_measure(options.rows, bench))
    except MismatchError as error:
        sys.stderr.write(f"results differ, so nothing more is measured: {error}\n")
        return 1
    finally:
        # also where something failed: what was measured before it took minutes
        _report(rows, bench, options.json)
    return 0


def _report(rows: Sequence[Row], bench: Workbench, path: Path | None) -> None:
    machine, settings = describe_machine(), bench.describe()
    print_report(rows, machine, settings)
    if path is not None:
        measured = [row.as_dict() for row in rows]
        write_json(path, {"machine": machine, "settings": settings, "rows": measured})


if __name__ == "__main__":
    sys.exit(main())
