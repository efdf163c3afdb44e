"""Runs side by side: over what they share, with what differs."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pytest
from jobs_for_tests import make_arrays, make_images, run

import pipeline
from pipeline.cli import main
from pipeline.core.errors import IncompleteError, InputError, StoreError


def doubtful(seed=0):
    """Images of which every third has any label."""
    rng, arrays = np.random.default_rng(seed), make_arrays(seed)
    for _, labels in arrays.values():
        labels[::3] = rng.integers(0, 4, len(labels[::3]))
    return arrays


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    images = make_images(folder / "images.zarr", doubtful())
    (folder / "out.csv").write_text("split,sample,reason\ntrain,3,blurred\ntrain,5,blurred\n")
    near = {"neighbours": {"k": 3}, "evaluate": ["test", "train"]}
    return {
        "mean": run(images, folder / "mean", **near),
        "median": run(images, folder / "median", prototypes="median", **near),
        "less": run(images, folder / "less", exclude=str(folder / "out.csv")),
        "two": run(images, folder / "two", classes=["ash", "cedar"], metrics="l2"),
        "train": run(images, folder / "train", evaluate="train"),
    }


def rows_of(compared, **wanted):
    return [
        row for row in compared.rows
        if all(getattr(row, name) == value for name, value in wanted.items())
    ]  # fmt: skip


def test_accuracies_are_those_of_the_runs(runs):
    pair = runs["mean"], runs["median"]
    compared = pipeline.compare(pair)
    assert compared.remarks == ()
    for split in ("test", "train"):
        for metric in ("l1", "l2"):
            known = [one.metrics["splits"][split][metric] for one in pair]
            rows = rows_of(compared, split=split, metric=metric, votes=0)
            assert [row.name for row in rows][:2] == ["all", "balanced"]
            assert rows[0].accuracies == tuple(one["accuracy"] for one in known)
            assert rows[1].accuracies == tuple(one["balanced_accuracy"] for one in known)
            assert [row.accuracies for row in rows[2:]] == [
                tuple(one["per_class"][row.name]["accuracy"] for one in known) for row in rows[2:]
            ]
            for votes in (1, 3):
                voted = [one.metrics["splits"][split]["neighbours"] for one in pair]
                row = rows_of(compared, split=split, metric=metric, votes=votes, name="all")[0]
                expected = tuple(one[metric][str(votes)]["accuracy"] for one in voted)
                assert row.accuracies == expected
                assert row.differences == (0, 0)
    assert compared.settings == {"prototypes": ("mean", "median")}


def test_runs_of_other_classes_are_compared_over_what_they_share(runs):
    compared = pipeline.compare([runs["less"], runs["two"].path])
    assert {row.metric for row in compared.rows} == {"l2"}
    assert {row.name for row in compared.rows if row.is_class} == {"ash", "cedar"}
    frame = runs["less"].predictions.compute()
    frame = frame[(frame["metric"] == "l2") & frame["label_name"].isin(["ash", "cedar"])]
    right = float(np.mean(frame["predicted"] == frame["label"]))
    row = rows_of(compared, name="all")[0]
    assert row.accuracies == pytest.approx((right, runs["two"].metrics["l2"]["accuracy"]))
    assert compared.remarks == (
        "compared over the metrics that all have; not all have l1",
        "compared over the classes that all have; not all have birch, dogwood",
    )
    assert compared.excluded == (
        {"train": {"count": 2, "reasons": {"blurred": 2}}}, {},
    )  # fmt: skip
    assert set(compared.settings) == {"classes", "metrics", "exclude"}


def test_runs_of_other_images_are_compared_by_name(runs, tmp_path):
    images = make_images(tmp_path / "images.zarr", make_arrays(seed=1), names=list("wxyz"))
    other = run(images, tmp_path / "run")
    with pytest.raises(InputError, match=r"share no class .*has ash, birch.*has w, x, y, z"):
        pipeline.compare([runs["less"], other])
    with pytest.raises(InputError, match=r"share no split .*has test; .*has train"):
        pipeline.compare([runs["less"], runs["train"]])
    images = make_images(tmp_path / "again.zarr", make_arrays(seed=1))
    compared = pipeline.compare([runs["less"], run(images, tmp_path / "again")])
    assert compared.remarks[-1].startswith("the image sets are not the same")


def test_what_cannot_be_compared_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="1 run, expected two or more"):
        pipeline.compare([runs["mean"].path])
    with pytest.raises(StoreError, match="nowhere: no such folder"):
        pipeline.compare([runs["mean"].path, tmp_path / "nowhere"])
    with pytest.raises(StoreError, match=r"is a pixsim image set, expected a pixsim run"):
        pipeline.compare([runs["mean"].path, runs["mean"].images])
    begun = shutil.copytree(runs["mean"].path, tmp_path / "begun")
    (begun / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match="begun"):
        pipeline.compare([runs["mean"].path, begun])


def test_the_command_prints_them_side_by_side(runs, capsys):
    assert main(["compare", str(runs["mean"].path), str(runs["less"].path)]) == 0
    text = capsys.readouterr().out
    known = [one["l1"]["accuracy"] for one in (runs["mean"].metrics["splits"]["test"],
                                               runs["less"].metrics)]  # fmt: skip
    line = next(line for line in text.splitlines() if line.startswith("all"))
    assert line.split() == ["all", *(f"{a:.4f}" for a in known), f"{known[1] - known[0]:+.4f}"]
    assert "left out  2 samples of 'train' (2 blurred)" in text


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_line_is_wider_than_the_terminal(runs, capsys, monkeypatch, width):
    size = os.terminal_size((width, 24))
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: size)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda _: True))
    monkeypatch.setenv("TERM", "xterm")
    assert main(["compare", *(str(runs[name].path) for name in ("mean", "median", "less")) ,
                 *[str(runs["mean"].path)] * 4]) == 0  # fmt: skip
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    lines = [line for line in text.splitlines() if not line.startswith("compared over")]
    assert max(map(len, lines)) <= max(width, len("left out  2 samples of 'train' (2 blurred)"))
    assert "balanced" in text
