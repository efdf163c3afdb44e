"""What pixsim wrote itself, met again: below a folder of images, or where images are expected."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
from image_files_for_tests import make

import pipeline
from pipeline.cli import main
from pipeline.sources.own_outputs import holds_only_own
from pipeline.storage import manifest
from pipeline.storage.locks import held

IMAGES = [f"{s}/{c}/{n}.png" for s in ("train", "test") for c in "ab" for n in range(3)]


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_images(tmp_path, monkeypatch):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    make(tmp_path, *IMAGES)
    monkeypatch.chdir(tmp_path)


def said(capsys, *words, code=0):
    capsys.readouterr()
    assert main(list(words)) == code
    return capsys.readouterr().err


def test_outputs_in_the_folder_of_the_images_are_left_out_by_every_command(capsys):
    assert "left out" not in said(capsys, "run", ".")  # of what is about to be made nothing is said
    store = Path("data/stores/images.zarr")
    before = manifest.read_manifest(store, manifest.IMAGES)
    assert before["provenance"]["ignored"] == {}
    assert "is complete already" in said(capsys, "ingest", ".")
    assert main(["audit", ".", "--output", "checks"]) == 0
    assert main(["init", ".", "--output", "job.yml"]) == 0
    Path("notes.txt").write_text("of mine")  # what lies beside the images decides nothing
    assert "is complete already" in said(capsys, "ingest", ".")
    assert manifest.read_manifest(store, manifest.IMAGES) == before
    line = said(capsys, "ingest", ".", "--output", "again.zarr")
    for name in ("checks (audit)", "data/runs/images (run)", "data/stores/images.zarr (image set)"):
        assert name in line
    assert "job.yml" in line
    assert pipeline.digest("again.zarr") == pipeline.digest(store)


def test_outputs_beside_archives_are_no_folders_of_images(capsys):
    Path("packed").mkdir()
    for split in ("train", "test"):
        with tarfile.open(f"packed/{split}.tar", "w") as archive:
            archive.add(split)
    assert main(["run", "packed", "--output", "packed/run"]) == 0
    line = said(capsys, "ingest", "packed", "--output", "packed/again.zarr")
    assert "left out: what pixsim wrote: run (run)" in line


def test_a_folder_of_outputs_is_known_by_its_records_not_by_its_name(tmp_path):
    other = tmp_path / "train"
    (other / "manifest.json").write_text('{"kind": "web app"}')
    assert not holds_only_own(other)
    assert manifest.made_in(other) is None
    assert not holds_only_own(tmp_path / "data")  # there is none
    with held(tmp_path / "data" / "stores" / "a.zarr", "image set"):
        assert manifest.made_in(tmp_path / "data" / "stores" / "a.zarr") == manifest.IMAGES
        assert holds_only_own(tmp_path / "data")
    (tmp_path / "data" / "more.png").touch()
    assert not holds_only_own(tmp_path / "data")


def test_samples_are_appended_once_also_where_a_file_came_beside_them(capsys):
    assert main(["ingest", "train", "--output", "s.zarr"]) == 0
    assert main(["ingest", "test", "--append", "--output", "s.zarr"]) == 0
    grown = pipeline.digest("s.zarr")
    Path("test/notes.txt").write_text("of mine")
    words = ["ingest", "test", "--append", "--output", "s.zarr"]
    assert "holds these samples already" in said(capsys, *words)
    assert pipeline.digest("s.zarr") == grown


COMMANDS = {
    "run": ("run",), "plan": ("plan",), "ingest": ("ingest",), "audit": ("audit",),
    "report": ("report",), "show": ("show",), "verify": ("verify",), "digest": ("digest",),
    "repair": ("verify", "--repair"), "explain": ("explain", "--split", "test", "--sample", "0"),
}  # fmt: skip
FOLDERS = {
    "store": "data/stores/images.zarr", "run": "data/runs/images", "audit": "data/audits/images",
    "part": "data/runs/images/predictions", "page": "data/runs/images/report.html",
    "group": "data/stores/images.zarr/train", "images": "train",
}  # fmt: skip
CURES = {
    ("run", "run"): "is a pixsim run, expected images.*'pixsim show data/runs/images' prints",
    ("plan", "audit"): "is a pixsim audit, expected images",
    ("ingest", "part"): "lies in the pixsim run data/runs/images, expected images",
    ("audit", "run"): "is a pixsim run, expected images",
    ("run", "group"): "lies in the image set data/stores/images.zarr.*give data/stores/images.zarr",
    ("ingest", "store"): "is an image set already, which 'pixsim run'",
    ("report", "store"): "is a pixsim image set.*'pixsim run data/stores/images.zarr' makes one",
    ("report", "audit"): "is a pixsim audit.*'pixsim show data/audits/images' prints",
    ("report", "part"): "lies in the run data/runs/images, expected a pixsim run; give data/runs",
    ("explain", "group"): "lies in the image set.*'pixsim run data/stores/images.zarr' makes one",
    ("explain", "images"): r"holds no manifest\.json.*'pixsim run train' makes one",
    ("show", "page"): "lies in the run data/runs/images.*give data/runs/images",
    ("verify", "images"): "expected a finished image set, run or audit; 'pixsim run train'",
    ("repair", "part"): "lies in the run data/runs/images.*give data/runs/images",
    ("digest", "group"): "lies in the image set.*give data/stores/images.zarr",
}


def test_each_command_says_what_a_folder_of_another_kind_is_and_which_command_takes_it(capsys):
    assert main(["run", "."]) == main(["audit", "."]) == 0
    Path(FOLDERS["page"]).touch()  # reports are stubbed
    for (command, folder), expected in CURES.items():
        first, *more = COMMANDS[command]
        line = said(capsys, first, FOLDERS[folder], *more, code=2)
        assert re.search(f"^pixsim: {re.escape(FOLDERS[folder])}: .*{expected}", line, re.MULTILINE)


def test_images_in_the_folder_of_a_run_are_images(capsys):
    assert main(["run", ".", "--output", "."]) == 2  # a folder that holds something
    assert main(["run", ".", "--output", "out"]) == 0
    make(Path("out/mine"), *IMAGES)
    assert main(["ingest", "out/mine"]) == 0
