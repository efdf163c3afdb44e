"""Which splits a run on the command line takes, where some have no labels."""

from __future__ import annotations

from image_files_for_tests import make

import pipeline
from pipeline.cli import main


def test_a_split_without_labels_is_measured_only_when_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    train = [f"train/{name}/{number}.png" for name in "ab" for number in range(3)]
    make(tmp_path / "flowers", *train, "test/1.png", "test/2.png")
    assert main(["run", "flowers"]) == 0
    out, err = capsys.readouterr()
    assert "measured 'train', each image from its class without it" in err
    assert "not used: 'test' (no labels)" in err
    assert "no accuracy" not in out
    assert main(["run", "flowers", "--evaluate", "test", "--output", "predicted"]) == 0
    out, _ = capsys.readouterr()
    assert "none of the measured images has a label: there are predictions, and no accuracy" in out
    assert (pipeline.open_run("predicted").distances.label == -1).all()
