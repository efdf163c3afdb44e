"""The job: the same result however it is run, and nothing lost when it is not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from strategies import labelled_blocks

import pipeline
from pipeline.cli import main
from pipeline.core.errors import (
    ConflictError,
    DamagedError,
    EmptyClassError,
    IncompleteError,
    InUseError,
    JobInterruptedError,
    LabelError,
    ShapeError,
    StorageFullError,
    StoreError,
)
from pipeline.execution import executor
from pipeline.execution.progress import SilentReporter
from pipeline.jobs import job, plan
from pipeline.sources.arrays import from_arrays
from pipeline.storage import atomic, locks, manifest, store_array
from pipeline.storage.lock_holders import Holder
from pipeline.storage.locks import held
from pipeline.storage.processes import Process, this_process

NAMES = ["ash", "birch", "cedar", "dogwood"]


def make_arrays(seed=0, train=230, test=90, shape=(5, 4), dtype=np.uint8, classes=4):
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    centres = rng.integers(0, largest, (classes, *shape))
    arrays = {}
    for split, count in {"train": train, "test": test}.items():
        labels = rng.integers(0, classes, count).astype(np.int32)
        noise = rng.integers(-largest // 3, largest // 3, (count, *shape))
        arrays[split] = np.clip(centres[labels] + noise, 0, largest).astype(dtype), labels
    return arrays


def make_images(path, arrays=None, shard=64, names=NAMES):
    return pipeline.ingest(from_arrays(arrays or make_arrays(), names), path, shard_samples=shard)


def make_settings(images, output, **settings):
    return pipeline.make_job(
        {"name": "trees", "images": str(images), "output": str(output), **settings}
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("made") / "images.zarr")


@pytest.fixture
def images(made, tmp_path):
    """The image set in a folder of the test's own, which may damage it."""
    return shutil.copytree(made, tmp_path / "images.zarr")


def run(images, output, **settings):
    return pipeline.run_job(make_settings(images, output, **settings))


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    """A run on it to which nothing happens, to be read only."""
    return run(made, tmp_path_factory.mktemp("undisturbed") / "run")


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
        assert both.metrics["splits"][split] == single.metrics
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
    said = []

    class Listener(pipeline.execution.progress.SilentReporter):
        def say(self, message):
            said.append(message)

    large = pipeline.run_job(make_settings(images, tmp_path / "large"), Listener())
    assert any("distances are not written: 720 values" in message for message in said)
    for done in (skipped, large):
        assert not (done.path / "distances.zarr").exists()
        assert done.manifest["digests"]["predictions"] == written["predictions"]
        assert pipeline.digest(done.path)["distances"] is None
        with pytest.raises(StoreError, match="distances: write"):
            _ = done.distances
    asked = run(images, tmp_path / "asked", distances="write")
    assert asked.manifest["digests"] == written


# bad input ------------------------------------------------------------------------------------


def test_a_class_without_images_is_refused_by_name_before_anything_is_written(tmp_path):
    images = make_images(tmp_path / "images.zarr", names=[*NAMES, "elm", "fir"])
    with pytest.raises(EmptyClassError, match=r"'elm', 'fir' in split 'train'.*allow_empty"):
        run(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_without_images_is_never_predicted_where_allowed(tmp_path):
    arrays = make_arrays()
    arrays["test"][1][0] = 4
    images = make_images(tmp_path / "images.zarr", arrays, names=[*NAMES, "elm"])
    done = run(images, tmp_path / "run", allow_empty_classes=True)
    assert np.isnan(done.distances.sel(class_name="elm").values).all()
    table = done.predictions.compute()
    assert "elm" not in set(table["predicted_name"])
    own = table[table["sample"] == 0]
    assert own["label_distance"].isna().all()
    assert done.metrics["l1"]["per_class"]["elm"] == {"accuracy": 0.0, "count": 1}


def test_a_job_without_any_image_of_its_classes_is_refused_all_the_same(tmp_path):
    images = make_images(tmp_path / "images.zarr", names=[*NAMES, "elm"])
    with pytest.raises(EmptyClassError):
        run(images, tmp_path / "run", classes=["elm"], allow_empty_classes=True)


def test_splits_of_different_shape_are_refused(tmp_path):
    arrays = make_arrays()
    arrays["test"] = (arrays["test"][0][:, :, :-1], arrays["test"][1])
    images = make_images(tmp_path / "images.zarr", arrays)
    with pytest.raises(ShapeError, match=r"split 'test' has images of \[5, 3\].*\[5, 4\]"):
        run(images, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_class_or_split_is_refused_with_those_there_are(images, tmp_path):
    with pytest.raises(LabelError, match="'Birch' is not in the image set; did you mean 'birch'"):
        run(images, tmp_path / "run", classes=["Birch"])
    with pytest.raises(StoreError, match="no split 'valid', expected one of train, test"):
        run(images, tmp_path / "run", evaluate="valid")


def test_a_store_without_manifest_is_refused(images, tmp_path):
    (images / "manifest.json").unlink()
    with pytest.raises(IncompleteError, match=r"its manifest\.json is missing.*pixsim verify"):
        run(images, tmp_path / "run")


def test_the_folder_of_another_jobs_run_is_left_as_it_is(images, tmp_path):
    done = run(images, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    with pytest.raises(ConflictError, match=r"'metrics' there is \['l1', 'l2'\], here \['l1'\]"):
        run(images, tmp_path / "run", metrics=["l1"])
    assert before == {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    assert pipeline.digest(done.path)


def test_a_folder_with_other_files_is_left_as_it_is(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(ConflictError, match="nothing in it was touched"):
        run(images, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_damaged_shard_stops_the_job_and_names_it(images, tmp_path):
    shard = images / "train" / "image" / "c" / "1" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match="train/image"):
        run(images, tmp_path / "run")


def test_a_changed_manifest_is_refused_whatever_was_changed(images, tmp_path):
    content = json.loads((images / "manifest.json").read_text())
    content["splits"]["train"]["labels"][0] += 1
    (images / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DamagedError, match=r"manifest\.json: was changed.*pixsim verify"):
        run(images, tmp_path / "run")


def test_counted_labels_must_be_those_that_the_manifest_says(images, tmp_path):
    content = manifest.read_manifest(images, manifest.IMAGES)
    content["splits"]["train"]["labels"][0] += 1
    manifest.write_manifest(images, manifest.IMAGES, content)
    with pytest.raises(DamagedError, match="its manifest says"):
        run(images, tmp_path / "run")


def swap(one, other):
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)


@pytest.mark.parametrize("array", ["image", "label"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_shards_that_changed_places_are_noticed(images, tmp_path, split, array):
    files = sorted(file for file in (images / split / array / "c").rglob("*") if file.is_file())
    swap(files[0], files[1])
    with pytest.raises(DamagedError, match=f"{split}/{array}.*not the file that was written"):
        run(images, tmp_path / "run")


def test_changed_metadata_of_an_array_is_noticed(images, tmp_path):
    file = images / "train" / "image" / "zarr.json"
    file.write_text(file.read_text().replace("noshuffle", "noshufflE"))
    with pytest.raises(DamagedError, match=r"train/image/zarr\.json: was changed"):
        run(images, tmp_path / "run")


def test_what_is_read_of_a_run_is_checked(images, tmp_path):
    done = run(images, tmp_path / "run").path
    swap(done / "prototypes.zarr/prototype/c/0/0/0", done / "prototypes.zarr/std/c/0/0/0")
    with pytest.raises(DamagedError, match="not the file that was written"):
        pipeline.open_run(done).prototypes["std"].load()
    swap(done / "distances.zarr/distance/c/0/0/0", done / "distances.zarr/distance/c/0/1/0")
    with pytest.raises(DamagedError, match="not the file that was written"):
        pipeline.open_run(done).distances.load()
    metrics = done / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"accuracy": ', '"accuracy": 0', 1))
    with pytest.raises(DamagedError, match=r"metrics\.json: was changed"):
        _ = pipeline.open_run(done).metrics


# interrupted ----------------------------------------------------------------------------------


def test_the_same_job_again_does_nothing(images, tmp_path):
    done = run(images, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    again = run(images, tmp_path / "run")
    assert again.manifest == done.manifest
    assert before == {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}


@dataclass(frozen=True)
class Failing(job.EvaluatePartition):
    """Raises in place of one step."""

    def __call__(self, index):
        if index == 1:
            raise self.failure  # type: ignore[attr-defined]
        return super().__call__(index)


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (KeyboardInterrupt(), JobInterruptedError, "incomplete.*same command again"),
        (MemoryError("no memory"), MemoryError, "no memory"),
        (StorageFullError("no space left"), StorageFullError, "no space"),
    ],
)
def test_a_job_cut_short_keeps_what_is_written_and_resumes_to_the_same_digest(
    images, undisturbed, tmp_path, monkeypatch, failure, expected, message
):
    one_worker = {"cluster": {"kind": "threads", "workers": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(Failing, "failure", failure, raising=False)
        patch.setattr(job, "EvaluatePartition", Failing)
        with pytest.raises(expected, match=message):
            run(images, tmp_path / "run", **one_worker)
    with pytest.raises(IncompleteError, match=r"incomplete.*same command"):
        pipeline.open_run(tmp_path / "run")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("part-*")}
    assert kept
    done = run(images, tmp_path / "run", **one_worker)
    assert done.manifest["digests"] == undisturbed.manifest["digests"]
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in done.path.rglob("part-*")}.items()
    assert not (done.path / ".work").exists()


def cut_short(images, output):
    """Leave a run without manifest, with everything else written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("cut")))
        with pytest.raises(OSError, match="cut"):
            run(images, output)


@pytest.fixture(scope="module")
def cut(made, tmp_path_factory):
    """A run that was cut short, to be copied."""
    cut_short(made, output := tmp_path_factory.mktemp("cut") / "run")
    return output


@pytest.mark.parametrize(
    "victim",
    [
        "predictions/part-000000.parquet",
        "predictions/part-000001.parquet",
        "distances.zarr/distance/c/0/0/0",
        "distances.zarr/label/c/1",
        "prototypes.zarr/numerator/c/0/0/0",
        "prototypes.zarr/denominator/zarr.json",
    ],
)
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_what_was_damaged_before_a_resume_is_made_again(
    made, cut, undisturbed, tmp_path, victim, damage
):
    path = shutil.copytree(cut, tmp_path / "run") / victim
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    assert run(made, tmp_path / "run").manifest["digests"] == undisturbed.manifest["digests"]


def kill_at(name, settings):
    """Run a job in a process that is killed before a file of this name appears."""
    script = f"""
import os, signal
from pathlib import Path
import pipeline

def replace(self, target, replace=Path.replace):
    if {name!r} in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace
pipeline.run_job(pipeline.make_job({settings!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.slow
def test_of_a_killed_run_nothing_is_left_beside_what_is_documented(images, undisturbed, tmp_path):
    done = tmp_path / "run"
    job_file = {"name": "trees", "images": str(images), "output": str(done)}
    for name in ("distance/c/0/1/0", ".manifest.json"):
        kill_at(name, job_file)
        left = [path.name for path in done.rglob("*") if path.name.endswith(atomic.PARTIAL_SUFFIX)]
        assert len(left) in (1, 2)  # of two threads; that of the one before was swept
        assert (done / ".lock").exists()
    said = Said()
    again = pipeline.run_job(make_settings(images, done), said)
    assert [line for line in said.lines if line.startswith("took over the lock of process ")]
    assert again.manifest["digests"] == undisturbed.manifest["digests"]
    assert relative_files(done) == relative_files(undisturbed.path)


def relative_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Said(SilentReporter):
    """Remembers what it was told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)


def test_what_a_process_killed_at_the_very_end_left_is_tidied_up(images, tmp_path):
    done = run(images, tmp_path / "run").path
    before = relative_files(done)
    (done / manifest.WORK).mkdir()
    (done / manifest.WORK / "plan.json").write_text("{}")
    me = this_process()
    gone = Process(me.machine, me.number, me.started - 1)
    (done / ".lock").write_bytes(Holder("f" * 16, "run", "h", "u", gone, "", 1.0).to_bytes())
    with held(done, "verify") as lock:
        run(images, done)  # complete already, whoever holds it
        lock.check()
        assert (done / manifest.WORK).exists()
    (done / ".lock").write_bytes(Holder("e" * 16, "run", "h", "u", gone, "", 1.0).to_bytes())
    run(images, done)
    assert relative_files(done) == before


def test_of_two_runs_in_one_folder_the_second_is_told_of_the_first(images, undisturbed, tmp_path):
    output = tmp_path / "run"
    one_worker = {"cluster": {"kind": "threads", "workers": 1}}
    said = []

    class Twice(job.EvaluatePartition):
        def __call__(self, index):
            with pytest.raises(InUseError, match=f"in use by process {os.getpid()} of") as caught:
                run(images, output, **one_worker)
            said.append(str(caught.value))
            return super().__call__(index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "EvaluatePartition", Twice)
        done = run(images, output, **one_worker)
    assert len(said) == 2
    assert done.manifest["digests"] == undisturbed.manifest["digests"]
    assert relative_files(done.path) == relative_files(undisturbed.path)


def test_a_run_whose_folder_was_taken_over_stops_and_finishes_nothing(images, tmp_path):
    output = tmp_path / "run"
    one_worker = {"cluster": {"kind": "threads", "workers": 1}}
    begun = []

    class Late(job.EvaluatePartition):
        def __call__(self, index):
            begun.append(index)
            holder = Holder("f" * 16, "run", "h", "u", Process("elsewhere", 7, 1), "", 1.0)
            (output / ".lock").write_bytes(holder.to_bytes())
            lock = locks._held[locks._key(output)]
            with pytest.raises(InUseError):
                lock.check()
            return super().__call__(index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "EvaluatePartition", Late)
        with pytest.raises(InUseError, match="was taken over by process 7 of u on h"):
            run(images, output, **one_worker)
    assert len(begun) == 1
    assert not (output / manifest.MANIFEST).exists()
    assert b'"elsewhere"' in (output / ".lock").read_bytes()


@pytest.mark.parametrize("holds", ["a finished run", "a begun run", "something else"])
def test_a_run_that_is_not_to_resume_wants_a_new_folder(images, tmp_path, holds):
    output = tmp_path / "run"
    if holds == "a finished run":
        run(images, output)
    elif holds == "a begun run":
        cut_short(images, output)
    else:
        output.mkdir()
        (output / "notes.txt").write_text("years of work")
    before = relative_files(output)
    settings = make_settings(images, output)
    with pytest.raises(ConflictError, match="was not to be resumed; nothing in it was touched"):
        pipeline.run_job(settings, resume=False)
    assert relative_files(output) == before


@pytest.mark.parametrize("empty", [False, True])
def test_a_run_that_is_not_to_resume_begins_in_a_new_or_an_empty_folder(images, tmp_path, empty):
    if empty:
        (tmp_path / "run").mkdir()
    done = pipeline.run_job(make_settings(images, tmp_path / "run"), resume=False)
    assert done.metrics["l1"]["count"] == 90


def test_a_full_disk_is_one_clear_error_and_the_run_resumes(
    images, undisturbed, tmp_path, monkeypatch
):
    write, written = atomic.Path.replace, []

    def replace(self, target):
        if "part-" in str(target):
            written.append(target)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.Path, "replace", replace)
        with pytest.raises(StorageFullError, match=r"No space left on device.*free some space"):
            run(images, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert run(images, tmp_path / "run").manifest["digests"] == undisturbed.manifest["digests"]


LIMITED = """
import resource, sys
import pipeline
from pipeline.cli import main
images, output = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
sys.exit(main(["run", "job.yml", "--set", f"images={images}", f"output={output}"]))
"""


def test_a_real_file_size_limit_fails_the_job_cleanly(tmp_path, monkeypatch):
    arrays = make_arrays(train=64, test=4000)
    images = make_images(tmp_path / "images.zarr", arrays, shard=4000)
    (tmp_path / "job.yml").write_text("images: to be set\n")
    arguments = [sys.executable, "-c", LIMITED, str(images), str(tmp_path / "run")]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "pixsim: no space left while writing" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(tmp_path)
    changes = [f"images={images}", f"output={tmp_path / 'run'}"]
    assert main(["run", "job.yml", "--set", *changes]) == 0
    assert pipeline.digest(tmp_path / "run")


# memory ---------------------------------------------------------------------------------------

MEASURE = """
import json, resource, sys
import numpy as np
import pipeline
from pipeline.core.blocks import Block
from pipeline.sources.protocol import SplitInfo

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
