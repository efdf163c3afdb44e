"""A part of a split is held out: the rest is fitted, the part is measured, and nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from jobs_for_tests import NAMES, make_arrays, make_images, make_settings, run
from strategies import oracle_sums

import pipeline
from pipeline.cli import main
from pipeline.core.errors import ConfigError, EmptyClassError
from pipeline.core.holdout import hold_out
from pipeline.storage.sample_lists import HELD_OUT

SETTINGS = {"holdout": "20%", "neighbours": {"k": 3}, "distances": "write"}


def arrays_with_copies():
    """Images of one split, some of them copies, also under other labels."""
    images, labels = make_arrays()["train"]
    images[100:110], images[200:205] = images[:10], images[3]
    return {"train": (images, labels)}


def held_of(images, labels, share=0.2):
    keys = [int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:8]) for image in images]
    return hold_out(np.array(keys, np.uint64), labels, share)


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    folder = tmp_path_factory.mktemp("divided")
    images = make_images(folder / "images.zarr", arrays_with_copies())
    return run(images, folder / "run", **SETTINGS)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A run on an image set whose two splits are the two sides."""
    images, labels = arrays_with_copies()["train"]
    held, folder = held_of(images, labels), tmp_path_factory.mktemp("apart")
    arrays = {"train": (images[~held], labels[~held]), "test": (images[held], labels[held])}
    return run(make_images(folder / "images.zarr", arrays), folder / "run", **{
        **SETTINGS, "holdout": None,
    })  # fmt: skip


def test_what_is_fitted_and_measured_are_the_two_sides(divided, apart):
    images, labels = arrays_with_copies()["train"]
    held = held_of(images, labels)
    sums, _, counts = oracle_sums(images[~held], labels[~held], len(NAMES))
    assert (divided.prototypes["numerator"].values == sums).all()
    assert divided.prototypes["count"].values.tolist() == counts.tolist()
    found, expected = (one.predictions.compute() for one in (divided, apart))
    places = np.flatnonzero(held)
    assert found["sample"].tolist() == places[expected["sample"]].tolist()
    assert set(found["split"]) == {"train"}
    names = [name for name in found.columns if name not in ("sample", "split")]
    for name in names:
        assert found[name].reset_index(drop=True).equals(expected[name].reset_index(drop=True))
    assert {m: divided.metrics[m] for m in ("l1", "l2", "neighbours")} == {
        m: apart.metrics[m] for m in ("l1", "l2", "neighbours")
    }
    distances = divided.distances.values
    assert (distances[:, held] == apart.distances.values).all()
    assert np.isnan(distances[:, ~held]).all()


def test_neighbours_of_the_measured_are_fitted_images(divided, apart):
    images, labels = arrays_with_copies()["train"]
    held = held_of(images, labels)
    found, expected = (one.neighbours.compute() for one in (divided, apart))
    places = np.flatnonzero(~held)
    assert found["neighbour"].tolist() == places[expected["neighbour"].astype(int)].tolist()
    assert found["distance"].tolist() == expected["distance"].tolist()


def test_it_is_recorded_and_said(divided, capsys):
    images, labels = arrays_with_copies()["train"]
    held = int(held_of(images, labels).sum())
    known = {"split": "train", "share": 0.2, "held_out": held, "fitted": 230 - held}
    assert divided.manifest["holdout"] == divided.metrics["holdout"] == known
    assert divided.manifest["plan"]["holdout"] == 0.2
    assert divided.manifest["settings"]["evaluate"] == ["train"]
    settings = make_settings(divided.images, divided.path, **SETTINGS)
    forecast = pipeline.forecast(settings)
    assert forecast["holdout"] == known
    assert forecast["pairs"] == 2 * held * (230 - held)
    assert main(["show", str(divided.path)]) == 0
    assert f"held out  {held} of 230 of 'train', the others fitted" in capsys.readouterr().out


@pytest.mark.parametrize(("shard", "workers"), [(7, 1), (1000, 4)])
def test_digests_are_the_same_however_it_is_cut(divided, tmp_path, shard, workers):
    images = make_images(tmp_path / "images.zarr", arrays_with_copies(), shard=shard)
    done = run(images, tmp_path / "run", cluster={"workers": workers}, **SETTINGS)
    assert done.manifest["digests"] == divided.manifest["digests"]


def test_what_is_excluded_is_on_neither_side(divided, tmp_path):
    out = {"split": ["train"] * 3, "sample": [1, 50, 110]}
    table = tmp_path / "out.csv"
    table.write_text("split,sample\ntrain,1\ntrain,50\ntrain,110\n")
    done = run(divided.images, tmp_path / "run", exclude=str(table), **SETTINGS)
    images, labels = (np.delete(part, out["sample"], 0) for part in arrays_with_copies()["train"])
    held = held_of(images, labels)
    sums, _, _ = oracle_sums(images[~held], labels[~held], len(NAMES))
    assert (done.prototypes["numerator"].values == sums).all()
    places = np.delete(np.arange(230), out["sample"])[held]
    assert sorted(set(done.predictions.compute()["sample"])) == places.tolist()


def test_damage_is_mended_and_one_image_is_compared_with_fitted_ones(tmp_path):
    images = make_images(tmp_path / "images.zarr", arrays_with_copies())
    done = run(images, tmp_path / "run", **SETTINGS)
    (done.path / HELD_OUT).write_bytes(b"")
    (done.path / "predictions/part-000001.parquet").unlink()
    mended = [damage.file for damage in pipeline.verify(done.path, repair=True)]
    assert sorted(mended) == [HELD_OUT, "predictions/part-000001.parquet"]
    assert pipeline.verify(done.path) == []
    assert pipeline.open_run(done.path).manifest["digests"] == done.manifest["digests"]
    held = set(done.listed(HELD_OUT).samples_of("train").tolist())
    near = pipeline.explain(done.path, "train", min(held), neighbours=30).neighbours["l1"]
    assert not {each.sample for each in near} & held


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"holdout": "20%", "evaluate": "test"},
            "evaluate is 'test', with holdout expected 'train'",
        ),
        ({"holdout": 0.2, "evaluate": ["train", "test"]}, "with holdout expected 'train'"),
        ({"holdout": 1.2}, "holdout"),
        ({"holdout": 0}, "holdout"),
        ({"holdout": "a fifth"}, "expected a share, such as 20% or 0.2"),
        ({"holdout": True}, "holdout"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_settings("digits", tmp_path / "run", **settings)
    done = make_settings("digits", tmp_path / "run", holdout="20%", fit="all")
    assert (done.evaluate, done.holdout) == (("all",), 0.2)


def test_a_share_that_leaves_nothing_to_measure_or_fit_is_refused(tmp_path):
    images = make_images(tmp_path / "images.zarr", arrays_with_copies())
    with pytest.raises(EmptyClassError, match=r"holdout: 0.001 .* take a larger share"):
        run(images, tmp_path / "run", holdout=0.001)
    with pytest.raises(EmptyClassError, match="ash"):
        run(images, tmp_path / "run", holdout=0.999)
    assert not (tmp_path / "run").exists()
