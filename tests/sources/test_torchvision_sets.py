"""The table of torchvision's data sets: it fits the installed ones, and reads each kind of them."""

from __future__ import annotations

import bz2
import inspect
import os
import re

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from pipeline.core.errors import ConfigError, SourceError
from pipeline.sources.torchvision import open_torchvision
from pipeline.sources.torchvision_sets import TABLE, open_split, pixels_of

NOT_OPTIONS = {
    "root", "download", "transform", "target_transform", "transforms", "loader", "is_valid_file",
}  # fmt: skip


def parameters_of(name):
    """The arguments of a class, with those of its parents where it passes on others."""
    known = {}
    for parent in getattr(datasets, name).__mro__:
        if "__init__" in vars(parent):
            own = inspect.signature(parent).parameters.values()
            known = {
                p.name: p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
            } | known
            if not any(p.kind is p.VAR_KEYWORD for p in own):
                return known
    return known


@pytest.mark.parametrize("name", TABLE)
def test_the_table_has_the_arguments_of_the_installed_torchvision(name):
    entry, parameters = TABLE[name], parameters_of(name)
    assert set(entry.options) == set(parameters) - NOT_OPTIONS
    assert entry.has_root == ("root" in parameters)
    assert entry.downloads == ("download" in parameters)
    needed = {n for n, p in parameters.items() if p.default is p.empty} - {"root"}
    assert needed <= set(entry.required)
    for arguments in entry.splits.values():
        assert set(arguments) <= set(parameters)


@pytest.mark.parametrize("name", [name for name in TABLE if "split" in TABLE[name].options])
def test_the_table_has_the_splits_of_the_installed_torchvision(name):
    if name == "CelebA":  # which looks for its files first
        return
    with pytest.raises(ValueError, match="Valid values are") as caught:
        getattr(datasets, name)(root=os.devnull, split="?")
    listed = re.findall(r"'([^']+)'", str(caught.value).partition("Valid values are")[2])
    assert set(TABLE[name].options["split"]) == set(listed)


def save(path, seed=0, shape=(4, 5, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def textures(root):
    for number, split in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{split}.png" for kind in ("dotted", "banded")]
        for place, name in enumerate(names):
            save(root / "dtd" / "dtd" / "images" / name, 2 * number + place)
        write(root / "dtd" / "dtd" / "labels" / f"{split}1.txt", "\n".join(names) + "\n")


def signs(root):
    for code in range(2):
        save(root / "gtsrb" / "GTSRB" / "Training" / f"{code:05}" / "0.ppm", code)
        save(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{code}.ppm", code + 2)
    write(root / "gtsrb" / "GT-final_test.csv", "Filename;ClassId\n0.ppm;1\n1.ppm;0\n")


def digits(root):
    values = np.random.default_rng(0).integers(-1, 2, (3, 256)).tolist()
    lines = [
        f"{label} " + " ".join(f"{place + 1}:{value}" for place, value in enumerate(row))
        for label, row in zip((3, 1, 2), values, strict=True)
    ]
    for _, name, _ in datasets.USPS.split_list.values():
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def things(root):
    for number, kind in enumerate(("BACKGROUND_Google", "ant", "bee")):
        save(root / "caltech101" / "101_ObjectCategories" / kind / "image_0001.jpg", number)


def pets(root):
    for split in ("trainval", "test"):
        names = [f"{kind}_{split}" for kind in ("Abyssinian", "Bombay", "beagle")]
        for number, name in enumerate(names):
            save(root / "oxford-iiit-pet" / "images" / f"{name}.jpg", number)
        lines = zip(names, (1, 2, 3), (1, 1, 2), strict=True)
        text = "".join(f"{name} {breed} {kind} 1\n" for name, breed, kind in lines)
        write(root / "oxford-iiit-pet" / "annotations" / f"{split}.txt", text)


@pytest.mark.parametrize(
    ("name", "make", "splits", "labels", "classes", "recorded"),
    [
        ("DTD", textures, ["train", "val", "test"], [1, 0], ("banded", "dotted"), "files_sha256"),
        ("GTSRB", signs, ["train", "test"], [0, 1], ("0", "1"), "files_sha256"),
        ("USPS", digits, ["train", "test"], [2, 0, 1], ("0", "1", "2"), "sha256"),
        ("Caltech101", things, ["train"], [0, 1], ("ant", "bee"), "sha256"),
    ],
)
def test_each_kind_of_data_set_is_read_as_torchvision_gives_it(
    tmp_path, name, make, splits, labels, classes, recorded
):
    make(tmp_path)
    source = open_torchvision(name, [tmp_path], download=False)
    assert list(source.splits()) == splits
    assert source.class_names == classes
    assert recorded in source.provenance["splits"]["train"]
    for split in splits:
        given = getattr(datasets, name)(str(tmp_path), **source.arguments[split])
        block = source.read(split, 0, len(given))
        np.testing.assert_array_equal(block.images, [np.asarray(image) for image, _ in given])
        assert [classes[code] for code in block.labels] == [
            (source.class_names[target]) for _, target in given
        ]
    assert source.read("train", 0, len(labels)).labels.tolist() == labels


def test_another_target_has_its_own_labels_and_class_names(tmp_path):
    pets(tmp_path)
    found = {}
    for target in ("category", "binary-category"):
        source = open_torchvision("OxfordIIITPet", [tmp_path], {"target_types": target}, False)
        found[target] = source.class_names, source.read("trainval", 0, 3).labels.tolist()
    assert found == {
        "category": (("Abyssinian", "Bombay", "Beagle"), [0, 1, 2]),
        "binary-category": (("Cat", "Dog"), [0, 0, 1]),
    }


def test_a_name_option_or_value_that_is_not_known_is_refused_with_what_is(tmp_path):
    with pytest.raises(ConfigError, match="no data set 'fashionmnst'; did you mean 'FashionMNIST'"):
        open_torchvision("fashionmnst", [])
    with pytest.raises(
        ConfigError, match=r"'CocoDetection' is not read: .*expected one of CIFAR10"
    ):
        open_torchvision("CocoDetection", [tmp_path])
    with pytest.raises(ConfigError, match=r"no option 'sise' .*did you mean 'size'"):
        open_torchvision("Imagenette", [tmp_path], {"sise": 3})
    with pytest.raises(ConfigError, match="no option 'transform'"):
        open_torchvision("SVHN", [tmp_path], {"transform": None})
    with pytest.raises(ConfigError, match=r"'all' is no value .*one of train, test, extra"):
        open_torchvision("SVHN", [tmp_path], {"split": "all"})


def test_options_that_a_class_needs_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"EMNIST needs the option 'split', one of .*balanced"):
        open_torchvision("EMNIST", [tmp_path], download=False)
    with pytest.raises(SourceError, match="EMNIST: was not found"):
        open_torchvision("EMNIST", [tmp_path], {"split": "balanced"}, download=False)
    with pytest.raises(ConfigError, match="CelebA needs the option 'target_type', one of identity"):
        open_torchvision("CelebA", [tmp_path])


def test_arrays_in_memory_are_used_only_where_they_are_what_is_given(monkeypatch, tmp_path):
    class Plain:
        classes = ("a", "b")

        def __init__(self, turned):
            self.data = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
            self.targets = self.labels = [1, 0]
            self.turned = turned

        def __len__(self):
            return 2

        def __getitem__(self, index):
            image = self.data[index][::-1] if self.turned else self.data[index]
            return Image.fromarray(np.ascontiguousarray(image)), self.targets[index]

    for name, turned in (("USPS", False), ("SVHN", True)):
        monkeypatch.setattr(datasets, name, lambda turned=turned, **_: Plain(turned))
        opened = open_split(name, tmp_path, {})
        assert (opened.images is None) == turned
        image, code = opened.sample(0)
        assert image[0, 0] == (8 if turned else 0)
        assert code == 1


def test_attributes_that_are_elsewhere_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "DTD", lambda **_: object())
    with pytest.raises(SourceError, match="install another version of torchvision"):
        open_split("DTD", tmp_path, {})


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("L", (6, 8)), ("RGB", (6, 8, 3)), ("1", (6, 8)), ("LA", (6, 8)), ("P", (6, 8, 3)),
     ("RGBA", (6, 8, 3)), ("CMYK", (6, 8, 3)), ("I;16", (6, 8))],
)  # fmt: skip
def test_images_of_every_mode_become_grey_or_rgb(mode, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels)
    converted = (image.convert("I") if mode == "I;16" else image).convert(mode)
    found = pixels_of(converted)
    assert found.shape == shape
    assert found.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(found, pixels)
    if mode == "LA":
        np.testing.assert_array_equal(found, np.asarray(image.convert("L")))
