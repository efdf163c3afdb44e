"""The data sets of torchvision, by name: opened where their files are, else downloaded.

Which there are, and how, says the table of `torchvision_sets`. The files are checked as torchvision
checks them.
"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torchvision import datasets

from pipeline.core.blocks import WRONG_SIZE, Block, Problem
from pipeline.core.digests import json_digest
from pipeline.core.errors import InputError, ShapeError, SourceError, one_line
from pipeline.core.schema import UNLABELLED
from pipeline.images.conversion import Conversion
from pipeline.images.decoders import Decoders, by_pillow
from pipeline.images.headers import RefusedError, check_fits
from pipeline.sources.array_source import ArraySource, as_pixels, pixel_type, scale_of
from pipeline.sources.arrays import from_arrays
from pipeline.sources.labels import Labelling, Survey
from pipeline.sources.open_cache import OpenCache
from pipeline.sources.protocol import SplitInfo
from pipeline.sources.torchvision_sets import (
    OPEN_ERRORS,
    TABLE,
    OpenedSplit,
    describe_content,
    find_name,
    open_split,
    split_arguments,
)
from pipeline.storage.manifest import DECODERS

_TIMEOUT_SECONDS = 30.0
_REASON_CHARACTERS = 120
_FIRST_TRIED = 100

# by class, root and arguments
_opened: OpenCache[str, OpenedSplit] = OpenCache()


@contextmanager
def _network() -> Iterator[None]:
    """Let no silent network hang the job, and say in one line why a download failed."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_SECONDS)
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        # torchvision lists every mirror that it tried; the last one's answer says it
        reason = reason[-_REASON_CHARACTERS:].partition("got: ")[2] or reason[:_REASON_CHARACTERS]
        raise SourceError(f"no download: {reason}") from None
    finally:
        socket.setdefaulttimeout(before)


def download(name: str, root: Path) -> Path:
    """Download a torchvision data set below `root`, and return the folder of its files."""
    with _network():
        dataset = getattr(datasets, name)(root=str(root), download=True)
    return Path(getattr(dataset, "raw_folder", root))


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


@dataclass(frozen=True)
class TorchvisionSource:
    """A data set of torchvision: the class `name`, whose files are below `root`.

    `arguments` and `infos` are for each split what its class is called with, and what it holds;
    `conversion` is done to every image. `decoders` decode its files, which torchvision leaves to
    Pillow; None where it has arrays.
    """

    name: str
    root: Path
    arguments: Mapping[str, Mapping[str, Any]]
    infos: Mapping[str, SplitInfo]
    labelling: Labelling
    full_scale: int
    provenance: Mapping[str, Any]
    conversion: Conversion
    decoders: Decoders | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelling.class_names

    def splits(self) -> dict[str, SplitInfo]:
        return dict(self.infos)

    def read(self, split: str, start: int, stop: int) -> Block:
        """Read samples `start` to `stop` of a split; what cannot be read is among the problems."""
        if self.decoders is not None:
            self.decoders.require()
        info = self.infos[split]
        opened = self._open_again(split)
        images = np.zeros((stop - start, *info.shape), info.dtype)
        codes = np.full(stop - start, UNLABELLED, np.int32)
        sizes = np.zeros((stop - start, 2), np.int32)
        problems: dict[int, Problem] = {}
        for row in range(stop - start):
            try:
                image, code = opened.sample(start + row)
                sizes[row] = image.shape[1::-1]
                images[row] = self._converted(image, info)
                codes[row] = self.labelling.code(code)
            except RefusedError as error:
                problems[row] = error.problem
        origins = [f"{self.name}/{split}[{index}]" for index in range(start, stop)]
        return Block(images, codes, origins, problems, sizes)

    def _open_again(self, split: str) -> OpenedSplit:
        """Return a split, opened once in each process."""
        key, version = self.cache_key(split)
        try:
            return _opened.get(key, lambda: self._reopen(split), version)
        except OPEN_ERRORS as error:
            raise SourceError(f"{self.name}: cannot be opened again: {one_line(error)}") from None

    def cache_key(self, split: str) -> tuple[str, str]:
        """Return for what an open split is cached, and which content of it."""
        key = f"{self.name}\0{self.root}\0{sorted(self.arguments[split].items())}"
        return key, json_digest(self.provenance["splits"][split])

    def _reopen(self, split: str) -> OpenedSplit:
        """Open a split in this process, and make sure that it holds what was recorded."""
        recorded = self.provenance["splits"][split]
        opened = open_split(self.name, self.root, self.arguments[split])
        same = len(opened) == recorded["count"]
        if same and (opened.data is not None or opened.files is not None):  # else all are read
            same = describe_content(opened, self.root)[0] == recorded
        if not same:
            raise SourceError(
                f"{self.name}: the files of '{split}' are others than when it was opened; run the "
                "command again to read these, or bring back those before"
            )
        return opened

    def _converted(self, image: npt.NDArray[Any], info: SplitInfo) -> npt.NDArray[Any]:
        height, width = image.shape[:2]
        pixels = as_pixels(image)
        try:
            pixels = self.conversion.apply(pixels) if self.conversion.describe() else pixels
        except ShapeError as error:
            raise RefusedError(WRONG_SIZE, str(error), width, height) from None
        check_fits((pixels.shape, pixels.dtype.name), (info.shape, info.dtype), width, height)
        return pixels

    def close(self) -> None:
        keys = {self.cache_key(split)[0] for split in self.arguments}
        _opened.close(lambda key: key in keys)


# opening -----------------------------------------------------------------------------------------


def open_torchvision(
    name: str,
    roots: Sequence[Path],
    options: Mapping[str, Any] | None = None,
    download: bool = True,
    conversion: Conversion | None = None,
) -> TorchvisionSource:
    """Open a data set of torchvision, with the splits that the table says.

    `options` are further arguments of the class. The files are looked for below the `roots`, in
    this order, for which the option `root` stands as well; downloads go into the last.

    Raises
    ------
    ConfigError
        Where there is no such class or option.
    SourceError
        Where the files are not there, or the class does not give images with one class each.
    """
    name, options = find_name(name), dict(options or {})
    arguments = split_arguments(name, options)
    if "root" in options:
        roots = [Path(options["root"])]
    root, opened = _open_splits(name, roots, arguments, download)
    source = _make_source(name, root, arguments, options, opened, conversion or Conversion())
    for split, dataset in opened.items():
        key, version = source.cache_key(split)
        _opened.put(key, dataset, version)
    return source


def _open_splits(
    name: str, roots: Sequence[Path], arguments: Mapping[str, Mapping[str, Any]], download: bool
) -> tuple[Path, dict[str, OpenedSplit]]:
    """Open all splits below the first root that has them, else download them."""

    def opened(root: Path, download: bool) -> tuple[Path, dict[str, OpenedSplit]]:
        return root, {s: open_split(name, root, a, download) for s, a in arguments.items()}

    reasons = []
    for root in roots if TABLE[name].has_root else [Path()]:
        try:
            return opened(root, False)
        except InputError:
            raise
        except OPEN_ERRORS as error:
            reasons.append(f"{root}: {one_line(error)[:_REASON_CHARACTERS]}")
    why = "; ".join(reasons) or "no folder was given"
    if download and TABLE[name].downloads and roots:
        try:
            with _network():
                return opened(roots[-1], True)
        except SourceError as error:
            why = f"{why}; {error}"
    raise SourceError(
        f"{name}: was not found ({why}); put its files where torchvision expects them below one of "
        "these folders, or run again with a network connection to download them"
    )


def _make_source(
    name: str,
    root: Path,
    arguments: Mapping[str, Mapping[str, Any]],
    options: Mapping[str, Any],
    opened: Mapping[str, OpenedSplit],
    conversion: Conversion,
) -> TorchvisionSource:
    infos, scales, contents, survey = {}, [], {}, Survey(name)
    for split, part in opened.items():
        infos[split], scale = _info(name, split, part, conversion)
        scales.append(scale)
        contents[split], codes = describe_content(part, root)
        survey.add(sorted(codes), f"{name}/{split}")
    names = _class_names(opened)
    labelling = Labelling(names) if names else survey.labelling()
    recorded = {option: value for option, value in options.items() if option != "root"}
    provenance: dict[str, Any] = {
        "kind": "torchvision",
        "name": name,
        "options": json.loads(json.dumps(recorded, default=str)),
        "splits": contents,
    }
    if conversion.describe():
        provenance["conversion"] = conversion.describe()
    decoders = None
    if any(part.images is None for part in opened.values()):
        decoders = by_pillow()
        provenance[DECODERS] = decoders.describe()
    return TorchvisionSource(
        name, root, arguments, infos, labelling, max(scales), provenance, conversion, decoders
    )


def _info(
    name: str, split: str, opened: OpenedSplit, conversion: Conversion
) -> tuple[SplitInfo, int]:
    """Return what a split holds, by its first image that can be read, and its full scale."""
    count = len(opened)
    for index in range(min(count, _FIRST_TRIED)):
        try:
            image, _ = opened.sample(index)
        except RefusedError:
            continue
        dtype = pixel_type(image.dtype)
        if dtype is None or image.ndim not in (2, 3):
            raise SourceError(
                f"{name}: images of {image.dtype} and shape {image.shape}, expected uint8, uint16 "
                "or floats, [y, x] or [y, x, channel]"
            )
        info = SplitInfo(count, conversion.output(image.shape), conversion.output_type(dtype))
        depth = conversion.depth
        return info, scale_of(image.dtype) if depth is None else 2**depth - 1
    raise SourceError(
        f"{name}: none of the first {min(count, _FIRST_TRIED)} images of split '{split}' can be "
        "read; fetch its files again"
    )


def _class_names(opened: Mapping[str, OpenedSplit]) -> tuple[str, ...]:
    """Return the names that a data set gives its classes; equal ones are told apart by the code."""
    for part in opened.values():
        names = [", ".join(n) if isinstance(n, list | tuple) else str(n) for n in part.class_names]
        times = Counter(names)
        if names:
            return tuple(
                f"{name} ({code})" if times[name] > 1 else name for code, name in enumerate(names)
            )
    return ()
