"""Jobs that measure the split of their prototypes: each image without itself."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from jobs_for_tests import NAMES, make_arrays, make_images, make_settings, run
from strategies import check_left_out

import pipeline
from pipeline import output, printing
from pipeline.core.errors import ConflictError, ExactnessError
from pipeline.jobs import fit_pass, job, memory_model
from pipeline.jobs.plan import outline_job
from pipeline.storage import manifest

KINDS = [("mean", np.uint8), ("mean", np.uint16), ("median", np.uint8), ("median", np.uint16)]
IDS = [f"{kind} of {np.dtype(dtype)}" for kind, dtype in KINDS]
WHOLE = {"evaluate": "train", "allow_empty_classes": True, "report": False}


def few(dtype=np.uint8):
    """Images of which some have no label, one class has a single image, and one has none."""
    arrays = make_arrays(train=60, test=20, dtype=dtype)
    labels = arrays["train"][1]
    labels[labels >= 2] = 1
    labels[3], labels[40:46] = 2, -1
    return arrays


@pytest.mark.parametrize(("kind", "dtype"), KINDS, ids=IDS)
def test_every_table_is_that_of_prototypes_without_the_image(tmp_path, kind, dtype):
    arrays = few(dtype)
    images = make_images(tmp_path / "images.zarr", arrays, shard=16)
    done = run(images, tmp_path / "run", prototypes=kind, **WHOLE)
    plain = run(images, tmp_path / "plain", prototypes=kind, leave_one_out=False, **WHOLE)
    found = done.distances.values
    check_left_out(*arrays["train"], kind, found, plain.distances.values)
    labels = arrays["train"][1]
    table = done.predictions.compute()
    right = {}
    for code, metric in enumerate(["l1", "l2"]):
        rows = table[table["metric"] == metric].reset_index()
        filled = np.where(np.isnan(found[code]), np.inf, found[code])
        nearest = filled.argmin(axis=1)
        ordered = np.sort(filled, axis=1)
        assert rows["predicted"].tolist() == nearest.tolist()
        assert rows["distance"].tolist() == ordered[:, 0].tolist()
        assert rows["margin"].fillna(-1).tolist() == [
            b - a if np.isfinite(b) else -1 for a, b in ordered[:, :2].tolist()
        ]
        own = np.where(labels < 0, np.nan, found[code][np.arange(60), labels])
        assert np.array_equal(rows["label_distance"].astype(float), own, equal_nan=True)
        ranks = [
            None if np.isnan(value) else 1 + (row < value).sum()
            for row, value in zip(filled, own, strict=True)
        ]
        assert [None if np.isnan(r) else r for r in rows["label_rank"].astype(float)] == ranks
        right[metric] = int((nearest == labels)[labels >= 0].sum()) / 54
        assert done.metrics[metric]["accuracy"] == right[metric]
    alone = table[table["sample"] == 3]
    assert alone["label_rank"].isna().all()
    assert (alone["predicted"] != 2).all()
    assert done.metrics["leave_one_out"] == "train"
    assert "leave_one_out" not in plain.metrics
    assert pipeline.digest(done.path) == done.manifest["digests"]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), KINDS, ids=IDS)
def test_any_shards_workers_and_device_give_the_same_digests(tmp_path, kind, dtype):
    arrays, found = few(dtype), set()
    for shard, workers, device in [(16, 1, "cpu"), (64, 2, "cpu"), (7, 2, "torch:cpu")]:
        images = make_images(tmp_path / f"{shard}.zarr", arrays, shard=shard)
        settings = {"cluster": {"workers": workers}, "device": device, "prototypes": kind}
        done = run(images, tmp_path / f"run-{shard}", **settings, **WHOLE)
        found.add(json.dumps(done.manifest["digests"], sort_keys=True))
    assert len(found) == 1


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_of_several_splits_only_the_fitted_one_is_left_out(images, tmp_path, kind):
    both = run(images, tmp_path / "both", evaluate=["test", "train"], prototypes=kind)
    alone = run(images, tmp_path / "alone", evaluate="train", prototypes=kind)
    test = run(images, tmp_path / "test", prototypes=kind)
    expected = np.concatenate([test.distances.values, alone.distances.values], axis=1)
    assert both.distances.values.tobytes() == expected.tobytes()
    for split, single in {"train": alone, "test": test}.items():
        figures = {name: single.metrics[name] for name in ("l1", "l2")}
        assert both.metrics["splits"][split] == figures
    assert "leave_one_out" not in test.manifest["plan"]
    assert "rise" not in test.prototypes


def test_classes_that_are_not_asked_for_are_measured_as_they_are(images, tmp_path):
    settings = {"classes": ["ash", "cedar"], "evaluate": "train"}
    found = run(images, tmp_path / "run", **settings).distances
    plain = run(images, tmp_path / "plain", leave_one_out=False, **settings).distances
    other = ~np.isin(make_arrays()["train"][1], [0, 2])
    assert found.values[:, other].tobytes() == plain.values[:, other].tobytes()
    assert (found.values[:, ~other] != plain.values[:, ~other]).any()


def test_only_where_it_has_an_effect_it_is_another_job(images, tmp_path):
    def identity(**settings):
        return outline_job(make_settings(images, tmp_path / "run", **settings), images).decides()

    assert identity() == identity(leave_one_out=False)
    assert "leave_one_out" not in identity()
    plain = identity(evaluate="train", leave_one_out=False)
    assert "leave_one_out" not in plain
    assert identity(evaluate="train") == {**plain, "leave_one_out": True}
    assert identity(evaluate="train") == identity(evaluate="train", leave_one_out=True)


@pytest.mark.parametrize("first", [True, False])
def test_the_other_job_is_refused_in_its_folder(images, tmp_path, first):
    run(images, tmp_path / "run", evaluate="train", leave_one_out=first)
    with pytest.raises(ConflictError, match="'leave_one_out' there is"):
        run(images, tmp_path / "run", evaluate="train", leave_one_out=not first)


@dataclass(frozen=True)
class Failing(job.EvaluatePartition):
    def __call__(self, index):
        if index == 2:
            raise InterruptedError("cut short")
        return super().__call__(index)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "dtype"), KINDS, ids=IDS)
def test_cut_short_in_any_pass_it_goes_on_to_the_same_digests(tmp_path, kind, dtype, monkeypatch):
    images = make_images(tmp_path / "images.zarr", few(dtype), shard=16)
    settings = {"prototypes": kind, "cluster": {"workers": 1}, **WHOLE}
    expected = run(images, tmp_path / "whole", **settings).manifest["digests"]
    read = fit_pass.read_checked
    for after in (2, 6):
        reads = []

        def failing(*arguments, after=after, reads=reads):
            reads.append(arguments)
            if len(reads) > after:
                raise InterruptedError("cut short")
            return read(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(fit_pass, "read_checked", failing)
            patch.setattr(job, "EvaluatePartition", Failing)
            with pytest.raises(InterruptedError):
                run(images, tmp_path / "run", **settings)
    assert run(images, tmp_path / "run", **settings).manifest["digests"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_medians_made_in_tiles_are_the_same(tmp_path, dtype):
    arrays = make_arrays(train=60, test=20, shape=(60, 50), dtype=dtype)
    images = make_images(tmp_path / "images.zarr", arrays, shard=16)
    whole = run(images, tmp_path / "whole", prototypes="median", **WHOLE)
    memory = int((memory_model._BASE_NUMPY + 7 * 10**6) / memory_model._SHARE)
    tight = {"workers": 1, "memory": memory}
    settings = make_settings(images, tmp_path / "run", prototypes="median", cluster=tight, **WHOLE)
    assert len(job.plan_job(settings, images).tiles) > 2
    done = pipeline.run_job(settings)
    assert done.manifest["digests"] == whole.manifest["digests"]


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_an_explanation_has_the_distances_of_the_tables(tmp_path, kind, capsys):
    images = make_images(tmp_path / "images.zarr", few(), shard=16)
    settings = WHOLE | {"evaluate": ["test", "train"]}
    done = run(images, tmp_path / "run", prototypes=kind, **settings)
    written = done.distances.values
    for split, first in {"test": 0, "train": 20}.items():
        for sample in (0, 3, 12, 41 if split == "train" else 5):
            found = pipeline.explain(done.path, split, sample)
            assert found.distances.tobytes() == written[:, first + sample].tobytes()
            assert found.left_out == (split == "train" and sample != 41)
    alone = pipeline.explain(done.path, "train", 3)
    assert alone.label_name not in alone.predicted.values()
    output.show(printing.of_explanation(alone))
    assert "measured from cedar without it" in capsys.readouterr().out
    pipeline.draw_explanation(alone, tmp_path / "alone.png")


@pytest.mark.parametrize("name", ["rise/c/1/0/0", "fall/zarr.json", "zarr.json"])
def test_what_is_damaged_of_shifts_is_found_and_made_again(images, tmp_path, name):
    done = run(images, tmp_path / "run", evaluate="train", prototypes="median")
    before = done.manifest
    folder = done.path / "prototypes.zarr"
    file = folder / name if (folder / name).exists() else next((folder / "rise").rglob("c/*/*/*"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert pipeline.verify(done.path)
    pipeline.verify(done.path, repair=True)
    assert pipeline.verify(done.path) == []
    assert pipeline.open_run(done.path).manifest["digests"] == before["digests"]


def test_a_run_from_before_there_was_this_is_repaired_as_it_was(images, tmp_path):
    done = run(images, tmp_path / "run", evaluate="train", leave_one_out=False)
    content = dict(done.manifest)
    del content["settings"]["leave_one_out"]
    manifest.put_manifest(done.path, content)
    (done.path / "metrics.json").unlink()
    next((done.path / "predictions").iterdir()).unlink()
    pipeline.verify(done.path, repair=True)
    assert pipeline.verify(done.path) == []
    assert pipeline.open_run(done.path).manifest["digests"] == content["digests"]


def test_plan_and_run_say_it(images, tmp_path, capsys):
    settings = make_settings(images, tmp_path / "run", evaluate=["train", "test"])
    sentence = "each image of 'train' is measured from its class without it"
    plan = pipeline.forecast(settings)
    assert plan["leave_one_out"] == "train"
    output.show(printing.of_plan(plan))
    assert sentence in capsys.readouterr().out
    done = pipeline.run_job(settings)
    output.show(printing.of_run(pipeline.describe(done.path)))
    assert sentence in capsys.readouterr().out
    other = run(images, tmp_path / "other")
    output.show(printing.of_run(pipeline.describe(other.path)))
    assert "without it" not in capsys.readouterr().out


def test_a_plan_says_how_much_more_medians_take(images, tmp_path):
    plans = [
        pipeline.forecast(
            make_settings(
                images, tmp_path / "run", prototypes="median", evaluate="train", leave_one_out=way
            )
        )
        for way in (False, True)
    ]
    plain, more = ({row["path"]: row["bytes"] for row in plan["files"]} for plan in plans)
    size = 8 * 5 * 4 * len(NAMES)
    assert (plain["prototypes.zarr"], more["prototypes.zarr"]) == (3 * size, 5 * size)
    assert plans[0]["memory"]["worker"] < plans[1]["memory"]["worker"]


def test_images_too_large_for_it_are_refused_before_anything_is_read(images, tmp_path):
    content = manifest.read_manifest(images, manifest.IMAGES)
    for split in content["splits"].values():
        split |= {"shape": [2**15, 2**15], "dtype": "uint16"}
    wanted = {"prototypes": "median", "evaluate": "train"}
    outline_job(make_settings(images, tmp_path, leave_one_out=False, **wanted), images, content)
    with pytest.raises(ExactnessError, match="leave_one_out: false"):
        outline_job(make_settings(images, tmp_path, **wanted), images, content)
