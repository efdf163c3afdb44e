"""What is missing of a run or an image set is missed by whoever opens it, and repaired."""

from __future__ import annotations

import shutil

import dask
import pyarrow.parquet as pq
import pytest
from sources_for_tests import NAMES, make_arrays

import pipeline
from pipeline.core.errors import DamagedError
from pipeline.report.shown_samples import open_image_set
from pipeline.sources.arrays import from_arrays
from pipeline.storage import manifest, run_files, tables

SHARD = 8
TOTAL = 2 * 40
PART = "predictions/part-000002.parquet"


def make_job(images, output, **settings):
    content = {
        "name": "job", "images": str(images), "output": str(output), "distances": "write",
    }  # fmt: skip
    return pipeline.make_job({**content, **settings})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    arrays = make_arrays({"train": 12, "test": 40})
    arrays["test"][0][7] = arrays["test"][0][3]
    images = pipeline.ingest(from_arrays(arrays, NAMES), folder / "images.zarr", SHARD)
    return images, pipeline.run_job(make_job(images, folder / "run")).path


@pytest.fixture
def images(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "images.zarr")


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "run")


def delete(run, name=PART):
    (run / name).unlink()


def empty(run):
    (run / PART).write_bytes(b"")


def fewer(run):
    table = pq.read_table(run / PART)
    pq.write_table(table.slice(0, table.num_rows - 3), run / PART)


def swapped(run):
    other = run / "predictions/part-000001.parquet"
    one, two = (run / PART).read_bytes(), other.read_bytes()
    (run / PART).write_bytes(two)
    other.write_bytes(one)


def more(run):
    shutil.copy(run / PART, run / "predictions/part-000005.parquet")


def without_a_shard(run):
    delete(run, "distances.zarr/distance/c/0/2/0")


def with_an_empty_shard(run):
    (run / "prototypes.zarr/numerator/c/0/0/0").write_bytes(b"")


def without_metrics(run):
    delete(run, "metrics.json")


DAMAGES = [
    delete, empty, fewer, swapped, more, without_a_shard, with_an_empty_shard, without_metrics,
]  # fmt: skip
READERS = {
    "open": pipeline.open_run,
    "show": pipeline.describe,
    "digest": pipeline.digest,
    "report": pipeline.write_report,
    "explain": lambda run: pipeline.explain(run, "test", 0),
    "grid": lambda run: pipeline.draw_grid(run, run.parent / "grid.png"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_reader_of_a_run_misses_what_is_missing_and_the_cure_cures(damage, run):
    before = pipeline.digest(run)
    damage(run)
    for name, read in READERS.items():
        with pytest.raises(DamagedError, match=rf"{run}/.*'pixsim verify {run} --repair'"):
            pytest.fail(f"{name} returned {read(run)}")
    pipeline.verify(run, repair=True)
    assert pipeline.digest(run) == before
    assert len(pipeline.open_run(run).predictions) == TOTAL
    for read in READERS.values():
        read(run)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        *((damage, ("predictions", "metrics", "highlights")) for damage in DAMAGES[:5]),
        (without_a_shard, ("distances",)),
        (with_an_empty_shard, ("prototypes",)),
        (without_metrics, ("metrics",)),
    ],
)
def test_what_goes_after_a_run_was_opened_is_missed_too(damage, names, run):
    opened = pipeline.open_run(run)
    damage(run)
    for name in names:
        with pytest.raises(DamagedError, match="--repair"):
            getattr(opened, name)


def test_any_byte_of_a_table_of_predictions_that_was_changed_is_missed(run):
    whole = pipeline.open_run(run).predictions.compute()
    assert list(pipeline.open_run(run).predictions["label"].compute()) == list(whole["label"])
    data = (run / PART).read_bytes()
    for place in range(8, len(data) - 4, 397):
        (run / PART).write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with pytest.raises(DamagedError, match="--repair"):
            pipeline.open_run(run).predictions.compute()


@pytest.mark.parametrize("damage", [delete, empty, fewer, swapped, more])
def test_a_run_without_recorded_sizes_is_checked_by_rows(damage, run):
    content = manifest.read_manifest(run, manifest.RUN)
    del content["sizes"]
    manifest.put_manifest(run, content)
    assert len(pipeline.open_run(run).predictions) == TOTAL
    damage(run)
    with pytest.raises(DamagedError, match="predictions/part-00000"):
        pipeline.open_run(run)


def test_a_report_that_was_removed_is_written_again(run):
    delete(run, "report.html")
    pipeline.open_run(run)
    pipeline.write_report(run)
    assert pipeline.verify(run) == []


@pytest.mark.parametrize("name", ["samples.parquet", "duplicates.parquet"])
def test_a_table_of_an_image_set_that_is_gone_is_missed(name, images):
    delete(images, name)
    for read in (pipeline.open_store, pipeline.describe):
        with pytest.raises(DamagedError, match=rf"{name}: is missing; .*--repair"):
            read(images)


def test_rows_of_samples_that_are_gone_are_missed(images):
    table = pq.read_table(images / "samples.parquet")
    pq.write_table(table.slice(1), images / "samples.parquet")
    with pytest.raises(DamagedError, match="has 51 rows, 52 were written"):
        pipeline.open_store(images)


def test_what_a_report_shows_misses_the_samples_of_its_image_set(images):
    found, _ = open_image_set(images, pipeline.describe(images)["digest"])
    assert set(found.sources([("test", 3)])) == {("test", 3)}
    delete(images, "samples.parquet")
    with pytest.raises(DamagedError, match=r"samples\.parquet: is missing"):
        found.sources([("test", 3)])


@pytest.mark.parametrize("name", ["image/c/2/0/0", "label/c/2"])
def test_a_shard_of_an_image_set_that_is_gone_is_never_filled_in(name, images):
    delete(images, f"test/{name}")
    with pytest.raises(DamagedError, match=r"shard 2 of 5 is missing.*--repair"):
        pipeline.describe(images)
    found = pipeline.open_images(images, "test")
    with pytest.raises(DamagedError, match="missing"):
        found.load()
    with pytest.raises(DamagedError):
        pipeline.digest(images)


def test_nothing_but_the_end_of_a_table_is_read(run, monkeypatch):
    monkeypatch.setattr(pq.ParquetFile, "read", pytest.fail)
    assert tables.read_end(run / PART)[0] == 2 * SHARD
    pipeline.open_run(run)


# names of dask ----------------------------------------------------------------------------------


def names_of(run):
    opened = pipeline.open_run(run)
    prototypes, distances = opened.prototypes, opened.distances
    arrays = {**prototypes.data_vars, "distance": distances, "label": distances.label}
    found = {name: array.data.name for name, array in arrays.items() if array.chunks}
    return {**found, "predictions": opened.predictions._name}


def test_a_run_that_is_made_anew_in_the_same_folder_has_other_names(made, tmp_path):
    """Else chunks that are kept on a cluster would be taken for those of the new run."""
    run = pipeline.run_job(make_job(made[0], tmp_path / "run")).path
    before = names_of(run)
    assert {"numerator", "prototype", "std", "distance", "label", "predictions"} <= set(before)
    assert names_of(run) == before
    shutil.rmtree(run)
    again = pipeline.run_job(make_job(made[0], run)).path
    same = names_of(again)
    assert {**same, "predictions": None} == {**before, "predictions": None}
    shutil.rmtree(run)
    arrays = make_arrays({"train": 12, "test": 40}, seed=1)
    other = pipeline.ingest(from_arrays(arrays, NAMES), tmp_path / "other.zarr", SHARD)
    after = names_of(pipeline.run_job(make_job(other, run)).path)
    assert not set(before.values()) & set(after.values())


def test_prototypes_of_equal_means_and_other_deviations_have_other_names(run):
    path = run / run_files.PROTOTYPES
    one, two = (
        run_files.open_prototypes(path, "digest", {"std": (mark,)})["std"].data.name
        for mark in "ab"
    )
    assert one != two


@pytest.mark.parametrize("other", ["y", "x", "image"])
def test_metadata_of_another_array_in_the_place_of_labels_is_missed(other, images):
    """Its chunks may fit the files of the labels, which would be read as something else."""
    shutil.copyfile(images / f"test/{other}/zarr.json", images / "train/label/zarr.json")
    with pytest.raises(DamagedError, match=r"train/label/zarr\.json: was changed"):
        pipeline.open_images(images, "train")
    pipeline.open_images(images, "test").load()
    pipeline.verify(images, repair=True)
    pipeline.open_images(images, "train").load()


def test_what_a_job_reads_of_its_prototypes_asks_no_cluster(run):
    def no_worker(*_, **__):
        raise AssertionError("a cluster was asked")

    with dask.config.set(scheduler=no_worker):
        found = run_files.read_fractions(run / run_files.PROTOTYPES)
        assert found["numerator"].values.shape == (3, 4, 3)
