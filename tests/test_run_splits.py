"""Which splits a run on the command line takes, where some have no labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
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


def test_a_plan_and_a_job_file_know_splits_without_labels_before_they_are_ingested(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    make(
        tmp_path / "flowers", *(f"train/{c}/{n}.png" for c in "ab" for n in range(3)), "test/1.png"
    )
    images = np.zeros((6, 5, 4), np.uint8)
    np.savez("arrays.npz", x_train=images, y_train=[0, 1] * 3, x_test=images)
    for source in ("flowers", "arrays.npz"):
        before = pipeline.forecast(source)
        assert not before["ingested"]
        assert main(["init", source, "--output", "job.yml"]) == 0
        assert pipeline.load_job("job.yml").evaluate == ("train",)
        Path("job.yml").unlink()
        run = pipeline.run_job(source)
        splits = {key: run.manifest["settings"][key] for key in ("fit", "evaluate")}
        assert splits == {"fit": before["fit"], "evaluate": before["evaluate"]}
        assert before["choice"] == pipeline.forecast(source)["choice"]
        assert "'test' (no labels)" in before["choice"]
        # what is finished is known again where its images are taken in once more
        shutil.rmtree(f"data/stores/{Path(source).stem}.zarr")
        assert pipeline.run_job(source).manifest == run.manifest


def test_accuracies_that_say_nothing_are_said_to(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    make(tmp_path / "alone", "a/1.png", "b/1.png", "b/2.png")
    make(tmp_path / "one", "a/1.png", "a/2.png")
    assert main(["run", "alone"]) == 0
    line = "the only image of a class can only be wrong: a has one image"
    assert line in capsys.readouterr().out
    assert main(["run", "one"]) == 0
    out = capsys.readouterr().out
    assert "there is one class, which is all that can be predicted" in out
    assert line not in out
