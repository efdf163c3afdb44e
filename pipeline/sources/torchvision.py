"""The data sets of torchvision, by name: looked for, else downloaded; read image by image.

Any class that gives images with one whole number as target can be used. Its splits and options are
read from its signature. The files are checked as torchvision checks them.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torchvision import datasets

from pipeline.conversion import Conversion
from pipeline.digests import array_digest
from pipeline.errors import ConfigError, InputError, ShapeError, SourceError
from pipeline.settings import nearest
from pipeline.sources import (
    TOO_LARGE,
    TRUNCATED,
    UNREADABLE,
    WRONG_SIZE,
    Block,
    Problem,
    SplitInfo,
)
from pipeline.sources.arrays import ArraySource, as_pixels, from_arrays, pixel_type, scale_of

_TIMEOUT_SECONDS = 30.0
_REASON_CHARACTERS = 120
_DOWNLOAD_ERRORS = (OSError, RuntimeError, ValueError)
_OPEN_ERRORS = (*_DOWNLOAD_ERRORS, TypeError, KeyError, ImportError, EOFError)
_ITEM_ERRORS = (
    *_OPEN_ERRORS, SyntaxError, IndexError, Image.DecompressionBombError,
)  # fmt: skip
_PROBE = "?"
_VALID = "Valid values are {"  # what torchvision says of a value that it does not know
_USUAL_SPLITS = ("train", "val", "valid", "test")
# splits made of others, or all of what others hold
_UNIONS = frozenset({"all", "trainval", "train_noval", "10fold", "train-challenge"})
_TRAIN = {"train": True, "test": False}
_OURS = ("download", "transform", "target_transform", "transforms", "loader", "is_valid_file")
_FIRST_TRIED = 100
_GREY_MODES = ("1", "LA", "La")
_KEPT_MODES = ("L", "RGB", "I;16", "I;16B", "I", "F")


@contextmanager
def _network() -> Iterator[None]:
    """Let no silent network hang the job, and say in one line why a download failed."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    except _DOWNLOAD_ERRORS as error:
        reason = _one_line(error)
        # torchvision lists every mirror that it tried; the last one's answer says it
        reason = reason[-_REASON_CHARACTERS:].partition("got: ")[2] or reason[:_REASON_CHARACTERS]
        raise SourceError(f"no download: {reason}") from None
    finally:
        socket.setdefaulttimeout(before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def download(name: str, root: Path) -> Path:
    """Download a torchvision data set below `root`, with a progress bar and checksums.

    Returns the folder that holds the files.

    Raises
    ------
    SourceError
        Where it cannot be downloaded.
    """
    with _network():
        found = getattr(datasets, name)(root=str(root), download=True)
    return Path(getattr(found, "raw_folder", root))


def read_cifar10(
    root: Path, class_names: tuple[str, ...], provenance: Mapping[str, Any]
) -> ArraySource:
    """Read CIFAR-10 from `root/cifar-10-batches-py`; torchvision checks each file's MD5."""
    try:
        parts = {
            split: datasets.CIFAR10(root=str(root), train=split == "train")
            for split in ("train", "test")
        }
    except (RuntimeError, OSError) as error:
        raise SourceError(f"{root}: CIFAR-10 cannot be read: {error}") from None
    arrays = {split: (part.data, np.array(part.targets)) for split, part in parts.items()}
    return from_arrays(arrays, class_names, provenance=provenance)


# finding the class and its splits ---------------------------------------------------------------


def _find_class(name: str) -> type[Any]:
    """Return the data set's class, whatever the case of its name."""
    known = {n.lower(): n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    if name.lower() not in known:
        raise ConfigError(f"torchvision has no data set '{name}'; {nearest(name, known.values())}")
    found: type[Any] = getattr(datasets, known[name.lower()])
    return found


def _parameters(dataset: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class, with those of its parents where it passes on others."""
    found: dict[str, inspect.Parameter] = {}
    for parent in dataset.__mro__:
        if "__init__" not in vars(parent):
            continue
        own = list(inspect.signature(parent).parameters.values())
        passed_on = any(p.kind is p.VAR_KEYWORD for p in own)
        found = {p.name: p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} | found
        if not passed_on:
            break
    return found


def _check_options(dataset: type[Any], options: Mapping[str, Any]) -> None:
    parameters = _parameters(dataset)
    allowed = [name for name in parameters if name not in _OURS]
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"{dataset.__name__} has no option '{name}' that can be given; "
                f"{nearest(name, allowed)}"
            )
    for name, parameter in parameters.items():
        # a split without default is found by `_arguments`, unless `train` makes the splits
        by_itself = name == "root" or (name == "split" and "train" not in parameters)
        if parameter.default is parameter.empty and name not in options and not by_itself:
            known = _split_values(dataset, options) if name == "split" else ()
            expected = f", one of {', '.join(known)}" if known else ""
            raise ConfigError(f"{dataset.__name__} needs the option '{name}'{expected}")


def _split_values(dataset: type[Any], options: Mapping[str, Any]) -> list[str]:
    """Return the values that `split` accepts: what the class says of one that it does not know."""
    given = {**options, "split": _PROBE}
    if "root" in _parameters(dataset):
        given["root"] = os.devnull
    try:
        dataset(**given)
    except _OPEN_ERRORS as error:
        _, found, listed = str(error).partition(_VALID)
        return re.findall(r"'([^']+)'", listed) if found else []
    return []


def _arguments(dataset: type[Any], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments of each split that the class has."""
    parameters = _parameters(dataset)
    base = {name: value for name, value in options.items() if name != "root"}
    if "train" in parameters:
        return {
            name: {**base, "train": value}
            for name, value in _TRAIN.items()
            if options.get("train", value) == value
        }
    if "split" not in parameters:
        return {"train": base}
    if "split" in options:
        return {str(options["split"]): base}
    values = _split_values(dataset, options) or list(_USUAL_SPLITS)
    alone = [v for v in values if v not in _UNIONS and "+" not in v]
    chosen = alone if "train" in alone or "train-standard" in alone else values
    return {value: {**base, "split": value} for value in chosen}


# opening -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Opened:
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

    def item(self, index: int) -> Any:
        with nullcontext() if self.files is not None else self.lock:
            return self.dataset[index]


_opened: dict[tuple[int, str], _Opened] = {}
_opened_lock = threading.Lock()


def _construct(
    dataset: type[Any], root: Path, arguments: Mapping[str, Any], fetch: bool = False
) -> _Opened:
    given = dict(arguments)
    parameters = _parameters(dataset)
    if "root" in parameters:
        given["root"] = str(root)
    if "download" in parameters:
        given["download"] = fetch
    found = dataset(**given)
    images, targets = getattr(found, "data", None), _known_targets(found)
    usable = _in_memory(found, images, targets)
    return _Opened(found, np.asarray(images) if usable else None, targets, _listed_files(found))


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
        if not np.array_equal(_pixels(image), array[index]) or _code(target) != targets[index]:
            return False
    return True


def _pixels(image: Any) -> npt.NDArray[Any]:
    """Return an image as an array [y, x] or [y, x, channel].

    Palettes, CMYK and YCbCr become RGB, as Pillow converts them; alpha is dropped.
    """
    if isinstance(image, Image.Image):
        if image.mode not in _KEPT_MODES:
            image = image.convert("L" if image.mode in _GREY_MODES else "RGB")
        return np.asarray(image)
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


def _problem(error: Exception) -> Problem:
    text = _one_line(error)
    if isinstance(error, Image.DecompressionBombError):
        return Problem(TOO_LARGE, text)
    return Problem(TRUNCATED if "truncated" in text.lower() else UNREADABLE, text)


@dataclass(frozen=True)
class TorchvisionSource:
    """A data set of torchvision.

    Attributes
    ----------
    name
        Its class.
    root
        The folder that its files lie below.
    arguments
        For each split what its class is called with.
    infos
        For each split what it holds.
    class_names, full_scale, provenance
        As every source has them.
    conversion
        What is done to every image.
    """

    name: str
    root: Path
    arguments: Mapping[str, Mapping[str, Any]]
    infos: Mapping[str, SplitInfo]
    class_names: tuple[str, ...]
    full_scale: int
    provenance: Mapping[str, Any]
    conversion: Conversion

    def splits(self) -> dict[str, SplitInfo]:
        return dict(self.infos)

    def read(self, split: str, start: int, stop: int) -> Block:
        """Read samples `start` to `stop` of a split; what cannot be read is among the problems.

        Raises
        ------
        SourceError
            Where the files are gone, or a target is not one whole number.
        """
        info = self.infos[split]
        opened = _open_again(self.name, self.root, self.arguments[split])
        images = np.zeros((stop - start, *info.shape), info.dtype)
        codes = np.full(stop - start, -1, np.int32)
        sizes = np.zeros((stop - start, 2), np.int32)
        problems: dict[int, Problem] = {}
        for place in range(stop - start):
            try:
                image, code = _item(opened, start + place)
                sizes[place] = image.shape[1::-1]
                images[place] = self._converted(image, info)
                codes[place] = code
            except _RefusedError as error:
                problems[place] = error.problem
        origins = [f"{self.name}/{split}[{index}]" for index in range(start, stop)]
        return Block(images, codes, origins, problems, sizes)

    def _converted(self, image: npt.NDArray[Any], info: SplitInfo) -> npt.NDArray[Any]:
        height, width = image.shape[:2]
        try:
            found = _apply(self.conversion, image)
        except ShapeError as error:
            raise _RefusedError(Problem(WRONG_SIZE, str(error), width, height)) from None
        if found.shape != info.shape or found.dtype != info.dtype:
            raise _RefusedError(
                Problem(
                    WRONG_SIZE,
                    f"has shape {found.shape} and {found.dtype}, expected {info.shape} and "
                    f"{info.dtype}; resize, crop, pad and mode bring images to one shape",
                    width,
                    height,
                )
            )
        return found

    def close(self) -> None:
        keys = {_key(self.name, self.root, given) for given in self.arguments.values()}
        with _opened_lock:
            for key in keys & set(_opened):
                del _opened[key]


class _RefusedError(Exception):
    """A sample cannot be used."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def _apply(conversion: Conversion, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    pixels = as_pixels(image)
    return conversion.apply(pixels) if conversion.describe() else pixels


def _item(opened: _Opened, index: int) -> tuple[npt.NDArray[Any], int]:
    """Return the pixels and the code of one sample."""
    if opened.images is not None and opened.targets is not None:
        return opened.images[index], int(opened.targets[index])
    try:
        item = opened.item(index)
        pixels = _pixels(item[0])
    except InputError:
        raise
    except _ITEM_ERRORS as error:
        raise _RefusedError(_problem(error)) from None
    code = _code(item[1]) if len(item) == 2 else None
    if code is None:
        raise SourceError(
            f"{type(opened.dataset).__name__}: sample {index} has the target "
            f"{str(item[1:])[:_REASON_CHARACTERS]}, expected one whole number, its class; options "
            "such as target_type may choose another target"
        )
    return pixels, code


def _key(name: str, root: Path, arguments: Mapping[str, Any]) -> tuple[int, str]:
    return os.getpid(), f"{name}\0{root}\0{sorted(arguments.items())}"


def _open_again(name: str, root: Path, arguments: Mapping[str, Any]) -> _Opened:
    """Return a split, opened once in each process."""
    key = _key(name, root, arguments)
    with _opened_lock:
        if key not in _opened:
            try:
                _opened[key] = _construct(_find_class(name), root, arguments)
            except _OPEN_ERRORS as error:
                raise SourceError(f"{name}: cannot be opened again: {_one_line(error)}") from None
        return _opened[key]


def open_torchvision(
    name: str,
    roots: Sequence[Path],
    options: Mapping[str, Any] | None = None,
    download: bool = True,
    conversion: Conversion | None = None,
) -> TorchvisionSource:
    """Open a data set of torchvision.

    A class with `train` has the splits `train` and `test`, one with `split` all that it accepts
    (not those made of others, such as `trainval`), any other the one split `train`.

    Parameters
    ----------
    name
        Its class; the case of letters does not matter.
    roots
        Folders below which its files are looked for, in this order; downloads go into the last.
        The option `root` stands for all of them.
    options
        Further arguments of the class.
    download
        Whether to try the network.
    conversion
        What is done to every image; default: nothing.

    Raises
    ------
    ConfigError
        Where there is no such class or option.
    SourceError
        Where the files are not there, or the class does not give images with one class each.
    """
    found, given = _find_class(name), dict(options or {})
    _check_options(found, given)
    arguments = _arguments(found, given)
    places = [Path(given["root"])] if "root" in given else list(roots)
    root, opened = _open_splits(found, places, arguments, download)
    with _opened_lock:
        for split, dataset in opened.items():
            _opened[_key(found.__name__, root, arguments[split])] = dataset
    return _describe(found.__name__, root, arguments, given, opened, conversion or Conversion())


def _open_splits(
    found: type[Any],
    roots: Sequence[Path],
    arguments: Mapping[str, Mapping[str, Any]],
    fetch: bool,
) -> tuple[Path, dict[str, _Opened]]:
    """Open all splits below the first root that has them, else download them."""
    reasons = []
    parameters = _parameters(found)
    for root in roots if "root" in parameters else [Path()]:
        try:
            return root, {s: _construct(found, root, given) for s, given in arguments.items()}
        except InputError:
            raise
        except _OPEN_ERRORS as error:
            if _VALID in str(error):
                raise ConfigError(f"{found.__name__}: {_one_line(error)}") from None
            reasons.append(f"{root}: {_one_line(error)[:_REASON_CHARACTERS]}")
    if fetch and "download" in parameters and roots:
        with _network():
            fetched = {s: _construct(found, roots[-1], g, True) for s, g in arguments.items()}
        return roots[-1], fetched
    raise SourceError(
        f"{found.__name__}: was not found ({'; '.join(reasons) or 'no folder was given'}); put its "
        "files where torchvision expects them"
        + (", or allow the download" if "download" in parameters else "")
    )


# what it holds -----------------------------------------------------------------------------------


def _describe(
    name: str,
    root: Path,
    arguments: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    opened: Mapping[str, _Opened],
    conversion: Conversion,
) -> TorchvisionSource:
    infos, scales, contents, largest = {}, [], {}, -1
    for split, found in opened.items():
        infos[split], scale = _info(name, split, found, conversion)
        scales.append(scale)
        contents[split], highest = _content(found, root)
        largest = max(largest, highest)
    names = _class_names(opened) or tuple(str(code) for code in range(largest + 1))
    shown = {key: value for key, value in options.items() if key != "root"}
    provenance: dict[str, Any] = {
        "kind": "torchvision",
        "name": name,
        "options": {key: _plain(value) for key, value in shown.items()},
        "splits": contents,
    }
    if conversion.describe():
        provenance["conversion"] = conversion.describe()
    return TorchvisionSource(
        name, root, arguments, infos, names, max(scales), provenance, conversion
    )


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _info(name: str, split: str, opened: _Opened, conversion: Conversion) -> tuple[SplitInfo, int]:
    """Return what a split holds, by its first image that can be read, and its full scale."""
    count = len(opened.dataset)
    for index in range(min(count, _FIRST_TRIED)):
        try:
            image, _ = _item(opened, index)
        except _RefusedError:
            continue
        dtype = pixel_type(image.dtype)
        if dtype is None or image.ndim not in (2, 3):
            raise SourceError(
                f"{name}: images of {image.dtype} and shape {image.shape}, expected uint8, uint16 "
                "or floats, [y, x] or [y, x, channel]"
            )
        return SplitInfo(count, conversion.output(image.shape), dtype), scale_of(image.dtype)
    raise SourceError(
        f"{name}: none of the first {min(count, _FIRST_TRIED)} images of split '{split}' can be "
        "read; fetch its files again"
    )


def _class_names(opened: Mapping[str, _Opened]) -> tuple[str, ...]:
    """Return the names that a data set gives its classes; equal ones are told apart by the code."""
    for found in opened.values():
        listed = getattr(found.dataset, "classes", None) or getattr(
            found.dataset, "categories", None
        )
        if not isinstance(listed, list | tuple):
            continue
        names = [", ".join(n) if isinstance(n, list | tuple) else str(n) for n in listed]
        times = Counter(names)
        return tuple(
            f"{name} ({code})" if times[name] > 1 else name for code, name in enumerate(names)
        )
    return ()


def _content(opened: _Opened, root: Path) -> tuple[dict[str, Any], int]:
    """Return what tells other content of a split apart, and its largest code.

    That is the digest of images in memory; else of the names, sizes and times of the files that it
    lists; else of all images, read once.
    """
    targets, count = opened.targets, len(opened.dataset)
    largest = -1 if targets is None or not count else int(targets.max())
    pixels = getattr(opened.dataset, "data", None)
    if targets is not None and hasattr(pixels, "__array__"):
        digests = [array_digest(np.asarray(pixels)), array_digest(targets)]
        return {"count": count, "sha256": digests}, largest
    if opened.files is not None:
        digest, codes = _files_digest(opened.files, root)
        targets = codes if codes is not None else targets
        if targets is not None:
            return (
                {"count": count, "files_sha256": digest, "targets_sha256": array_digest(targets)},
                int(targets.max(initial=-1)),
            )
    return _read_all(opened)


def _listed_files(dataset: Any) -> list[Any] | None:
    """Return the list of one file a sample, or of tuples that begin with one, if there is any."""
    for value in vars(dataset).values():
        if isinstance(value, list) and len(value) == len(dataset) > 0:
            first = value[0][0] if isinstance(value[0], tuple) else value[0]
            if isinstance(first, str | Path) and Path(first).is_file():
                return value
    return None


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


def _read_all(opened: _Opened) -> tuple[dict[str, Any], int]:
    digest, largest = hashlib.sha256(), -1
    for index in range(len(opened.dataset)):
        try:
            image, code = _item(opened, index)
        except _RefusedError as error:
            digest.update(error.problem.detail.encode())
            continue
        largest = max(largest, code)
        digest.update(f"{code}{image.dtype.str}{image.shape}".encode())
        digest.update(np.ascontiguousarray(image).data)
    return {"count": len(opened.dataset), "sha256": digest.hexdigest()}, largest
