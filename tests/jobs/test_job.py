"""The job: the same result however it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jobs_for_tests import NAMES, Heard, make_arrays, make_images, make_settings, run
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from strategies import labelled_blocks

import pipeline
from pipeline.core.errors import StoreError
from pipeline.execution import executor
from pipeline.jobs import job, plan
from pipeline.sources.arrays import from_arrays
from pipeline.storage import store_array


def test_a_run_folder_holds_what_is_documented(images, tmp_path):
    done = run(images, tmp_path / "run")
    assert {path.name for path in done.path.iterdir()} == {
        ".manifest.json", "manifest.json", "prototypes.zarr", "distances.zarr", "predictions",
        "metrics.json", "highlights.json", "report.html",
    }  # fmt: skip
    opened = xr.open_zarr(done.path / "distances.zarr")
    assert opened["distance"].dims == ("metric", "sample", "class_name")
    assert opened["metric"].values.tolist() == ["l1", "l2"]
    assert opened["class_name"].values.tolist() == NAMES
    parts = sorted((done.path / "predictions").glob("part-*.parquet"))
    assert len(parts) == 2
    assert pq.read_table(parts[0]).column_names == [
        "sample", "split", "label", "label_name", "metric", "predicted", "predicted_name",
        "distance", "margin", "label_distance", "label_rank",
    ]  # fmt: skip
    content = json.loads((done.path / "manifest.json").read_text())
    assert content["kind"] == "pixsim run"
    assert content["images"]["digest"] == pipeline.describe(images)["digest"]


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_metrics_agree_with_scikit_learn(images, tmp_path, metric):
    done = run(images, tmp_path / "run")
    table = done.predictions.compute()
    table = table[table["metric"] == metric]
    labels, predicted = table["label"].to_numpy(), table["predicted"].to_numpy()
    found = done.metrics[metric]
    assert found["accuracy"] == accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    counts = confusion_matrix(labels, predicted, labels=range(4))
    assert found["confusion"] == {"class_names": NAMES, "counts": counts.tolist()}
    for code, name in enumerate(NAMES):
        assert found["per_class"][name]["count"] == (labels == code).sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"cluster": {"kind": "threads", "workers": 1}},
        {"cluster": {"kind": "threads", "workers": 5}},
        {"device": "torch:cpu"},
        {"device": "cpu"},
    ],
)
@pytest.mark.parametrize("shard", [5, 64, 1000])
def test_digests_are_equal_for_any_shards_workers_and_device(
    undisturbed, tmp_path, shard, settings
):
    expected = undisturbed.manifest
    other = make_images(tmp_path / "other.zarr", shard=shard)
    found = run(other, tmp_path / "run", **settings).manifest
    assert found["images"]["digest"] == expected["images"]["digest"]
    assert found["digests"] == expected["digests"]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1), np.uint8), ((3, 5, 3), np.uint8), ((4, 4), np.uint16), ((2, 3, 3), np.uint16)],
)
def test_digests_are_equal_for_colour_and_16_bits(tmp_path, shape, dtype):
    arrays = make_arrays(1, 40, 30, shape, dtype)
    digests = []
    for number, (shard, device) in enumerate([(40, "cpu"), (3, "torch:cpu")]):
        other = make_images(tmp_path / f"{number}.zarr", arrays, shard)
        digests.append(run(other, tmp_path / f"run{number}", device=device).manifest["digests"])
    assert digests[0] == digests[1]


def test_worker_processes_and_a_scheduler_at_an_address_give_the_same_digests(
    images, undisturbed, tmp_path
):
    from distributed import LocalCluster

    expected = undisturbed.manifest["digests"]
    local = run(images, tmp_path / "local", cluster={"kind": "local", "workers": 2})
    assert local.manifest["digests"] == expected
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as dask_cluster:
        address = dask_cluster.scheduler_address
        assert "://" in address
        at_address = run(images, tmp_path / "address", cluster=address)
    assert at_address.manifest["digests"] == expected
    assert "2 dask workers" in local.manifest["executor"]


@pytest.mark.slow
@settings(max_examples=12)
@given(data=st.data(), train=labelled_blocks(max_samples=7), classes=st.integers(1, 5))
def test_any_images_give_the_same_digests_however_they_are_cut_and_counted(data, train, classes):
    pixels, labels, _ = train
    assume((labels >= 0).any())
    names = [f"class {code}" for code in range(max(classes, int(labels.max()) + 1))]
    order = data.draw(st.permutations(range(len(pixels))))
    arrays = {"train": (pixels, labels), "test": (pixels[order], labels[order])}
    found = []
    for _ in range(2):
        shard = data.draw(st.integers(1, 9))
        settings = {
            "device": data.draw(st.sampled_from(["cpu", "torch:cpu"])),
            "cluster": {"kind": "threads", "workers": data.draw(st.integers(1, 3))},
            "allow_empty_classes": True,
        }
        with tempfile.TemporaryDirectory() as folder:
            images = make_images(Path(folder) / "images.zarr", arrays, shard, names)
            done = run(images, Path(folder) / "run", **settings)
            found.append((done.manifest["images"]["digest"], pipeline.digest(done.path)))
    assert found[0] == found[1]


def test_a_worker_in_another_working_directory_finds_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    task = executor._Task.__call__

    def call_elsewhere(self, block_id):
        before = Path.cwd()
        os.chdir(elsewhere)
        try:
            return task(self, block_id)
        finally:
            os.chdir(before)

    monkeypatch.setattr(executor._Task, "__call__", call_elsewhere)
    threads = pipeline.make_cluster("threads").model_copy(update={"workers": 1})
    images = pipeline.ingest(
        from_arrays(make_arrays(), NAMES), "images.zarr", shard_samples=64, cluster=threads
    )
    done = run(images, "run", cluster={"workers": 1})
    assert done.path == Path("run")
    assert pipeline.digest("run") == done.manifest["digests"]
    assert not list(elsewhere.iterdir())


def test_classes_are_a_subset_in_the_order_of_their_codes(images, tmp_path):
    done = run(images, tmp_path / "run", classes=["cedar", "ash"])
    table = done.predictions.compute()
    assert set(table["label"]) == set(table["predicted"]) == {0, 2}
    assert done.prototypes["class_name"].values.tolist() == ["ash", "cedar"]
    labels = make_arrays()["test"][1]
    assert sorted(set(table["sample"])) == np.flatnonzero(np.isin(labels, [0, 2])).tolist()


def test_several_splits_are_measured_end_to_end(images, tmp_path):
    both = run(images, tmp_path / "both", evaluate=["test", "train"])
    alone = {split: run(images, tmp_path / split, evaluate=split) for split in ("test", "train")}
    for split, single in alone.items():
        expected = {metric: single.metrics[metric] for metric in ("l1", "l2")}
        assert both.metrics["splits"][split] == expected
    parts = [single.distances.values for single in alone.values()]
    assert np.array_equal(both.distances.values, np.concatenate(parts, axis=1))
    assert both.metrics["l1"]["count"] == 90 + 230
    table = both.predictions.compute()
    assert (table["split"].value_counts().to_dict()) == {"train": 460, "test": 180}


def test_unlabelled_images_are_predicted_and_do_not_count(tmp_path):
    arrays = make_arrays()
    arrays["test"][1][:30] = -1
    done = run(make_images(tmp_path / "images.zarr", arrays), tmp_path / "run")
    table = done.predictions.compute()
    mine = table[table["sample"] < 30]
    assert len(mine) == 60
    assert mine["label"].isna().all()
    assert mine["label_rank"].isna().all()
    assert mine["predicted_name"].isin(NAMES).all()
    assert done.metrics["l1"]["count"] == 60


def test_one_metric_only(images, tmp_path):
    done = run(images, tmp_path / "run", metrics="l2")
    both = run(images, tmp_path / "both")
    assert list(done.metrics) == ["l2"]
    assert np.array_equal(done.distances.values[0], both.distances.sel(metric="l2").values)


def test_distances_are_skipped_where_asked_and_where_too_many(images, tmp_path, monkeypatch):
    written = run(images, tmp_path / "written").manifest["digests"]
    skipped = run(images, tmp_path / "skipped", distances="skip")
    monkeypatch.setattr(plan, "MAX_AUTO_DISTANCES", 2 * 90 * 4 - 1)
    heard = Heard()
    large = pipeline.run_job(make_settings(images, tmp_path / "large"), heard)
    assert any("distances are not written: 720 values" in line for line in heard.lines)
    for done in (skipped, large):
        assert not (done.path / "distances.zarr").exists()
        assert done.manifest["digests"]["predictions"] == written["predictions"]
        assert pipeline.digest(done.path)["distances"] is None
        with pytest.raises(StoreError, match="distances: write"):
            _ = done.distances
    asked = run(images, tmp_path / "asked", distances="write")
    assert asked.manifest["digests"] == written


MEASURE = """
import json, resource, sys
import numpy as np
import pipeline
from pipeline.core.blocks import Block
from pipeline.core.blocks import SplitInfo

class Made:
    "Images that exist only while they are read."
    class_names = ("even", "odd")
    full_scale = 255

    def __init__(self, count):
        self.count = count
        self.provenance = {"kind": "made", "count": count}

    def splits(self):
        return {"train": SplitInfo(self.count, (28, 28), "uint8"),
                "test": SplitInfo(self.count // 4, (28, 28), "uint8")}

    def read(self, split, start, stop):
        rng = np.random.default_rng(start)
        labels = (np.arange(start, stop) % 2).astype(np.int32)
        images = rng.integers(0, 200, (stop - start, 28, 28), np.uint8)
        images += labels[:, None, None].astype(np.uint8)
        return Block(images, labels, ["made"] * (stop - start))

    def close(self):
        pass

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder, count = sys.argv[1], int(sys.argv[2])
images = pipeline.ingest(Made(count), f"{folder}/images.zarr", shard_samples=4096)
ingested = peak()
settings = {"images": str(images), "output": f"{folder}/run", "name": "made"}
pipeline.run_job(pipeline.make_job(settings))
print(json.dumps([ingested, peak()]))
"""


@pytest.mark.slow
def test_ten_times_the_images_take_the_same_peak_memory(tmp_path):
    peaks = []
    for count in (25_000, 250_000):
        (tmp_path / str(count)).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / str(count)), str(count)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(json.loads(done.stdout))
    # the pixels alone grow by 220 MB; 10 % of room for the allocator
    assert peaks[1][0] <= 1.1 * peaks[0][0]
    assert peaks[1][1] <= 1.1 * peaks[0][1]


def test_only_small_values_travel_between_tasks(images, tmp_path, monkeypatch):
    """What tasks of the second pass return, and what the first adds up, holds no image."""
    returned = []
    original = job.EvaluatePartition.__call__
    monkeypatch.setattr(
        job.EvaluatePartition, "__call__",
        lambda self, index: returned.append(original(self, index)) or returned[-1],
    )  # fmt: skip
    added = []
    original_add = executor.Executor.add
    monkeypatch.setattr(
        executor.Executor, "add",
        lambda self, task, kept, phase: added.append((kept.partitions, kept.shape))
        or original_add(self, task, kept, phase),
    )  # fmt: skip
    run(images, tmp_path / "run")
    assert returned == [True, True]
    assert added == [(4, (4, 2 * 5 * 4 + 1))]


def test_a_plan_reads_no_pixel(images, tmp_path):
    for shard in (images / "train" / "image" / "c").rglob("*"):
        if shard.is_file():
            shard.unlink()
    found = job.plan_job(make_settings(images, tmp_path / "run"), images)
    assert (len(found.fit), found.evaluate.steps) == (4, 2)
    assert store_array.StoreArray(images, "train/image").shape == (230, 5, 4)


def test_a_report_whose_libraries_cannot_be_imported_loses_no_run(tmp_path):
    script = (
        "import sys, pipeline\n"
        "from jobs_for_tests import make_images\n"
        "sys.modules['jinja2'] = None\n"  # as where it is not installed
        "images = str(make_images(sys.argv[1] + '/images.zarr'))\n"
        "job = {'name': 'few', 'images': images, 'evaluate': 'test'}\n"
        "job['output'] = sys.argv[1] + '/run'\n"
        "pipeline.run_job(job, pipeline.make_reporter())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the report was not made" in done.stderr
    assert pipeline.open_run(tmp_path / "run").metrics["l1"]["accuracy"] is not None
