"""torchvision's data sets by name: found or fetched, read one by one, refused where unfit."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.errors import LabelError, SourceError
from pipeline.sources import torchvision, torchvision_sets
from pipeline.sources.catalog import idx_source
from pipeline.sources.torchvision import open_torchvision
from pipeline.sources.torchvision_sets import by_split


@pytest.fixture
def reader(monkeypatch):
    """The module around torchvision, in which a data set that needs the network fails."""

    def no_network(*_, **__):
        raise OSError("the network is not for tests")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return torchvision


# downloads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, 12.5])
@pytest.mark.parametrize(
    "failure",
    [RuntimeError("File not found\nor corrupted."), OSError("mirror answers 503"), ValueError()],
)
def test_a_failed_download_says_why_in_one_line_and_restores_the_timeout(
    reader, tmp_path, monkeypatch, failure, before
):
    during = []

    def fails(root, download):
        during.append((root, download, socket.getdefaulttimeout()))
        raise failure

    monkeypatch.setattr(reader.datasets, "MNIST", fails)
    old = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(before)
        with pytest.raises(SourceError) as caught:
            reader.download("MNIST", tmp_path)
        assert socket.getdefaulttimeout() == before
    finally:
        socket.setdefaulttimeout(old)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in (str(failure) or "ValueError").split())
    ((root, download, timeout),) = during
    assert (root, download) == (str(tmp_path), True)
    assert timeout is not None  # a silent network must not hang the job


def test_a_download_returns_the_folder_of_the_files_and_restores_the_timeout(
    reader, tmp_path, monkeypatch
):
    class Mnist:
        def __init__(self, root, download):
            self.raw_folder = f"{root}/MNIST/raw"

    monkeypatch.setattr(reader.datasets, "MNIST", Mnist)
    before = socket.getdefaulttimeout()
    assert reader.download("MNIST", tmp_path) == tmp_path / "MNIST" / "raw"
    assert socket.getdefaulttimeout() == before


def test_no_network_at_all_is_a_failed_download(reader, tmp_path):
    with pytest.raises(SourceError):
        reader.download("KMNIST", tmp_path)


# CIFAR-10 --------------------------------------------------------------------------------------


def make_cifar10(root, reader, monkeypatch, count=4):
    """Write small files in the layout of CIFAR-10, and make their checksums the right ones."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels, labels, sums = {}, {}, {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        content = {"label_names": [f"class {n}" for n in range(10)]}
        if name != "batches.meta":
            # three planes one after the other, as the format's description says
            pixels[name] = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
            labels[name] = rng.integers(0, 10, count).tolist()
            content = {"data": pixels[name].reshape(count, -1), "labels": labels[name]}
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    cifar = reader.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[n, sums[n]] for n in sums if n[0] == "d"])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar, "meta", meta)
    planes = {
        "train": np.concatenate([pixels[f"data_batch_{n}"] for n in range(1, 6)]),
        "test": pixels["test_batch"],
    }
    codes = {
        "train": [code for n in range(1, 6) for code in labels[f"data_batch_{n}"]],
        "test": labels["test_batch"],
    }
    return {name: np.moveaxis(planes[name], 1, 3) for name in planes}, codes


def test_cifar10_is_read_as_rgb_images(reader, tmp_path, monkeypatch):
    images, labels = make_cifar10(tmp_path, reader, monkeypatch)
    names = tuple("abcdefghij")
    catalog = reader.read_cifar10(tmp_path, names, {"name": "cifar10"})
    assert (catalog.class_names, catalog.provenance) == (names, {"name": "cifar10"})
    named = open_torchvision("cifar10", [tmp_path / "nothing", tmp_path])
    assert named.class_names == tuple(f"class {n}" for n in range(10))
    for source in (catalog, named):
        assert {k: (i.count, i.shape, i.dtype) for k, i in source.splits().items()} == {
            "train": (20, (32, 32, 3), "uint8"),
            "test": (4, (32, 32, 3), "uint8"),
        }
        for split in images:
            block = source.read(split, 1, len(images[split]))
            np.testing.assert_array_equal(block.images, images[split][1:])
            assert block.labels.tolist() == labels[split][1:]


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damaged_cifar10_files_are_refused(reader, tmp_path, monkeypatch, damage):
    make_cifar10(tmp_path, reader, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(SourceError, match="CIFAR-10 cannot be read"):
        reader.read_cifar10(tmp_path, tuple("abcdefghij"), {})
    with pytest.raises(SourceError, match="CIFAR10: was not found"):
        open_torchvision("CIFAR10", [tmp_path], download=False)


# by name ---------------------------------------------------------------------------------------


def test_fake_data_is_read_as_torchvision_gives_it(reader):
    options = {"size": 12, "image_size": (3, 5, 4), "num_classes": 3}
    source = open_torchvision("fakedata", [], options)
    expected = reader.datasets.FakeData(**options)
    info = source.splits()["train"]
    assert (info.count, info.shape, info.dtype) == (12, (5, 4, 3), "uint8")
    images = np.stack([np.asarray(image) for image, _ in expected])
    labels = [int(target) for _, target in expected]
    starts = np.random.default_rng(0).permutation(np.tile(np.arange(0, 12, 3), 10)).tolist()

    def read(start):
        block = source.read("train", start, start + 3)
        np.testing.assert_array_equal(block.images, images[start : start + 3])
        assert block.labels.tolist() == labels[start : start + 3]
        assert block.origins[0] == f"FakeData/train[{start}]"
        return True

    with ThreadPoolExecutor(4) as pool:  # they share the state of the random numbers
        assert all(pool.map(read, starts))
    assert source.class_names == tuple(str(code) for code in range(max(labels) + 1))
    assert json.loads(json.dumps(source.provenance))["options"]["image_size"] == [3, 5, 4]
    again = pickle.loads(pickle.dumps(source))
    source.close()
    np.testing.assert_array_equal(again.read("train", 0, 12).images, images)


def test_two_sources_of_equal_provenance_hold_the_same_images():
    options = {"size": 3, "image_size": (1, 5, 4)}
    seen = [
        str(open_torchvision("FakeData", [], {**options, "random_offset": n}).provenance)
        for n in (0, 0, 1)
    ]
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.datasets
def test_mnist_has_the_images_of_the_idx_files(reader, real_datasets, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    places = {"train": "train", "test": "t10k"}
    for prefix in places.values():
        for role in ("images-idx3", "labels-idx1"):
            packed = real_datasets / "mnist" / f"{prefix}-{role}-ubyte.gz"
            with gzip.open(packed) as file, (raw / packed.stem).open("wb") as plain:
                shutil.copyfileobj(file, plain)
    source = open_torchvision("mnist", [tmp_path], download=False)
    files = {
        split: (raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte")
        for split, prefix in places.items()
    }
    oracle = idx_source(files, source.class_names, {})
    for split, count in {"train": 60_000, "test": 10_000}.items():
        assert source.splits()[split].count == count
        found, expected = (s.read(split, count - 500, count) for s in (source, oracle))
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)
    assert source.class_names[3] == "3 - three"
    oracle.close()
    source.close()


# any class -------------------------------------------------------------------------------------


class Splits:
    """A data set with `split`, which needs a download, as torchvision writes them."""

    have = True

    def __init__(self, root, split="train", download=False, transform=None, size=3):
        known = ("train", "val", "trainval", "test")
        if not (Splits.have or download):
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        if download:
            Splits.fetched.append(str(root))
        self.number, self.size = known.index(split), size
        self.classes = [("cat", "tom"), ("dog",), ("dog",), "emu"]

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError
        image = Image.fromarray(np.full((2, 3), 10 * self.number + index, np.uint8))
        return image, torch.tensor(index)


@pytest.fixture
def splits(reader, monkeypatch):
    monkeypatch.setattr(reader.datasets, "SVHN", Splits)
    entry = by_split("train val test", "trainval", {"size": ()})
    monkeypatch.setattr(torchvision_sets, "TABLE", {"SVHN": entry})
    monkeypatch.setattr(torchvision, "TABLE", torchvision_sets.TABLE)
    monkeypatch.setattr(Splits, "have", True)
    monkeypatch.setattr(Splits, "fetched", [], raising=False)
    return Splits


def test_every_split_of_a_data_set_is_read_but_not_their_unions(splits, tmp_path):
    source = open_torchvision("svhn", [tmp_path], {"size": 2})
    assert list(source.splits()) == ["train", "val", "test"]
    found = {name: source.read(name, 0, 2) for name in source.splits()}
    assert {n: b.images[:, 0, 0].tolist() for n, b in found.items()} == {
        "train": [0, 1], "val": [10, 11], "test": [30, 31]
    }  # fmt: skip
    assert found["val"].labels.tolist() == [0, 1]
    assert source.class_names == ("cat, tom", "dog (1)", "dog (2)", "emu")
    assert list(open_torchvision("SVHN", [tmp_path], {"split": "trainval"}).splits()) == [
        "trainval"
    ]
    assert splits.fetched == []


def test_codes_with_gaps_and_without_names_are_classes_as_elsewhere(splits, tmp_path, monkeypatch):
    codes = {0: [3, 7, 3], 1: [7, 12, 3], 3: [12, -1, 3]}

    def item(self, index):
        code = codes[self.number][index]
        return Image.fromarray(np.zeros((2, 3), np.uint8)), torch.tensor(code)

    monkeypatch.setattr(Splits, "__getitem__", item)
    monkeypatch.setattr(
        Splits, "classes", property(lambda self: None, lambda self, _: None), raising=False
    )
    source = open_torchvision("svhn", [tmp_path])
    assert source.class_names == ("3", "7", "12")
    found = {name: source.read(name, 0, 3).labels.tolist() for name in source.splits()}
    assert found == {"train": [0, 1, 0], "val": [1, 2, 0], "test": [2, -1, 0]}
    codes[0], codes[1], codes[3] = [1, -1, 1], [1, 1, 1], [-1, 1, 1]
    with pytest.raises(LabelError, match="the labels are -1 and 1"):
        open_torchvision("svhn", [tmp_path])


def test_what_is_missing_is_downloaded_below_the_last_root(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(splits, "have", False)
    roots = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        SourceError, match=r"was not found \(.*/a: Dataset not found.*/b: Data.*put"
    ):
        open_torchvision("SVHN", roots, download=False)
    assert splits.fetched == []
    source = open_torchvision("SVHN", roots)
    assert set(splits.fetched) == {str(tmp_path / "b")}
    assert source.read("train", 0, 3).labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "item", [([1, 2],), ("a caption",), (1.5,), (None,), (True,), (3, 4), ({"boxes": []},)]
)
def test_targets_that_are_not_one_whole_number_are_refused(splits, tmp_path, monkeypatch, item):
    image = Image.new("L", (3, 2))
    monkeypatch.setattr(splits, "__getitem__", lambda *_: (image, *item))
    with pytest.raises(SourceError, match=r"Splits: sample 0 has the target.*one whole number"):
        open_torchvision("SVHN", [tmp_path])


def test_a_data_set_of_which_nothing_can_be_read_is_refused(splits, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("cannot identify image file")

    monkeypatch.setattr(splits, "__getitem__", broken)
    with pytest.raises(SourceError, match="none of the first 3 images of split 'train'"):
        open_torchvision("SVHN", [tmp_path])
