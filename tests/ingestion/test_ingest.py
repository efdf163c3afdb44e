"""From a source to a store: the same content however it is cut, and nothing lost on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_images
from pipeline.core.blocks import Block
from pipeline.core.errors import (
    BadSamplesError,
    ConfigError,
    ConflictError,
    DamagedError,
    IncompleteError,
    InUseError,
    ShapeError,
    SourceError,
    StorageFullError,
)
from pipeline.execution.executor import open_executor
from pipeline.execution.progress import SilentReporter
from pipeline.ingestion.ingest import (
    finish_ingest,
    ingest,
    ingest_partitions,
    plan_ingest,
    prepare_images,
)
from pipeline.ingestion.store_location import default_store
from pipeline.sources.arrays import from_arrays
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.idx import IdxSource
from pipeline.sources.protocol import SplitInfo
from pipeline.sources.registry import open_source, release
from pipeline.storage import image_store, manifest
from pipeline.storage.image_content import digest_images
from pipeline.storage.lock_files import LOCK
from pipeline.storage.locks import held
from pipeline.storage.sample_tables import SAMPLES, part_path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["cat", "dog", "emu"]
COUNTS = {"test": 9, "train": 30}
SHARD = 8
ONE = ClusterSettings(workers=1)


def make_arrays(shape=(4, 3), dtype=np.uint8, seed=0):
    """Make two splits; labels are in order, as a folder gives them, and each class occurs."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in COUNTS.items():
        images = rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True)
        arrays[split] = images, np.sort(np.arange(count, dtype=np.int32) % 3)
    return arrays


class Watched:
    """A source that remembers what was read, and fails where it is told to."""

    def __init__(self, arrays=None, fails_at=None, names=NAMES):
        self.inner = from_arrays(arrays or make_arrays(), names)
        self.class_names = self.inner.class_names
        self.full_scale = self.inner.full_scale
        self.provenance = self.inner.provenance
        self.fails_at = fails_at
        self.reads = []
        self.closed = False

    def splits(self):
        return self.inner.splits()

    def read(self, split, start, stop):
        if (split, start) == self.fails_at:
            raise SourceError(f"{split} {start}: the disk made a noise")
        self.reads.append((split, start))
        return self.inner.read(split, start, stop)

    def close(self):
        self.closed = True


PARTITIONS = [("test", 0), ("test", 8), *(("train", start) for start in range(0, 30, 8))]


def digest_of(path):
    return manifest.read_manifest(path, manifest.IMAGES)["digest"]


def snapshot(folder):
    """Every file below a folder with what it holds and when it was written."""
    return {
        item: (item.read_bytes(), item.stat().st_mtime_ns)
        for item in folder.rglob("*")
        if item.is_file()
    }


def shards(path):
    return {
        (split, SHARD * int(file.name if name == "label" else file.parent.parent.name), name): file
        for split in COUNTS
        for name in ("image", "label")
        for file in (path / split / name / "c").rglob("*")
        if file.is_file()
    }


def holds(path, arrays):
    for split, (images, labels) in arrays.items():
        found = image_store.open_images(path, split).compute()
        np.testing.assert_array_equal(found["image"].values, images)
        np.testing.assert_array_equal(found["label"].values, labels)
    return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The store of `make_arrays()`, made in one go; to be read only."""
    path = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    return ingest(from_arrays(make_arrays(), NAMES), path, shard_samples=SHARD)


def interrupted(path, fails_at=("train", 16)):
    """Begin a store whose source fails in the middle; return what was read before."""
    source = Watched(fails_at=fails_at)
    with pytest.raises(SourceError, match="made a noise"):
        ingest(source, path, SHARD, ONE)
    assert source.closed
    assert fails_at not in source.reads
    return source.reads


# the same content -----------------------------------------------------------------------------


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
    return IdxSource(files, tuple(NAMES))


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


# what the store says ---------------------------------------------------------------------------


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


# done already, and another one -----------------------------------------------------------------


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
    assert f"'{key}'" in str(caught.value)
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


# interrupted and resumed -----------------------------------------------------------------------


def test_an_interrupted_store_is_incomplete_and_not_opened(tmp_path):
    interrupted(tmp_path / "s")
    assert manifest.kind_of(tmp_path / "s") is None
    with pytest.raises(IncompleteError, match="run the same command"):
        image_store.open_images(tmp_path / "s")


@pytest.mark.parametrize("fails_at", PARTITIONS)
def test_a_resume_writes_what_is_missing_only_and_ends_with_the_same_digest(
    tmp_path, undisturbed, fails_at
):
    path = tmp_path / "s"
    done = interrupted(path, fails_at)
    before = {key: snapshot(file.parent)[file] for key, file in shards(path).items()}
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert sorted(source.reads + done) == sorted(PARTITIONS)
    after = {key: snapshot(file.parent)[file] for key, file in shards(path).items()}
    untouched = [key for key in before if key[:2] in done]
    assert len(untouched) == 2 * len(done)
    assert all(after[key] == before[key] for key in untouched)
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)
    assert holds(path, make_arrays())
    rows = pq.read_table(path / SAMPLES)
    assert rows.equals(pq.read_table(undisturbed / SAMPLES))
    assert not (path / manifest.WORK).exists()


def test_a_store_may_be_interrupted_again_and_again(tmp_path, undisturbed):
    path = tmp_path / "s"
    reads = []
    for fails_at in (("test", 8), ("train", 24), ("train", 8)):
        source = Watched(fails_at=fails_at)
        try:
            ingest(source, path, SHARD, ONE)
        except SourceError:
            reads += source.reads
        else:
            pytest.fail("a partition that failed was taken for done")
        if ("train", 8) in reads:
            break
    last = Watched()
    ingest(last, path, SHARD, ONE)
    assert sorted(reads + last.reads) == sorted(PARTITIONS)
    assert digest_of(path) == digest_of(undisturbed)


def flip(file):
    data = bytearray(file.read_bytes())
    place = len(data) // 3
    if file.suffix == ".parquet":  # in what a checksum covers: the rest is the description
        column = pq.read_metadata(file).row_group(0).column(0)
        place = column.data_page_offset + column.total_compressed_size - 2
    data[place] ^= 4
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {"flipped": flip, "truncated": cut, "empty": lambda file: file.write_bytes(b""),
           "deleted": lambda file: file.unlink()}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["image", "label", "table"])
def test_a_damaged_partition_of_an_unfinished_store_is_made_again(
    tmp_path, undisturbed, damage, what
):
    path = tmp_path / "s"
    done = interrupted(path, ("train", 24))
    victim = done[1]
    if what == "table":
        file = part_path(path, PARTITIONS.index(victim))
    else:
        file = shards(path)[(*victim, what)]
    DAMAGES[damage](file)
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert sorted(source.reads) == sorted([*set(PARTITIONS).difference(done), victim])
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)


def test_a_shard_with_other_images_and_right_checksums_is_made_again(tmp_path, undisturbed):
    path = tmp_path / "s"
    done = interrupted(path, ("train", 24))
    black = np.ones((SHARD, 4, 3), np.uint8)
    split, start = next(place for place in done if place[0] == "train")
    image_store.write_images(path, split, start, black, np.zeros(SHARD, np.int32))
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert (split, start) in source.reads
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)


def test_damage_to_a_finished_store_is_found_when_its_digest_is_taken(tmp_path):
    path = ingest(Watched(), tmp_path / "s", SHARD)
    flip(shards(path)["train", 8, "image"])
    with pytest.raises(DamagedError):
        digest_images(path)


def test_a_killed_process_is_resumed_and_ends_with_the_same_digest(tmp_path, undisturbed):
    arrays = make_arrays()
    np.savez(
        tmp_path / "a.npz",
        **{f"{k}{n}": v[n] for k, v in arrays.items() for n in (0, 1)},
    )
    (tmp_path / "child.py").write_text(
        f"""\
import os, signal
import numpy as np
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_images
from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import ArraySource, from_arrays

class Deadly(ArraySource):
    def read(self, split, start, stop):
        if (split, start) == ("train", 16):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(split, start, stop)

found = np.load({str(tmp_path / "a.npz")!r})
arrays = {{k: (found[k + "0"], found[k + "1"]) for k in ("test", "train")}}
source = from_arrays(arrays, {NAMES!r})
deadly = Deadly(source.arrays, source.class_names, source.full_scale, source.provenance)
ingest(deadly, {str(tmp_path / "s")!r}, {SHARD}, ClusterSettings(workers=1))
""",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, tmp_path / "child.py"], env=environment, check=False)
    assert child.returncode == -9
    with pytest.raises(IncompleteError):
        image_store.open_images(tmp_path / "s")
    source = Watched()
    ingest(source, tmp_path / "s", SHARD)
    assert ("train", 16) in source.reads
    assert len(source.reads) < len(PARTITIONS)
    assert digest_of(tmp_path / "s") == digest_images(tmp_path / "s") == digest_of(undisturbed)


class Meanwhile(Watched):
    """A source that does something before its first samples are read."""

    def __init__(self, does, arrays=None):
        super().__init__(arrays)
        self.does = does

    def read(self, split, start, stop):
        does, self.does = self.does, lambda: None
        does()
        return super().read(split, start, stop)


def test_of_two_ingests_at_once_the_second_is_told_of_the_first(tmp_path, undisturbed):
    path, messages = tmp_path / "s", []

    def again():
        second = Watched()
        for function in (ingest, plan_ingest):
            with pytest.raises(InUseError, match=f"in use by process {os.getpid()} of") as caught:
                function(second, path, SHARD, ONE)
            messages.append(str(caught.value))
        with pytest.raises(ConflictError):
            ingest(Watched(make_arrays(seed=9)), path, SHARD, ONE)
        assert not second.reads

    ingest(Meanwhile(again), path, SHARD, ONE)
    assert len(messages) == 2
    assert digest_of(path) == digest_of(undisturbed)
    assert not (path / LOCK).exists()


def test_partitions_are_written_by_any_number_at_once_and_finished_by_one(tmp_path, undisturbed):
    path = tmp_path / "s"
    number = plan_ingest(Watched(), path, SHARD, ONE)
    assert not (path / LOCK).exists()
    ingest_partitions(
        Meanwhile(lambda: ingest_partitions(Watched(), 0, number, path, SHARD, ONE)),
        0, number, path, SHARD, ONE,
    )  # fmt: skip
    with held(path, "another"), pytest.raises(InUseError):
        finish_ingest(Watched(), path, SHARD, ONE)
    finish_ingest(Watched(), path, SHARD, ONE)
    assert digest_of(path) == digest_of(undisturbed)
    with pytest.raises(ConflictError, match="nothing left to do"):
        finish_ingest(Watched(), path, SHARD, ONE)
    assert not (path / LOCK).exists()


@pytest.mark.parametrize("array", ["image", "label"])
def test_a_full_disk_in_the_middle_is_named_and_the_resume_completes(
    tmp_path, undisturbed, monkeypatch, array
):
    path = tmp_path / "s"
    opened = Path.open

    def full(file, mode="r", *more, **keywords):
        # put aside in the folder of the array
        if "w" in mode and f"train/{array}/c.2." in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(file, mode, *more, **keywords)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", full)
        with pytest.raises(StorageFullError, match="free some space") as caught:
            ingest(Watched(), path, SHARD, ONE)
    assert str(path) in str(caught.value)
    assert manifest.kind_of(path) is None
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert ("train", 16) in source.reads
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)


def test_a_disk_that_is_full_at_the_very_end_leaves_no_manifest_and_the_resume_completes(
    tmp_path, undisturbed, monkeypatch
):
    path = tmp_path / "s"

    def full(_path, _content):
        raise StorageFullError("no space left")

    with monkeypatch.context() as context:
        context.setattr(manifest, "write_json", full)
        with pytest.raises(StorageFullError):
            ingest(Watched(), path, SHARD)
    source = Watched()
    ingest(source, path, SHARD)
    assert digest_of(path) == digest_of(undisturbed)


# what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, 2**31 - 1, -2])
def test_a_label_outside_the_classes_is_named_with_its_sample_and_the_expected(tmp_path, label):
    arrays = make_arrays()
    arrays["train"][1][13] = label
    source = Watched()
    source.inner = replace(source.inner, arrays=arrays)  # from_arrays would refuse them itself
    with pytest.raises(BadSamplesError) as caught:
        ingest(source, tmp_path / "s", SHARD)
    message = str(caught.value)
    assert f"label unknown, label {label}, expected 0 to 2" in message
    assert "'train' sample 13, train[13]" in message
    assert manifest.kind_of(tmp_path / "s") is None
    assert not (tmp_path / "s" / manifest.MANIFEST).exists()


@pytest.mark.parametrize(("pixel", "scale"), [(17, 16), (255, 254)])
def test_a_pixel_above_the_full_scale_is_named_with_both(tmp_path, pixel, scale):
    arrays = {k: (v // 255 * 0, codes) for k, (v, codes) in make_arrays().items()}
    arrays["train"][0][20, 1, 1] = pixel
    with pytest.raises(ShapeError) as caught:
        ingest(from_arrays(arrays, NAMES, full_scale=scale), tmp_path / "s", SHARD)
    message = str(caught.value)
    assert all(text in message for text in ("'train'", f"value {pixel}", str(scale)))
    assert not (tmp_path / "s" / manifest.MANIFEST).exists()


@pytest.mark.parametrize("splits", [{}, {"train": 0}, {"train": 0, "test": 0}])
def test_a_source_without_any_image_is_refused_and_nothing_is_written(tmp_path, splits):
    source = Watched()
    source.splits = lambda: {k: SplitInfo(n, (4, 3), "uint8") for k, n in splits.items()}
    with pytest.raises(SourceError, match="no image, expected one at least"):
        ingest(source, tmp_path / "s", SHARD)
    assert not (tmp_path / "s").exists()


def test_an_empty_split_beside_another_is_kept(tmp_path):
    arrays = make_arrays()
    arrays["test"] = tuple(array[:0] for array in arrays["test"])
    path = ingest(from_arrays(arrays, NAMES), tmp_path / "s", SHARD)
    assert holds(path, arrays)
    assert digest_images(path) == digest_of(path)


@pytest.mark.parametrize("wrong", ["count", "shape", "type"])
def test_a_source_that_gives_other_images_than_it_announced_is_refused(tmp_path, wrong):
    source = Watched()
    read = source.inner.read

    def lies(split, start, stop):
        block = read(split, start, stop)
        images = {
            "count": block.images[:-1],
            "shape": block.images[:, :2],
            "type": block.images.astype(np.uint16),
        }[wrong]
        return Block(images, block.labels, block.origins)

    source.read = lies
    with pytest.raises(ShapeError, match=r"the source gave .*expected \(\d, 4, 3\) uint8"):
        ingest(source, tmp_path / "s", SHARD)
    assert manifest.kind_of(tmp_path / "s") is None


@pytest.mark.parametrize("dtype", [np.int16, np.uint32, np.complex64])
def test_images_of_another_type_are_refused(tmp_path, dtype):
    arrays = {k: (v.astype(dtype), codes) for k, (v, codes) in make_arrays().items()}
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        ingest(from_arrays(arrays, NAMES), tmp_path / "s")
    assert manifest.kind_of(tmp_path / "s") is None


@pytest.mark.parametrize("shard", [0, -1])
def test_a_shard_without_images_is_refused(tmp_path, shard):
    with pytest.raises(ConfigError, match=f"{shard} images per shard"):
        ingest(Watched(), tmp_path / "s", shard)
    assert not (tmp_path / "s").exists()


def test_a_source_object_needs_a_place_for_its_store():
    with pytest.raises(ConfigError, match="needs an output"):
        ingest(Watched())


# sources and stores by name --------------------------------------------------------------------


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
