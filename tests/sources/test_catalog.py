"""The catalog of named data sets: what it says, where files are looked for, what is refused."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from pipeline.config.job_settings import load_environment
from pipeline.core.errors import ConfigError, DatasetNotFoundError, SourceError
from pipeline.sources.catalog import (
    find_entry,
    find_folder,
    list_datasets,
    load_catalog,
    open_dataset,
)

FILES = ["train-images", "train-labels", "test-images", "test-labels"]
COUNTS = {"train": 6, "test": 3}


@pytest.fixture(autouse=True)
def downloads(monkeypatch):
    """Stand in for the module that downloads: it fails, and remembers that it was asked."""
    asked = []

    def download(name, root):
        asked.append((name, root))
        raise SourceError(f"no download of {name}: the network is not for tests")

    monkeypatch.delenv("PIXSIM_DATASETS", raising=False)
    module = SimpleNamespace(download=download, asked=asked)
    monkeypatch.setitem(sys.modules, "pipeline.sources.torchvision", module)
    return module


def idx_bytes(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def make_files(folder, seed=0, pack=True):
    """Write the four files of a small set; return the arrays of each split and the packed bytes."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    arrays, packed = {}, {}
    for split, count in COUNTS.items():
        images = rng.integers(0, 256, (count, 4, 3), np.uint8)
        labels = rng.integers(0, 2, count).astype(np.uint8)
        arrays[split] = images, labels
        for role, array in (("images", images), ("labels", labels)):
            content = idx_bytes(array)
            packed[f"{split}-{role}"] = data = gzip.compress(content, mtime=0)
            path = folder / f"{split}-{role}{'.gz' if pack else ''}"
            path.write_bytes(data if pack else content)
    return arrays, packed


def write_catalog(tmp_path, monkeypatch, **changes):
    """Make a catalog of one set, `tiny`, the one that is used."""
    entry = {
        "title": "A tiny set",
        "kind": "idx",
        "licence": "CC0",
        "source": "these tests",
        "class_names": ["no", 7],
        "image": [4, 3],
        "splits": {
            split: {"images": f"{split}-images", "labels": f"{split}-labels", "count": count}
            for split, count in COUNTS.items()
        },
        "torchvision": "Tiny",
        "system": {"folder": str(tmp_path / "system" / "tiny"), "package": "dataset-tiny"},
    } | changes
    path = tmp_path / "catalog.yml"
    path.write_text(
        yaml.safe_dump({"tiny": {k: v for k, v in entry.items() if v is not None}}, sort_keys=False)
    )
    monkeypatch.setenv("PIXSIM_CATALOG", str(path))
    return path


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    return write_catalog(tmp_path, monkeypatch)


def holds(source, arrays):
    for split, (images, labels) in arrays.items():
        block = source.read(split, 0, COUNTS[split])
        np.testing.assert_array_equal(block.images, images)
        np.testing.assert_array_equal(block.labels, labels)
    return True


# the project's own catalog --------------------------------------------------------------------


def test_every_entry_of_the_catalog_is_complete():
    entries = load_catalog()
    assert set(entries) >= {"mnist", "fashion-mnist", "kmnist", "cifar10", "digits"}
    for name, entry in entries.items():
        assert entry.name == name
        assert all([entry.title, entry.licence, entry.source]), name
        assert len(set(entry.class_names)) == len(entry.class_names) == 10
        assert list(entry.splits) == ["train", "test"]
        assert all(split["count"] > 0 for split in entry.splits.values())
        assert len(entry.image) in (2, 3)
        assert entry.kind in ("idx", "cifar10", "digits")
        assert (entry.torchvision is None) == (entry.kind == "digits")
        files = {v[role] for v in entry.splits.values() for role in ("images", "labels")
                 if role in v}  # fmt: skip
        assert len(files) == (4 if entry.kind == "idx" else 0)
        assert files <= set(entry.checksums)
        for checksum in entry.checksums.values():
            algorithm, _, digest = checksum.partition(":")
            assert len(digest) == {"sha256": 64, "packed-md5": 32}[algorithm]
            int(digest, 16)


def test_the_garments_have_the_names_that_the_article_gives_them():
    assert find_entry("fashion-mnist").class_names == (
        "T-Shirt", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle Boot",
    )  # fmt: skip


def test_the_md5_sums_of_kmnist_are_of_distinct_files():
    assert len(set(find_entry("kmnist").checksums.values())) == 4


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'fashionmnist' is no data set.*'fashion-mnist'"):
        open_dataset("fashionmnist")


@pytest.mark.parametrize("missing", ["title", "class_names", "image", "splits", "licence"])
def test_an_entry_that_lacks_something_is_refused_by_name(tmp_path, monkeypatch, missing):
    path = write_catalog(tmp_path, monkeypatch, **{missing: None})
    with pytest.raises(ConfigError, match=rf"entry 'tiny' is not complete.*{missing}") as caught:
        load_catalog()
    assert str(path) in str(caught.value)


def test_an_entry_with_an_unknown_key_is_refused_by_name(tmp_path, monkeypatch):
    write_catalog(tmp_path, monkeypatch, colour="red")
    with pytest.raises(ConfigError, match=r"entry 'tiny' is not complete.*colour"):
        load_catalog()


@pytest.mark.parametrize("text", ["- tiny", "tiny: a set", "tiny:", "", "a: ["])
def test_what_is_no_catalog_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "catalog.yml").write_text(text)
    monkeypatch.setenv("PIXSIM_CATALOG", str(tmp_path / "catalog.yml"))
    with pytest.raises(ConfigError, match=r"catalog\.yml"):
        load_catalog()


def test_the_catalog_of_the_environment_is_used_and_one_given_goes_first(catalog, tmp_path):
    assert list(load_catalog()) == ["tiny"]
    assert load_catalog()["tiny"].class_names == ("no", "7")
    (tmp_path / "other.yml").write_text(catalog.read_text().replace("tiny:", "other:", 1))
    assert list(load_catalog(tmp_path / "other.yml")) == ["other"]


# digits ----------------------------------------------------------------------------------------


def test_digits_need_no_file_and_no_network(downloads):
    source = open_dataset("digits", download=False)
    images, labels = load_digits(return_X_y=True)
    assert {k: (i.count, i.shape, i.dtype) for k, i in source.splits().items()} == {
        "train": (898, (8, 8), "uint8"),
        "test": (899, (8, 8), "uint8"),
    }
    found = [source.read("train", 0, 898), source.read("test", 0, 899)]
    pixels = np.concatenate([block.images for block in found])
    assert len(pixels) == 1797
    np.testing.assert_array_equal(pixels.reshape(1797, 64), images)
    np.testing.assert_array_equal(np.concatenate([block.labels for block in found]), labels)
    assert (source.full_scale, pixels.max()) == (16, 16)
    assert source.class_names == tuple("0123456789")
    assert downloads.asked == []


# where files are -------------------------------------------------------------------------------


def test_the_places_are_searched_in_order(catalog, tmp_path, monkeypatch, downloads):
    monkeypatch.setenv("PIXSIM_DATASETS", str(tmp_path / "mine"))
    data = load_environment().data
    places = [
        tmp_path / "mine" / "tiny",
        tmp_path / "mine" / "tiny" / "Tiny" / "raw",
        tmp_path / "system" / "tiny",
        data / "downloads" / "tiny",
        data / "downloads" / "tiny" / "Tiny" / "raw",
    ]
    contents = []
    # from the last to the first, each hides those made before it
    for seed, place in enumerate(reversed(places)):
        arrays, _ = make_files(place / "new", seed)
        for file in (place / "new").iterdir():
            file.rename(place / file.name)
        contents.append(arrays)
        assert find_folder(find_entry("tiny")) == place
        assert holds(open_dataset("tiny"), arrays)
    assert downloads.asked == []


@pytest.mark.parametrize("missing", FILES)
def test_a_folder_that_lacks_a_file_is_passed_over(catalog, tmp_path, monkeypatch, missing):
    monkeypatch.setenv("PIXSIM_DATASETS", str(tmp_path / "mine"))
    make_files(tmp_path / "mine" / "tiny", seed=1)
    whole, _ = make_files(tmp_path / "system" / "tiny", seed=2)
    (tmp_path / "mine" / "tiny" / f"{missing}.gz").unlink()
    assert find_folder(find_entry("tiny")) == tmp_path / "system" / "tiny"
    assert holds(open_dataset("tiny"), whole)


@pytest.mark.parametrize("pack", [False, True])
def test_files_are_read_packed_or_unpacked(catalog, tmp_path, pack):
    arrays, _ = make_files(tmp_path / "system" / "tiny", pack=pack)
    source = open_dataset("tiny", download=False)
    assert holds(source, arrays)
    assert source.class_names == ("no", "7")
    assert source.provenance["name"] == "tiny"
    assert source.provenance["licence"] == "CC0"


def test_the_list_says_where_each_set_is(catalog, tmp_path):
    assert [(entry.name, place) for entry, place in list_datasets()] == [
        ("tiny", "to be downloaded")
    ]
    make_files(tmp_path / "system" / "tiny")
    assert [place for _, place in list_datasets()] == [str(tmp_path / "system" / "tiny")]


def test_the_list_of_the_project_says_that_digits_are_embedded(downloads):
    places = {entry.name: place for entry, place in list_datasets()}
    assert places["digits"] == "embedded"
    assert places["cifar10"] == "to be downloaded"
    assert downloads.asked == []


# not found -------------------------------------------------------------------------------------


@pytest.mark.parametrize("download", [True, False])
def test_a_set_that_is_nowhere_is_refused_with_the_three_ways_to_get_it(
    catalog, downloads, download
):
    with pytest.raises(DatasetNotFoundError) as caught:
        open_dataset("tiny", download=download)
    message = str(caught.value)
    assert "$PIXSIM_DATASETS/tiny" in message
    assert "train-images.gz" in message
    assert "package dataset-tiny" in message
    assert "network" in message
    assert ("the network is not for tests" in message) is download
    assert len(downloads.asked) == download


def test_a_set_without_a_package_of_the_system_names_none(tmp_path, monkeypatch):
    write_catalog(tmp_path, monkeypatch, system=None)
    with pytest.raises(DatasetNotFoundError) as caught:
        open_dataset("tiny", download=False)
    assert "package" not in str(caught.value)


def test_cifar10_that_is_nowhere_names_its_folder():
    with pytest.raises(DatasetNotFoundError, match="cifar-10-batches-py"):
        open_dataset("cifar10", download=False)


def test_a_download_goes_below_the_data_folder_and_is_found_again(catalog, downloads):
    made = []

    def download(name, root):
        made.append((name, root))
        arrays, _ = make_files(root / name / "raw")
        made.append(arrays)
        return root / name / "raw"

    downloads.download = download
    source = open_dataset("tiny")
    assert made[0] == ("Tiny", load_environment().data / "downloads" / "tiny")
    assert holds(source, made[1])
    assert holds(open_dataset("tiny"), made[1])
    assert len(made) == 2  # the second time nothing was downloaded


def test_cifar10_is_read_from_its_folder(tmp_path, monkeypatch, downloads):
    monkeypatch.setenv("PIXSIM_DATASETS", str(tmp_path))
    (tmp_path / "cifar10" / "cifar-10-batches-py").mkdir(parents=True)
    downloads.read_cifar10 = lambda *arguments: arguments
    folder, class_names, provenance = open_dataset("cifar10")
    assert folder == tmp_path / "cifar10"
    assert class_names[:2] == ("airplane", "automobile")
    assert provenance["name"] == "cifar10"
    assert downloads.asked == []


# the real files --------------------------------------------------------------------------------


@pytest.fixture
def real(real_datasets: Path, monkeypatch):
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))


@pytest.mark.datasets
def test_fashion_mnist_has_as_many_images_of_each_garment(real, downloads):
    source = open_dataset("fashion-mnist")
    splits = source.splits()
    assert {k: (i.count, i.shape) for k, i in splits.items()} == {
        "train": (60_000, (28, 28)),
        "test": (10_000, (28, 28)),
    }
    for split, each in {"train": 6000, "test": 1000}.items():
        block = source.read(split, 0, splits[split].count)
        assert np.bincount(block.labels).tolist() == [each] * 10
        assert (block.images.min(), block.images.max()) == (0, 255)
    assert downloads.asked == []


@pytest.mark.datasets
def test_mnist_has_the_threes_and_sevens_of_the_article(real):
    source = open_dataset("mnist")
    counts = np.bincount(source.read("train", 0, 60_000).labels)
    assert (counts[3], counts[7], counts.sum()) == (6131, 6265, 60_000)
    counts = np.bincount(source.read("test", 0, 10_000).labels)
    assert (counts[3], counts[7], counts.sum()) == (1010, 1028, 10_000)
