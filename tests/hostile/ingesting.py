"""Ingests cases in a process of its own: `python ingesting.py FOLDER`.

It ingests what `FOLDER/cases.json` lists, with the command line and with the API, and writes down
what became of each.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.core.blocks import STATUSES

MOST_ADDRESSES = 2**33  # of the process, so that a failing case does not harm others


def peak_bytes() -> int:
    """Return the most memory this process held; not what the one that started it did."""
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def ingest_all(folder: Path) -> None:
    """Ingest the cases of `cases.json`, and write what became of them into `outcomes.json`."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    outcomes = {}
    cases = json.loads((folder / "cases.json").read_text())
    for case in cases:
        (folder / "now").write_text(case["name"])  # what a crash was at
        outcomes[case["name"]] = attempt(case, folder / "stores" / f"{case['name']}.zarr")
    found = {
        "outcomes": outcomes,
        "peak": peak_bytes(),
        "heavy": sorted({"torch", "torchvision"} & set(sys.modules)),
    }
    (folder / "outcomes.json").write_text(json.dumps(found))


def attempt(case: dict[str, Any], store: Path) -> dict[str, Any]:
    """Ingest one case by the command line; then, where samples are bad, by the API without them."""
    from pipeline import ingest
    from pipeline.config.job_settings import load_images
    from pipeline.core.errors import PixsimError

    outcome = by_command_line(case, store)
    bad = store / "bad_samples.csv"
    try:
        if bad.exists():
            with bad.open(encoding="utf-8", newline="") as file:
                outcome["listed"] = list(csv.DictReader(file))
            is_job = case["source"].endswith(".yml")
            images: Any = {"source": case["source"], **case["settings"], "max_bad": "100%"}
            images = load_images(Path(case["source"]), ["max_bad=100%"]) if is_job else images
            ingest(images, store)
        if "listed" in outcome or outcome.get("code") == 0:
            outcome["store"] = stored(store)
    except PixsimError as error:
        outcome["error"] = str(error)
    except BaseException:
        outcome["crash"] = traceback.format_exc()
    return outcome


def by_command_line(case: dict[str, Any], store: Path) -> dict[str, Any]:
    from pipeline.cli import main

    settings = [f"{key}={json.dumps(value)}" for key, value in case["settings"].items()]
    words = [
        "ingest",
        case["source"],
        "-o",
        str(store),
        *(["--set", *settings] if settings else []),
    ]
    out, err = io.StringIO(), io.StringIO()
    outcome: dict[str, Any] = {}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            outcome["code"] = main(words)
        except BaseException:
            outcome["crash"] = traceback.format_exc()
    return outcome | {"out": out.getvalue(), "err": err.getvalue()}


def stored(path: Path) -> dict[str, Any]:
    """Return what a store holds: its digest and the samples by status."""
    content = json.loads((path / "manifest.json").read_text())
    table = pq.read_table(path / "samples.parquet", columns=["status"])
    statuses = table["status"].to_pylist()
    counts = {status: statuses.count(status) for status in STATUSES if status in statuses}
    return {"digest": content["digest"], "statuses": counts}


if __name__ == "__main__":
    ingest_all(Path(sys.argv[1]))
