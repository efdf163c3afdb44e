"""Hostile input, from end to end: every file ends as a status or as one clear error.

The corpus is that of `hostile`: 160 image files and some 300 containers (archives, NumPy's
files, Parquet, CSV lists, IDX, Zarr stores and NetCDF files of others, job files) with bombs of up
to 512 MiB; `make test` takes a few of them. Processes ingest the containers by the command line,
and once more by the API, without the bad samples, where there are some. Nothing else may be
written, nothing of the input may be run, and each process may hold 700 MB at most. 300 MB of it are
the libraries; the rest is what pyarrow takes for a page of Parquet: some six times the largest
image in it, which is 32 MiB here.

Most bits of a Parquet page cannot flip unseen, since pages have checksums. The footer has none: a
bit that flips there may change a name, and is only shown to stop nothing.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict

import hostile
import pyarrow.parquet as pq
import pytest
from hostile import ingesting

import pipeline
from pipeline.cli import main
from pipeline.core.blocks import OK, STATUSES
from pipeline.core.errors import BadSamplesError

MOST_BYTES = 700 * 10**6
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def snapshot(root):
    """Return what is below a folder: kind, size, time and target of everything."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)  # noqa: PTH118 (names are bytes)
            status = os.lstat(path)
            target = os.readlink(path) if os.path.islink(path) else b""  # noqa: PTH114, PTH115
            found[path] = (status.st_mode, status.st_size, status.st_mtime_ns, target)
    return found


class Corpus:
    """What was ingested, what became of it, and what the disk held before and after."""

    def __init__(self, root, every):
        self.root, self.trap = root, root / "trap"
        made = hostile.write_containers(root / "corpus", self.trap)
        assert len({case.name for case in made}) == len(made) > 200
        chosen = {
            "job-html.yml",
            *(name for case in made[::every] for name in (case.name, case.like)),
        }
        cases = [case for case in made if case.name in chosen]
        self.cases = {case.name: case for case in cases}
        for name in ("home", "tmp", "here"):
            (root / name).mkdir()
        # two processes, one a core, where there are many
        count = 2 if every == 1 else 1
        self.folders = [root / f"part{number}" for number in range(count)]
        for number, folder in enumerate(self.folders):
            folder.mkdir()
            part = [asdict(case) for case in cases[number::count]]
            (folder / "cases.json").write_text(json.dumps(part))
        self.before = snapshot(root)
        processes = [self._started(folder) for folder in self.folders]
        self.said = [process.communicate()[0] for process in processes]
        self.codes = [process.returncode for process in processes]
        self.after = snapshot(root)
        paths = [folder / "outcomes.json" for folder in self.folders]
        self.found = [json.loads(path.read_text()) for path in paths if path.exists()]
        self.outcomes = {k: v for found in self.found for k, v in found["outcomes"].items()}

    def _started(self, folder):
        idx = self.root / "corpus" / "idx"
        environment = {
            **os.environ, "HOME": str(self.root / "home"), "TMPDIR": str(self.root / "tmp"),
            "PIXSIM_DATA": str(self.root / "data"), "PIXSIM_CATALOG": str(idx / "catalog.yml"),
            "PIXSIM_DATASETS": str(idx),
        }  # fmt: skip
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", ingesting.__file__, str(folder)],
            cwd=self.root / "here", env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def store(self, name):
        return next(f for folder in self.folders for f in folder.glob(f"stores/{name}.zarr"))


@pytest.fixture(
    scope="module", params=[10, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def corpus(request, tmp_path_factory):
    return Corpus(tmp_path_factory.mktemp("hostile"), request.param)


def test_nothing_stops_the_process(corpus):
    at = [(folder / "now").read_text() for folder in corpus.folders]
    assert set(corpus.codes) == {0}, (at, corpus.said)
    assert set(corpus.outcomes) == set(corpus.cases)


def test_every_container_ends_as_a_status_or_as_one_error(corpus):
    wrong = {name: corpus.outcomes[name] for name in corpus.cases if not as_said(corpus, name)}
    assert wrong == {}


def as_said(corpus, name):
    """Tell whether the outcome of a case is the one that it must have."""
    case, outcome = corpus.cases[name], corpus.outcomes[name]
    if "crash" in outcome:
        return False
    counts = outcome.get("store", {}).get("statuses")
    if case.error is not None:
        message = outcome.get("error", outcome["err"])
        return counts is None and re.search(case.error, message) is not None
    if counts is None:
        return case.stored is None and not case.left_out and outcome["code"] in (1, 2)
    left_out = {status: count for status, count in counts.items() if status != "ok"}
    if case.stored is None and not case.left_out:
        return True
    return left_out == case.left_out and case.stored in (None, counts.get("ok", 0))


def test_a_flipped_bit_is_noticed_or_changes_nothing(corpus):
    flipped = {name: case for name, case in corpus.cases.items() if case.like}
    wrong, noticed = {}, 0
    for name, case in flipped.items():
        outcome, whole = corpus.outcomes[name], corpus.outcomes[case.like]
        noticed += outcome["code"] != 0
        if outcome["code"] == 0 and outcome["store"] != whole["store"]:
            wrong[name] = outcome
    assert wrong == {}
    assert noticed > len(flipped) / 2


def test_the_command_line_says_what_is_wrong_in_one_line(corpus):
    wrong = {}
    for name, outcome in corpus.outcomes.items():
        if outcome.get("code") == 0:
            continue
        *table, last = outcome["err"].splitlines()
        notes = [line for line in table if re.match(r"\d\d:\d\d:\d\d ", line)]
        table = table[len(notes) :]
        fine = last.startswith("pixsim: ") and (bool(table) == ("listed" in outcome))
        if not fine or outcome["code"] != (1 if name == "job-url.yml" else 2):
            wrong[name] = outcome
        if "Traceback" in outcome["err"] or CONTROLS.search(outcome["err"] + outcome["out"]):
            wrong[name] = outcome
    assert wrong == {}


def test_nothing_else_is_written_and_nothing_is_run(corpus):
    def elsewhere(found):
        own = tuple(os.fsencode(folder) for folder in corpus.folders)
        return {path: value for path, value in found.items() if not path.startswith(own)}

    before, after = elsewhere(corpus.before), elsewhere(corpus.after)
    for name in ("home", "tmp", "here"):
        place = os.fsencode(corpus.root / name)
        before.pop(place), after.pop(place)  # files came and went in them
        assert list((corpus.root / name).iterdir()) == []
    assert after == before
    assert not corpus.trap.exists()


def test_memory_stays_small(corpus):
    assert max(found["peak"] for found in corpus.found) < MOST_BYTES
    assert all(found["heavy"] == [] for found in corpus.found)


# Folders -----------------------------------------------------------------------------------------

SAME = {"resize": [24, 32], "mode": "RGB"}


def digest_of(store):
    return pipeline.describe(store)["digest"]


def spelled(path):
    """Return the name of a file, bytes that are no UTF-8 spelled out."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")


def rows_of(store):
    return pq.read_table(store / "samples.parquet").to_pylist()


def written(root, files):
    """Write images of two classes in turn; return each by its path below the root."""
    paths = {}
    for number, file in enumerate(files):
        name = file.name if file.name.endswith(".png") else f"{file.name}.png"
        paths[f"train/{hostile.NAMES[number % 2]}/{name}"] = file
    for path, file in paths.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(file.data)
    return paths


def allowed(file):
    """Return the statuses that a file may have where all are brought to 8 bits and one size."""
    other = {"wrong size"} if "16-bit" in file.name or "float" in file.name else set()
    return {STATUSES[status] for status in file.statuses} | other


def test_a_folder_of_hostile_images_keeps_the_good_ones_and_lists_the_others(tmp_path):
    root = tmp_path / "set"
    good = [hostile.Hostile(f"good-{n}", hostile.small(n), (OK,)) for n in range(20)]
    paths = written(root, [*good, *hostile.hostile_files()])
    settings = {"source": str(root), **SAME}
    with pytest.raises(BadSamplesError) as raised:
        pipeline.ingest(settings, tmp_path / "all.zarr")
    with (tmp_path / "all.zarr" / "bad_samples.csv").open(newline="", encoding="utf-8") as file:
        listed = {row["source"]: row["status"] for row in csv.DictReader(file)}
    assert raised.value.count == len(listed) > 60
    store = pipeline.ingest(settings, tmp_path / "all.zarr", max_bad="100%")
    statuses = {row["source"]: row["status"] for row in rows_of(store)}
    assert {path: status for path, status in statuses.items() if status != "ok"} == listed
    assert {path: s for path, s in statuses.items() if s not in allowed(paths[path])} == {}
    for path in listed:
        (root / path).unlink()
    alone = pipeline.ingest(settings, tmp_path / "good.zarr")
    assert digest_of(store) == digest_of(alone)
    kept = [path for path, status in statuses.items() if status == "ok"]
    assert kept == [row["source"] for row in rows_of(alone)]
    assert len(kept) >= 40


def test_what_is_no_image_file_is_listed_and_left_out(tmp_path, capsys):
    said = hostile.write_specials(tmp_path / "set")
    words = ["ingest", str(tmp_path / "set"), "-o", str(tmp_path / "a.zarr")]
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) >= len(said)
    with (tmp_path / "a.zarr" / "bad_samples.csv").open(newline="", encoding="utf-8") as file:
        listed = {row["source"].rpartition("/")[2]: row["detail"] for row in csv.DictReader(file)}
    assert set(listed) == set(said)
    assert {name: listed[name] for name, part in said.items() if part not in listed[name]} == {}
    assert main([*words, "--set", "max_bad=100%"]) == 0
    assert [row["status"] for row in rows_of(tmp_path / "a.zarr")].count("ok") == 3


def test_strange_names_are_kept_in_tables_and_spelled_out_on_the_command_line(tmp_path, capsys):
    count = hostile.write_strange_names(tmp_path / "set")
    folder = tmp_path / "set" / "train"
    expected = sorted(spelled(path) for path in folder.iterdir())
    assert main(["ingest", str(tmp_path / "set"), "-o", str(tmp_path / "a.zarr")]) == 0
    shown = capsys.readouterr()
    assert CONTROLS.search(shown.out + shown.err) is None
    assert "\\x1b[2J" in shown.out
    found = pipeline.describe(tmp_path / "a.zarr")
    assert found["class_names"] == expected
    rows = rows_of(tmp_path / "a.zarr")
    assert len(rows) == count
    assert {row["label_name"] for row in rows} == set(expected)
    places = [f"train/{row['label_name']}/" for row in rows]
    assert all(row["source"].startswith(place) for row, place in zip(rows, places, strict=True))


def test_bad_images_of_strange_names_are_spelled_out_on_the_command_line(tmp_path, capsys):
    hostile.write_strange_names(tmp_path / "set")
    folder = tmp_path / "set" / "train" / "plain"
    for path in folder.iterdir():
        path.write_bytes(b"\x1b[2J\n<b>")
    words = ["ingest", str(tmp_path / "set"), "-o", str(tmp_path / "a.zarr")]
    assert main(words) == 2
    shown = capsys.readouterr()
    assert CONTROLS.search(shown.out + shown.err) is None
    lines = [line for line in shown.err.splitlines() if line.startswith("train ")]
    assert len(lines) == 20
    with (tmp_path / "a.zarr" / "bad_samples.csv").open(newline="", encoding="utf-8") as file:
        listed = [row["source"] for row in csv.DictReader(file)]
    expected = [f"train/plain/{spelled(path)}" for path in folder.iterdir()]
    assert sorted(listed) == sorted(expected)


def test_classes_named_in_html_come_out_as_they_went_in(corpus):
    store = corpus.store("job-html.yml")
    job = json.loads((corpus.root / "corpus" / "jobs" / "job-html.yml").read_text())
    assert pipeline.describe(store)["class_names"] == job["images"]["class_names"]
    assert {row["label_name"] for row in rows_of(store)} == set(job["images"]["class_names"])
