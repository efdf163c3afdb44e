"""The data sets of torchvision whose images have one class each: how they are called, and read.

The table says for each class which splits and options it has, and by which attributes its objects
hold all of their images, or list their files, and the labels. Classes that are not in it have
other targets, such as boxes, captions or videos.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision import datasets

from pipeline.core.blocks import TOO_LARGE
from pipeline.core.digests import array_digest
from pipeline.core.errors import ConfigError, InputError, SourceError, nearest
from pipeline.images.headers import GREYS, RefusedError, as_grey_or_colour, refusal
from pipeline.sources.open_cache import files_digest
from pipeline.storage.blobs import version_in

# what classes raise at files that are missing or damaged, or at values of arguments
OPEN_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, ImportError, EOFError)
_ITEM_ERRORS = (*OPEN_ERRORS, SyntaxError, IndexError, Image.DecompressionBombError)
_SHOWN_CHARACTERS = 120
_WIDE_MODES = ("I;16", "I;16B", "I", "F")  # of more than 8 bits

# the table ---------------------------------------------------------------------------------------

_ANY: tuple[Any, ...] = ()
_FLAG = (True, False)


@dataclass(frozen=True)
class DataSet:
    """How one class of torchvision is called, and where its objects hold images and labels.

    `splits` are those that are read, with the arguments that choose each; `options` the other
    arguments that may be given, with the values of each (none: any value), and `required` those
    that must be. `data` is the attribute that holds all images as one array, which `is_turned`
    where they are given otherwise; `files` that which lists a file for each image, alone or with
    its label; `labels` and `names` those of the label of each image and the names of the classes,
    `by_target` where an option chooses another target. `has_root` and `downloads` tell whether it
    reads files, and can download them.
    """

    splits: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    data: str = ""
    is_turned: bool = False
    files: str = ""
    labels: str = "targets"
    names: str = "classes"
    by_target: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    has_root: bool = True
    downloads: bool = True

    def attributes(self, arguments: Mapping[str, Any]) -> tuple[str, str]:
        """Return the attributes of labels and class names of an object that has some arguments."""
        for (option, target), names in self.by_target.items():
            if arguments.get(option) in (target, [target]):
                return names
        return self.labels, self.names


def by_train(options: Mapping[str, Sequence[Any]] | None = None, **attributes: Any) -> DataSet:
    """Return an entry of a class whose argument `train` chooses between two splits."""
    splits = {"train": {"train": True}, "test": {"train": False}}
    return DataSet(splits, {"train": _FLAG, **(options or {})}, **attributes)


def by_split(
    splits: str, more: str = "", options: Mapping[str, Sequence[Any]] | None = None, **other: Any
) -> DataSet:
    """Return an entry of a class with `split`; those in `more` are read where an option says so."""
    values = splits.split()
    options = {"split": (*values, *more.split()), **(options or {})}
    return DataSet({value: {"split": value} for value in values}, options, **other)


def _alone(**attributes: Any) -> DataSet:
    return DataSet({"train": {}}, **attributes)


_LISTED: dict[str, Any] = {"files": "_image_files", "labels": "_labels"}
_FOLDERS: dict[str, Any] = {"files": "samples", "downloads": False}
_TURNED: dict[str, Any] = {"data": "data", "is_turned": True, "labels": "labels"}
_NIST = ("train", "test", "test10k", "test50k", "nist")
_LETTERS = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
_YEARS = ("2021_train", "2021_train_mini", "2021_valid", "2017", "2018", "2019")
_LEVELS = ("variant", "family", "manufacturer")
_ALIGNMENTS = ("original", "funneled", "deepfunneled")
_SIZES = ("full", "320px", "160px")
_MADE_UP = ("size", "image_size", "num_classes", "random_offset")
_RANKS = ("full", "super", "kingdom", "phylum", "class", "order", "family", "genus")

TABLE: Mapping[str, DataSet] = {
    "CIFAR10": by_train(data="data"),
    "CIFAR100": by_train(data="data"),
    "CLEVRClassification": by_split("train val", "test", **_LISTED),
    "Caltech101": _alone(options={"target_type": ("category",)}, labels="y", names="categories"),
    "Caltech256": _alone(labels="y", names="categories"),
    "CelebA": by_split(
        "train valid test", "all", {"target_type": ("identity",)}, required=("target_type",)
    ),
    "Country211": by_split("train valid test", files="samples"),
    "DTD": by_split("train val test", options={"partition": range(1, 11)}, **_LISTED),
    "EMNIST": by_train({"split": _LETTERS}, required=("split",), data="data"),
    "EuroSAT": _alone(files="samples"),
    "FER2013": by_split("train test", downloads=False),
    "FGVCAircraft": by_split(
        "train val test", "trainval", {"annotation_level": _LEVELS}, **_LISTED
    ),
    "FakeData": _alone(options=dict.fromkeys(_MADE_UP, _ANY), has_root=False, downloads=False),
    "FashionMNIST": by_train(data="data"),
    "Flowers102": by_split("train val test", **_LISTED),
    "Food101": by_split("train test", **_LISTED),
    "GTSRB": by_split("train test", files="_samples"),
    "INaturalist": _alone(options={"version": _YEARS, "target_type": _RANKS}),
    "ImageFolder": _alone(options={"allow_empty": _FLAG}, **_FOLDERS),
    "ImageNet": by_split("train val", "", {"allow_empty": _FLAG}, **_FOLDERS),
    "Imagenette": by_split("train val", "", {"size": _SIZES}, files="_samples"),
    "KMNIST": by_train(data="data"),
    "LFWPeople": by_split("train test", "10fold", {"image_set": _ALIGNMENTS}, files="data"),
    "LSUN": _alone(options={"classes": _ANY}, downloads=False),
    "MNIST": by_train(data="data"),
    "Omniglot": _alone(options={"background": _FLAG}),
    "OxfordIIITPet": by_split(
        "trainval test",
        options={"target_types": ("category", "binary-category")},
        files="_images",
        labels="_labels",
        by_target={("target_types", "binary-category"): ("_bin_labels", "bin_classes")},
    ),
    "PCAM": by_split("train test val"),
    "Places365": by_split(
        "train-standard val", "train-challenge test", {"small": _FLAG}, files="imgs"
    ),
    "QMNIST": by_train({"what": _NIST, "compat": (True,)}),
    "RenderedSST2": by_split("train val test", files="_samples"),
    "SEMEION": _alone(data="data", labels="labels"),
    "STL10": by_split(
        "train unlabeled test", "train+unlabeled", {"folds": (None, *range(10))}, **_TURNED
    ),
    "SUN397": _alone(**_LISTED),
    "SVHN": by_split("train test extra", **_TURNED),
    "StanfordCars": by_split("train test", files="_samples"),
    "USPS": by_train(data="data"),
}


def find_name(name: str) -> str:
    """Return the name of a data set in the table, whatever the case of its letters."""
    known = {entry.lower(): entry for entry in TABLE}
    if name.lower() in known:
        return known[name.lower()]
    if name.lower() in (other.lower() for other in datasets.__all__):
        raise ConfigError(
            f"torchvision's data set '{name}' is not read: its images do not have one class each, "
            f"or an argument is a function; expected one of {', '.join(TABLE)}"
        )
    raise ConfigError(f"torchvision has no data set '{name}'; {nearest(name, TABLE)}")


def split_arguments(name: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments of each split that a data set has with some options, without `root`."""
    entry = TABLE[name]
    allowed = {"root": _ANY, **entry.options} if entry.has_root else entry.options
    for option, value in options.items():
        if option not in allowed:
            raise ConfigError(
                f"{name} has no option '{option}' that can be given; {nearest(option, allowed)}"
            )
        for item in value if isinstance(value, list) else [value]:
            if allowed[option] and item not in allowed[option]:
                raise ConfigError(
                    f"{name}: '{item}' is no value of the option '{option}', expected one of "
                    f"{', '.join(map(str, allowed[option]))}"
                )
    for option in entry.required:
        if option not in options:
            values = ", ".join(map(str, entry.options[option]))
            raise ConfigError(f"{name} needs the option '{option}', one of {values}")
    base = {option: value for option, value in options.items() if option != "root"}
    chosen = {
        split: {**arguments, **base}
        for split, arguments in entry.splits.items()
        if all(options.get(option, value) == value for option, value in arguments.items())
    }
    return chosen or {str(options["split"]): base}


# one split ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenedSplit:
    """A split of a data set as it is opened in this process.

    `data` are all images as it holds them, `images` where these are as it gives them; else they are
    read one by one. `files` and `targets` are the file and the code of each image, where they are
    listed; `class_names` those of the codes, as it names them.

    Several threads at once read only those that list one file for each image: others may share a
    file or, as FakeData does, the state of the random numbers.
    """

    dataset: Any
    data: npt.NDArray[Any] | None
    images: npt.NDArray[Any] | None
    files: Sequence[str | Path] | None
    targets: npt.NDArray[np.int64] | None
    class_names: Sequence[Any]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int) -> tuple[npt.NDArray[Any], int]:
        """Return the pixels and the code of one sample; `RefusedError` where it cannot be read."""
        if self.images is not None and self.targets is not None:
            return self.images[index], int(self.targets[index])
        try:
            with nullcontext() if self.files is not None else self.lock:
                image, *target = self.dataset[index]
            pixels = pixels_of(image)
        except InputError:
            raise
        except Image.DecompressionBombError as error:
            raise RefusedError(TOO_LARGE, str(error)) from None
        except _ITEM_ERRORS as error:
            raise refusal(error) from None
        codes = _codes(target)
        if codes is None or len(codes) != 1:
            raise SourceError(
                f"{type(self.dataset).__name__}: sample {index} has the target "
                f"{str(tuple(target))[:_SHOWN_CHARACTERS]}, expected one whole number, its class; "
                "options such as target_type may choose another target"
            )
        return pixels, int(codes[0])


def open_split(
    name: str, root: Path, arguments: Mapping[str, Any], download: bool = False
) -> OpenedSplit:
    """Open a split, with its files below `root`: what it holds by the attributes of the table."""
    entry = TABLE[name]
    given = {"root": str(root)} if entry.has_root else {}
    more = {"download": download} if entry.downloads else {}
    dataset = getattr(datasets, name)(**arguments, **given, **more)
    labels, names = entry.attributes(arguments)
    try:
        data = np.asarray(getattr(dataset, entry.data)) if entry.data else None
        listed = getattr(dataset, entry.files) if entry.files else None
    except AttributeError as error:
        raise SourceError(
            f"{name}: this torchvision keeps its images elsewhere than those that are known "
            f"({error}); install another version of torchvision"
        ) from None
    images = None if entry.is_turned else data
    targets = getattr(dataset, labels, None)
    if listed and isinstance(listed[0], tuple):
        listed, targets = zip(*listed, strict=True)
    codes = None if targets is None else _codes(targets)
    class_names = getattr(dataset, names, None)
    class_names = class_names if isinstance(class_names, list | tuple) else ()
    return OpenedSplit(dataset, data, images, listed, codes, class_names)


def _codes(targets: Any) -> npt.NDArray[np.int64] | None:
    """Return targets as codes, None where they are anything but one whole number each."""
    try:
        codes = np.asarray(targets)
    except (ValueError, TypeError):  # ragged, or no numbers at all
        return None
    return codes.astype(np.int64) if codes.ndim == 1 and codes.dtype.kind in "iu" else None


def pixels_of(image: Any) -> npt.NDArray[Any]:
    """Return an image as an array [y, x] or [y, x, channel].

    Palettes, CMYK and YCbCr become RGB, as Pillow converts them; alpha is dropped.
    """
    if isinstance(image, Image.Image):
        if image.mode in _WIDE_MODES:
            return np.asarray(image)
        return as_grey_or_colour(image, 1 if image.mode in GREYS else 3)
    if hasattr(image, "detach"):  # a tensor has its channels first
        array = np.asarray(image)
        return np.moveaxis(array, 0, -1) if array.ndim == 3 else array
    if isinstance(image, np.ndarray):
        return image
    raise SourceError(f"gives {type(image).__name__}, expected images")


def describe_content(split: OpenedSplit, root: Path) -> tuple[dict[str, Any], set[int]]:
    """Return what tells other content of a split apart, and the codes that occur.

    That is the digest of images in memory; else of the names, sizes and times of the files that it
    lists, below `root`; else of all images, read once.
    """
    count, targets = len(split), split.targets
    if targets is None or (split.data is None and split.files is None):
        digest, codes = _images_digest(split)
        return {"count": count, "sha256": digest}, codes
    occurring = set(np.unique(targets).tolist())
    if split.data is not None:
        digests = [array_digest(split.data), array_digest(targets)]
        return {"count": count, "sha256": digests}, occurring
    versions = ((path, version_in(os.stat(path))) for path in split.files or ())  # noqa: PTH116
    digest = files_digest((os.path.relpath(p, root), v.size, v.tag) for p, v in versions)
    sums = {"files_sha256": digest, "targets_sha256": array_digest(targets)}
    return {"count": count, **sums}, occurring


def _images_digest(split: OpenedSplit) -> tuple[str, set[int]]:
    """Return the SHA-256 of all images and codes, and the codes that occur."""
    digest, codes = hashlib.sha256(), set[int]()
    for index in range(len(split)):
        try:
            image, code = split.sample(index)
        except RefusedError as error:
            digest.update(error.problem.detail.encode())
            continue
        codes.add(code)
        digest.update(f"{code}{image.dtype.str}{image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest(), codes
