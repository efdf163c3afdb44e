"""The article's numbers, on the real files, end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pipeline
from pipeline.sources.arrays import from_arrays

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.datasets


@pytest.fixture(scope="module")
def runs(real_datasets, tmp_path_factory):
    """Each workflow on the real files, run once."""
    folder = tmp_path_factory.mktemp("article")
    done: dict[str, pipeline.Run] = {}

    def run(name: str) -> pipeline.Run:
        if name not in done:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PIXSIM_DATASETS", str(real_datasets))
                patch.setenv("PIXSIM_DATA", str(folder))
                job = pipeline.load_job(ROOT / "workflows" / f"{name}.yml", output=folder / name)
                done[name] = pipeline.run_job(job)
        return done[name]

    return run


def as_published(value: float) -> float:
    return round(value, 4)


def test_train_image_10360_of_mnist_is_nearer_to_the_mean_3(runs):
    found = pipeline.explain(runs("mnist_3_vs_7").path, "train", 10360)
    assert found.class_names == ("3", "7")
    assert found.predicted == {"l1": "3", "l2": "3"}
    assert np.round(found.distances, 4).tolist() == [[0.1401, 0.1670], [0.2545, 0.3121]]


def test_three_against_seven_by_l1(runs):
    metrics = runs("mnist_3_vs_7").metrics["l1"]
    assert as_published(metrics["per_class"]["3"]["accuracy"]) == 0.9168
    assert as_published(metrics["per_class"]["7"]["accuracy"]) == 0.9854
    assert as_published(metrics["balanced_accuracy"]) == 0.9511


def test_dress_against_pullover_by_l1(runs):
    metrics = runs("fashion_mnist_dress_vs_pullover").metrics["l1"]
    assert as_published(metrics["per_class"]["Dress"]["accuracy"]) == 0.9730
    assert as_published(metrics["per_class"]["Pullover"]["accuracy"]) == 0.8620
    assert as_published(metrics["balanced_accuracy"]) == 0.9175
    assert as_published(metrics["accuracy"]) == 0.9175


def test_the_first_dress_and_the_eleventh_pullover(runs):
    run = runs("fashion_mnist_dress_vs_pullover")
    labels = run.distances["label"].values
    assert np.flatnonzero(labels == 3)[0] == 13
    assert np.flatnonzero(labels == 2)[10] == 74
    dress, pullover = run.distances.sel(sample=13), run.distances.sel(sample=74)
    assert as_published(float(dress.sel(metric="l1", class_name="Dress"))) == 0.1134
    assert as_published(float(dress.sel(metric="l2", class_name="Dress"))) == 0.1766
    assert as_published(float(dress.sel(metric="l1", class_name="Pullover"))) == 0.2864
    assert as_published(float(pullover.sel(metric="l1", class_name="Pullover"))) == 0.1713
    assert as_published(float(pullover.sel(metric="l2", class_name="Pullover"))) == 0.2220


def test_images_per_class(runs):
    mnist = runs("mnist_3_vs_7").prototypes["count"]
    assert mnist.sel(class_name="3").item() == 6131
    assert mnist.sel(class_name="7").item() == 6265
    fashion = runs("fashion_mnist")
    assert fashion.prototypes["count"].values.tolist() == [6000] * 10
    counts = [entry["count"] for entry in fashion.metrics["l1"]["per_class"].values()]
    assert counts == [1000] * 10


def test_ten_classes_by_l2(runs):
    assert as_published(runs("fashion_mnist").metrics["l2"]["accuracy"]) == 0.6768
    assert as_published(runs("mnist").metrics["l2"]["accuracy"]) == 0.8203


def test_every_distance_is_what_torch_computes(runs):
    run = runs("fashion_mnist")
    prototypes = torch.tensor(run.prototypes["prototype"].values) / 255
    images = pipeline.open_images(run.images, "test")["image"].values
    scaled = torch.tensor(images).double() / 255
    written = run.distances.transpose("metric", "sample", "class_name").values
    for position, prototype in enumerate(prototypes):
        target = prototype.expand_as(scaled)
        l1 = F.l1_loss(scaled, target, reduction="none").mean((1, 2))
        l2 = F.mse_loss(scaled, target, reduction="none").mean((1, 2)).sqrt()
        np.testing.assert_allclose(written[0, :, position], l1.numpy(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(written[1, :, position], l2.numpy(), rtol=0, atol=1e-6)


def test_the_predictions_table_holds_a_row_per_sample_and_metric(runs):
    table = runs("fashion_mnist_dress_vs_pullover").predictions.compute()
    assert table.columns.tolist() == [
        "sample", "split", "label", "label_name", "metric", "predicted", "predicted_name",
        "distance", "margin", "label_distance", "label_rank",
    ]  # fmt: skip
    assert len(table) == 2 * 2000
    by_l1 = table[table["metric"] == "l1"]
    right = by_l1["predicted"] == by_l1["label"]
    assert right.mean() == 0.9175
    assert (right == (by_l1["label_rank"] == 1)).all()
    assert set(by_l1["label_name"]) == {"Dress", "Pullover"}


@pytest.mark.parametrize(
    ("shard", "cluster", "device"),
    [
        (977, "threads", "torch:cpu"),
        (60000, {"kind": "threads", "workers": 1}, "cpu"),
        pytest.param(977, "threads", "cpu", marks=pytest.mark.slow),
        pytest.param(60000, {"kind": "threads", "workers": 1}, "torch:cpu", marks=pytest.mark.slow),
    ],
)
def test_digests_are_the_same_for_any_shards_workers_and_device(
    runs, real_datasets, tmp_path, monkeypatch, device, shard, cluster
):
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    expected = runs("fashion_mnist")
    store = pipeline.ingest("fashion-mnist", tmp_path / "images.zarr", shard_samples=shard)
    settings = pipeline.make_job(
        {
            "images": str(store), "name": "again", "output": str(tmp_path / "run"),
            "device": device, "cluster": cluster,
        }
    )  # fmt: skip
    run = pipeline.run_job(settings)
    assert run.manifest["images"]["digest"] == expected.manifest["images"]["digest"]
    assert run.manifest["digests"] == expected.manifest["digests"]
    assert pipeline.digest(run.path) == expected.manifest["digests"]


def test_the_notebook_way_gives_the_same_bits_as_the_job(runs):
    run = runs("fashion_mnist_dress_vs_pullover")
    train = pipeline.open_images(run.images, "train")
    ideals = pipeline.prototypes(pipeline.class_sums(train, classes=["Dress", "Pullover"]))
    test = pipeline.open_images(run.images, "test")
    distances = pipeline.distances(test, ideals)
    assert np.array_equal(distances.values, run.distances.values)
    predicted = pipeline.predict(distances).sel(metric="l1")
    mine = np.isin(predicted["label"].values, [2, 3])
    right = (predicted["predicted"] == predicted["label"]).values[mine]
    assert right.mean() == 0.9175


def test_arrays_of_the_real_images_give_the_same_store_digest(runs, tmp_path):
    store = runs("mnist").images
    arrays = {}
    for split in ("train", "test"):
        opened = pipeline.open_images(store, split)
        arrays[split] = (opened["image"].values, opened["label"].values)
    source = from_arrays(arrays, [str(digit) for digit in range(10)])
    copy = pipeline.ingest(source, tmp_path / "copy.zarr", shard_samples=5000)
    assert pipeline.digest(copy) == pipeline.digest(store)
