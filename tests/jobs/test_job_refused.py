"""Jobs that cannot be run, and what is damaged: refused by name, and left as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from jobs_for_tests import NAMES, make_arrays, make_images, run

import pipeline
from pipeline.core.errors import (
    ConflictError,
    DamagedError,
    EmptyClassError,
    IncompleteError,
    LabelError,
    ShapeError,
    StoreError,
)
from pipeline.storage import manifest


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
