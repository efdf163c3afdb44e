"""From a source to a store: the same content however it is cut."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingests_for_tests import (
    COUNTS,
    NAMES,
    ONE,
    PARTITIONS,
    SHARD,
    Watched,
    digest_of,
    holds,
    interrupted,
    make_arrays,
    snapshot,
)
from PIL import Image

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_images
from pipeline.core.errors import ConfigError, ConflictError, IncompleteError
from pipeline.execution.executor import open_executor
from pipeline.execution.progress import SilentReporter
from pipeline.ingestion.ingest import ingest, prepare_images
from pipeline.ingestion.request import default_store
from pipeline.sources.arrays import from_arrays
from pipeline.sources.catalog import idx_source
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import open_source, release
from pipeline.storage import manifest
from pipeline.storage.image_content import digest_images
from pipeline.storage.sample_tables import SAMPLES


@pytest.mark.parametrize("shard", [1, 7, 30, 1000, None])
def test_the_digest_is_the_same_for_any_size_of_shard(tmp_path, undisturbed, shard):
    path = ingest(from_arrays(make_arrays(), NAMES), tmp_path / "s", shard)
    assert holds(path, make_arrays())
    assert digest_of(path) == digest_of(undisturbed)


@pytest.mark.parametrize("cluster", [ONE, ClusterSettings(workers=4)])
def test_the_digest_is_the_same_for_any_number_of_workers(tmp_path, undisturbed, cluster):
    path = ingest(from_arrays(make_arrays(), NAMES), tmp_path / "s", SHARD, cluster)
    assert digest_of(path) == digest_of(undisturbed)


def as_npz(folder, arrays):
    content = {
        f"{k}_{n}": v[i] for k, v in arrays.items() for i, n in enumerate(("images", "labels"))
    }
    np.savez(folder / "set.npz", class_names=np.array(NAMES), **content)
    return open_source(str(folder / "set.npz"))


def as_idx(folder, arrays):
    files = {}
    for split, pair in arrays.items():
        files[split] = tuple(folder / f"{split}-{role}" for role in ("images", "labels"))
        for path, array in zip(files[split], pair, strict=True):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.astype("u1").tobytes())
    return idx_source(files, tuple(NAMES), {})


def as_folder(folder, arrays):
    for split, (images, labels) in arrays.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "set" / split / NAMES[label] / f"{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return open_source(str(folder / "set"))


@pytest.mark.parametrize("kind", [as_npz, as_idx, as_folder])
def test_the_digest_is_the_same_for_any_kind_of_source(tmp_path, undisturbed, kind):
    path = ingest(kind(tmp_path, make_arrays()), tmp_path / "s", 5)
    assert holds(path, make_arrays())
    assert digest_of(path) == digest_of(undisturbed)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((5, 3, 3), np.uint8), ((4, 3), np.uint16), ((2, 2, 3), np.uint16)]
)
def test_the_digest_of_every_kind_of_image_is_that_of_what_is_read_back(tmp_path, shape, dtype):
    arrays = make_arrays(shape, dtype)
    found = {
        digest_of(ingest(from_arrays(arrays, NAMES), tmp_path / f"s{shard}", shard))
        for shard in (7, 16)
    }
    assert found == {digest_images(tmp_path / "s7")} == {digest_images(tmp_path / "s16")}


def change_pixel(arrays):
    arrays["train"][0][11, 2, 1] ^= 1


def change_label(arrays):
    arrays["train"][1][11] = (arrays["train"][1][11] + 1) % 3


def drop_label(arrays):
    arrays["train"][1][11] = -1


def swap_images(arrays):
    arrays["train"][0][[1, 2]] = arrays["train"][0][[2, 1]]


def drop_image(arrays):
    arrays["train"] = tuple(array[:-1] for array in arrays["train"])


def rename_split(arrays):
    arrays["valid"] = arrays.pop("test")


def swap_splits(arrays):
    arrays["train"], arrays["test"] = arrays["test"], arrays["train"]


def change_shape(arrays):
    arrays.update({k: (v.reshape(-1, 3, 4), codes) for k, (v, codes) in arrays.items()})


def change_type(arrays):
    arrays.update({k: (v.astype(np.uint16), codes) for k, (v, codes) in arrays.items()})


@pytest.mark.parametrize(
    "change",
    [change_pixel, change_label, drop_label, swap_images, drop_image, rename_split, swap_splits,
     change_shape, change_type],
)  # fmt: skip
def test_the_digest_changes_with_any_image_and_its_place(tmp_path, undisturbed, change):
    arrays = make_arrays()
    change(arrays)
    path = ingest(from_arrays(arrays, NAMES, full_scale=255), tmp_path / "s", SHARD)
    assert digest_of(path) != digest_of(undisturbed)


@pytest.mark.parametrize(
    ("names", "full_scale"), [(["cat", "dog", "ostrich"], 255), (NAMES[::-1], 255), (NAMES, 256)]
)
def test_the_digest_changes_with_what_labels_and_pixels_mean(
    tmp_path, undisturbed, names, full_scale
):
    path = ingest(from_arrays(make_arrays(), names, full_scale), tmp_path / "s", SHARD)
    assert digest_of(path) != digest_of(undisturbed)


@pytest.mark.parametrize("what", ["provenance", "order of splits"])
def test_the_digest_stays_with_what_does_not_change_the_images(tmp_path, undisturbed, what):
    arrays, provenance = make_arrays(), None
    if what == "provenance":
        provenance = {"kind": "found in an attic"}
    else:
        arrays = dict(reversed(arrays.items()))
    path = ingest(from_arrays(arrays, NAMES, provenance=provenance), tmp_path / "s", SHARD)
    assert digest_of(path) == digest_of(undisturbed)


def test_the_digest_in_the_manifest_is_that_of_what_is_on_disk(undisturbed):
    assert digest_images(undisturbed) == digest_of(undisturbed)


def test_the_manifest_counts_images_by_class_and_lists_every_partition(tmp_path):
    arrays = make_arrays()
    images, labels = arrays["train"]
    labels[[3, 4]] = -1
    path = ingest(from_arrays(arrays, NAMES), tmp_path / "s", SHARD)
    found = manifest.read_manifest(path, manifest.IMAGES)
    assert found["splits"]["train"]["labels"] == [int((labels == code).sum()) for code in range(3)]
    assert found["splits"]["train"]["unlabelled"] == 2
    assert found["splits"]["test"]["unlabelled"] == 0
    assert found["splits"]["train"]["count"] == len(images)
    assert found["class_names"] == NAMES
    ranges = [(part["split"], part["start"], part["stop"]) for part in found["partitions"]]
    assert ranges == [(s, start, min(start + SHARD, COUNTS[s])) for s, start in PARTITIONS]
    assert len({part["digest"] for part in found["partitions"]}) == len(PARTITIONS)
    assert sorted(item.name for item in path.iterdir()) == [
        manifest.COPY, manifest.MANIFEST, SAMPLES, "test", "train", "zarr.json"
    ]  # fmt: skip


def test_the_table_of_samples_says_where_each_image_comes_from(tmp_path):
    arrays = make_arrays()
    arrays["train"][1][5] = -1
    path = ingest(from_arrays(arrays, NAMES), tmp_path / "s", SHARD)
    table = pq.read_table(path / SAMPLES)
    assert table.column_names == [
        "sample", "split", "source", "label", "label_name", "width", "height", "status", "detail",
        "sha256",
    ]  # fmt: skip
    rows = table.to_pylist()
    expected = []
    for split, (images, labels) in arrays.items():
        for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            expected.append({
                "sample": number,
                "split": split,
                "source": f"{split}[{number}]",
                "label": None if label < 0 else label,
                "label_name": None if label < 0 else NAMES[label],
                "width": 3,
                "height": 4,
                "status": "ok",
                "detail": None,
                "sha256": hashlib.sha256(image.tobytes()).digest(),
            })  # fmt: skip
    assert rows == expected


def test_the_table_of_samples_of_a_folder_names_its_files(tmp_path):
    path = ingest(as_folder(tmp_path, make_arrays()), tmp_path / "s")
    sources = pq.read_table(path / SAMPLES)["source"].to_pylist()
    assert sources[0] == "test/cat/000.png"
    assert all((tmp_path / "set" / source).is_file() for source in sources)


def test_a_second_ingest_of_the_same_images_reads_and_writes_nothing(tmp_path):
    path = tmp_path / "s"
    ingest(Watched(), path, SHARD)
    before = snapshot(path)
    again = Watched()
    assert ingest(again, path, SHARD) == path
    assert again.reads == []
    assert snapshot(path) == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("other", ["images", "class names", "shard"])
def test_another_image_set_in_the_folder_is_refused_and_nothing_changes(tmp_path, finished, other):
    path = tmp_path / "s"
    if finished:
        ingest(Watched(), path, SHARD)
    else:
        interrupted(path)
    before = snapshot(path)
    arrays = make_arrays(seed=1) if other == "images" else make_arrays()
    names = ["a", "b", "c"] if other == "class names" else NAMES
    source = Watched(arrays, names=names)
    with pytest.raises(ConflictError, match="nothing in it was touched") as caught:
        ingest(source, path, 4 if other == "shard" else SHARD)
    key = {"images": "source", "class names": "class_names", "shard": "splits"}[other]
    assert f"'{key}" in str(caught.value)
    assert source.reads == []
    assert snapshot(path) == before


def test_a_folder_of_something_else_is_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "chapter.txt").write_text("years of work")
    before = snapshot(path)
    with pytest.raises(ConflictError):
        ingest(Watched(), path, SHARD)
    assert snapshot(path) == before


def test_a_source_is_opened_by_its_name_or_path(tmp_path):
    assert open_source("digits").provenance["name"] == "digits"
    as_folder(tmp_path, make_arrays())
    found = open_source(str(tmp_path / "set"))
    assert isinstance(found, EncodedSource)
    assert found.class_names == tuple(NAMES)
    release(found)
    as_npz(tmp_path, make_arrays())
    assert open_source(str(tmp_path / "set.npz")).class_names == tuple(NAMES)


@pytest.mark.parametrize(("text", "hint"), [("digit", "'digits'"), ("no/such/set.npz", "known")])
def test_what_is_no_source_is_refused_with_what_there_is(text, hint):
    with pytest.raises(ConfigError) as caught:
        open_source(text)
    assert f"images '{text}'" in str(caught.value)
    assert hint in str(caught.value)


def test_a_named_set_is_stored_below_the_data_folder(tmp_path):
    path = ingest("digits")
    assert path == tmp_path / "data" / "stores" / "digits.zarr" == default_store("digits")
    found = manifest.read_manifest(path, manifest.IMAGES)
    assert {name: split["count"] for name, split in found["splits"].items()} == {
        "train": 898,
        "test": 899,
    }
    assert found["full_scale"] == 16


def prepare(text):
    with open_executor() as executor:
        return prepare_images(make_images(text), executor, SilentReporter())


def test_a_job_uses_a_store_as_it_is(undisturbed):
    before = snapshot(undisturbed)
    assert prepare(str(undisturbed)) == undisturbed
    assert snapshot(undisturbed) == before


def test_a_job_makes_the_store_of_a_named_set_once(monkeypatch):
    path = prepare("digits")
    before = snapshot(path)
    # the files of the set may be gone: the checksums of the catalog decide
    monkeypatch.setattr("pipeline.sources.registry.open_dataset", pytest.fail)
    assert prepare("digits") == path
    assert snapshot(path) == before


def test_a_job_refuses_a_store_that_was_never_finished(tmp_path):
    interrupted(tmp_path / "s")
    with pytest.raises(IncompleteError, match="incomplete"):
        prepare(str(tmp_path / "s"))


def test_a_job_refuses_a_store_whose_manifest_was_lost(tmp_path):
    path = ingest(Watched(), tmp_path / "s", SHARD)
    (path / manifest.MANIFEST).unlink()
    with pytest.raises(IncompleteError, match=r"manifest\.json"):
        prepare(str(path))


def test_the_plan_that_a_store_starts_from_is_plain_json(tmp_path):
    interrupted(tmp_path / "s")
    record = json.loads((tmp_path / "s" / manifest.WORK / "plan.json").read_text())
    assert record["kind"] == manifest.IMAGES
    assert record["plan"]["class_names"] == NAMES
