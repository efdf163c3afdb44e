"""One split of a torchvision data set: its images and targets, one by one or all at once.

Most classes read an image when it is asked for; some hold all of them in memory. Which it is, and
what tells other content apart, is found by looking at the object.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.blocks import TOO_LARGE
from pipeline.core.digests import array_digest
from pipeline.core.errors import InputError, SourceError
from pipeline.images.headers import GREYS, RefusedError, as_grey_or_colour, refusal

_ITEM_ERRORS = (
    OSError, RuntimeError, ValueError, TypeError, KeyError, ImportError, EOFError, SyntaxError,
    IndexError, Image.DecompressionBombError,
)  # fmt: skip
_SHOWN_CHARACTERS = 120
_WIDE_MODES = ("I;16", "I;16B", "I", "F")  # of more than 8 bits


@dataclass(frozen=True)
class OpenedSplit:
    """A split of a data set as it is opened in this process.

    `images` and `targets` are all of its images and labels, where it holds them in memory. Several
    threads at once read only those that list one file for each image: others may share a file or,
    as FakeData does, the state of the random numbers.
    """

    dataset: Any
    images: npt.NDArray[Any] | None
    targets: npt.NDArray[Any] | None
    files: list[Any] | None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def is_described_at_once(self) -> bool:
        """Whether `describe_content` reads no images one by one."""
        in_memory = self.targets is not None and hasattr(
            getattr(self.dataset, "data", None), "__array__"
        )
        return in_memory or self.files is not None

    def sample(self, index: int) -> tuple[npt.NDArray[Any], int]:
        """Return the pixels and the code of one sample.

        Raises
        ------
        RefusedError
            Where the image cannot be read.
        SourceError
            Where the target is not one whole number.
        """
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
        code = _code(target[0]) if len(target) == 1 else None
        if code is None:
            raise SourceError(
                f"{type(self.dataset).__name__}: sample {index} has the target "
                f"{str(tuple(target))[:_SHOWN_CHARACTERS]}, expected one whole number, its class; "
                "options such as target_type may choose another target"
            )
        return pixels, code


def open_split(dataset: Any) -> OpenedSplit:
    """Find out what a data set holds in memory, and which files it lists."""
    images, targets = getattr(dataset, "data", None), _known_targets(dataset)
    usable = _in_memory(dataset, images, targets)
    files = _listed_files(dataset)
    return OpenedSplit(dataset, np.asarray(images) if usable else None, targets, files)


def _known_targets(dataset: Any) -> npt.NDArray[Any] | None:
    """Return the targets of all samples where the data set lists them."""
    for name in ("targets", "labels", "_labels", "y"):
        try:
            found = np.asarray(getattr(dataset, name))
        except (AttributeError, ValueError, TypeError):
            continue
        if found.shape == (len(dataset),) and found.dtype.kind in "iu":
            return found.astype(np.int64)
    return None


def _in_memory(dataset: Any, images: Any, targets: npt.NDArray[Any] | None) -> bool:
    """Tell whether `images` and `targets` are what the data set gives, one by one."""
    if targets is None or not hasattr(images, "__array__") or len(dataset) == 0:
        return False
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or len(array) != len(dataset):
        return False
    for index in (0, len(dataset) - 1):
        image, target = dataset[index][:2]
        if not np.array_equal(pixels_of(image), array[index]) or _code(target) != targets[index]:
            return False
    return True


def _listed_files(dataset: Any) -> list[Any] | None:
    """Return the list of one file a sample, or of tuples that begin with one, if there is any."""
    for value in vars(dataset).values():
        if isinstance(value, list) and len(value) == len(dataset) > 0:
            first = value[0][0] if isinstance(value[0], tuple) else value[0]
            if isinstance(first, str | Path) and Path(first).is_file():
                return value
    return None


def pixels_of(image: Any) -> npt.NDArray[Any]:
    """Return an image as an array [y, x] or [y, x, channel].

    Palettes, CMYK and YCbCr become RGB, as Pillow converts them; alpha is dropped.

    Raises
    ------
    SourceError
        Where it is no image of Pillow, tensor or array.
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


def _code(target: Any) -> int | None:
    """Return a target as a code, None where it is anything but one whole number."""
    array = np.asarray(target)
    return int(array) if array.shape == () and array.dtype.kind in "iu" else None


# content -----------------------------------------------------------------------------------------


def describe_content(split: OpenedSplit, root: Path) -> tuple[dict[str, Any], set[int]]:
    """Return what tells other content of a split apart, and the codes that occur.

    That is the digest of images in memory; else of the names, sizes and times of the files that it
    lists, below `root`; else of all images, read once.
    """
    targets, count = split.targets, len(split)
    pixels = getattr(split.dataset, "data", None)
    if targets is not None and hasattr(pixels, "__array__"):
        digests = [array_digest(np.asarray(pixels)), array_digest(targets)]
        return {"count": count, "sha256": digests}, set(np.unique(targets).tolist())
    if split.files is not None:
        digest, codes = _files_digest(split.files, root)
        targets = codes if codes is not None else targets
        if targets is not None:
            return (
                {"count": count, "files_sha256": digest, "targets_sha256": array_digest(targets)},
                set(np.unique(targets).tolist()),
            )
    digest, known = _images_digest(split)
    return {"count": count, "sha256": digest}, known


def _files_digest(files: Sequence[Any], root: Path) -> tuple[str, npt.NDArray[Any] | None]:
    """Return the SHA-256 of names, sizes and times of files, and the codes listed with them."""
    digest = hashlib.sha256()
    codes: list[int | None] = []
    for entry in files:
        path, *rest = entry if isinstance(entry, tuple) else (entry,)
        found = Path(path).stat()
        name = os.path.relpath(path, root)
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        codes.append(_code(rest[0]) if len(rest) == 1 else None)
    listed = None if None in codes else np.array(codes, np.int64)
    return digest.hexdigest(), listed


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
