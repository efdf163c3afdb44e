"""Images in NumPy's files: `.npz` archives and `.npy` arrays, of any size, local or remote.

Only headers are read at first. Ranges of plain data are read where they lie; compressed data is
streamed with the cursors of `sources.cursors`, so that memory stays that of one partition. Nothing
is ever unpickled. The data of every zip member used is compared with its checksum once, when the
archive is opened: no partition is written from a damaged one.
"""

from __future__ import annotations

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from pipeline.errors import InputError, ShapeError, SourceError
from pipeline.places import is_remote, shown
from pipeline.sources import Block, SplitInfo, cursors
from pipeline.sources.arrays import (
    Labelling,
    as_pixels,
    as_text,
    block_length,
    check_shapes,
    in_parts,
    joined,
    pixel_type,
    refuse_pixels,
    scale_of,
    survey_labels,
    version_of,
)

_READ_BYTES = 2**20
_HEADER_BYTES = 2**14
_LOCAL_HEADER = struct.Struct("<26xHH")
_END = struct.Struct("<10xH10x")
_MANY = 0xFFFF  # the number is elsewhere
_NAMES_BYTES = 2**26
_SUFFIX = ".npy"
_ENCRYPTED = 0x1
_FILE_ERRORS = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError,
    RuntimeError, KeyError, TypeError, SyntaxError, tokenize.TokenError, struct.error,
    MemoryError,
)  # fmt: skip

Places = Mapping[str | None, Sequence[Path]]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn every failure to read a file into a `SourceError` that names it."""
    try:
        yield
    except InputError:
        raise
    except _FILE_ERRORS as error:
        kind = f"an {path.suffix} file" if path.suffix == ".npz" else "a .npy file"
        raise SourceError(
            f"{shown(path)}: cannot be read as {kind} without pickle: "
            f"{error or type(error).__name__}"
        ) from None


class _MemberStream:
    """One member of a zip archive as a stream that closes the archive with it."""

    def __init__(self, path: Path, name: str) -> None:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(path.open("rb"))))
            self._stream = stack.enter_context(archive.open(name))
            self._stack = stack.pop_all()

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: where it lies and what its header says.

    Attributes
    ----------
    path, member
        The file, and the name in it where it is a zip archive.
    packed
        Whether the member is compressed.
    offset
        Where its values begin: in the file, or in the unpacked content of a packed member.
    shape, dtype, fortran
        As the header says.
    identity
        Tells other content apart: checksum and size, or size and time.
    """

    path: Path
    member: str | None
    packed: bool
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    identity: Mapping[str, Any]

    @property
    def title(self) -> str:
        return self.path.name if self.member is None else f"{self.path.name}/{self.member}"

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read entries `start` to `stop` of the first dimension."""
        with _reading(self.path):
            if self.fortran and len(self.shape) > 1:
                mapped: npt.NDArray[Any] = np.memmap(
                    self.path, self.dtype, "r", self.offset, self.shape, "F"
                )
                return np.array(mapped[start:stop], order="C")
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            data = self._bytes(self.offset + start * row, (stop - start) * row)
            return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """Read all of it, block by block, each with its first index."""
        step = block_length(self.shape, self.dtype)
        for start in range(0, self.shape[0], step):
            yield start, self.read(start, min(start + step, self.shape[0]))

    def _bytes(self, offset: int, size: int) -> bytes:
        if not self.packed:
            with cursors.borrowed((self.path, None), 0, lambda: self.path.open("rb")) as cursor:
                cursor.stream.seek(offset)  # place stays 0: this stream can go back
                return self._whole(_read_exactly(cursor.stream, size), size)
        with cursors.borrowed((self.path, self.member), offset, self._open_member) as cursor:
            while cursor.place < offset:
                skipped = cursor.stream.read(min(offset - cursor.place, _READ_BYTES))
                self._whole(skipped, 1)
                cursor.place += len(skipped)
            data = self._whole(_read_exactly(cursor.stream, size), size)
            cursor.place += size
            return data

    def _open_member(self) -> _MemberStream:
        return _MemberStream(self.path, f"{self.member}{_SUFFIX}")

    def _whole(self, data: bytes, least: int) -> bytes:
        if len(data) < least:
            raise SourceError(
                f"{self.title}: ends too soon, {least - len(data)} bytes before what its header "
                "says; the file is truncated: fetch it again"
            )
        return data


def _read_exactly(stream: Any, size: int) -> bytes:
    """Read `size` bytes in pieces, or what there is: a stream may give fewer at a time."""
    pieces, missing = [], size
    while missing:
        piece = stream.read(min(missing, _READ_BYTES))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _read_header(
    stream: Any, title: str, size: int
) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Read a .npy header; return the shape, type, Fortran order and where the values begin.

    `size` is that of the whole file or member, with which the header must agree.
    """
    buffer = io.BytesIO(_read_exactly(stream, _HEADER_BYTES))
    version = npy_format.read_magic(buffer)
    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): npy_format.read_array_header_1_0,
        (2, 0): npy_format.read_array_header_2_0,
    }
    if version not in readers:
        raise SourceError(f"{title}: has .npy format {version}, expected (1, 0) or (2, 0)")
    shape, fortran, dtype = readers[version](buffer)
    offset = buffer.tell()
    if dtype.hasobject or dtype.itemsize == 0 or any(side < 0 for side in shape):
        raise SourceError(
            f"{title}: holds {dtype} of shape {shape}, expected numbers or text, which are read "
            "without pickle"
        )
    expected = offset + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise SourceError(
            f"{title}: has {size} bytes, expected {expected} by its header ({dtype} of shape "
            f"{shape}); the file is damaged: fetch it again"
        )
    return tuple(shape), dtype, bool(fortran), offset


def _open_array(path: Path) -> StoredArray:
    """Open a `.npy` file."""
    with _reading(path), path.open("rb") as file:
        found = path.stat()
        shape, dtype, fortran, offset = _read_header(file, path.name, found.st_size)
    identity = {"name": path.name, "bytes": found.st_size, **version_of(path)}
    return _checked(StoredArray(path, None, False, offset, shape, dtype, fortran, identity))


def _open_member(path: Path, archive: zipfile.ZipFile, file: IO[bytes], name: str) -> StoredArray:
    """Open one array of an `.npz` archive by its header."""
    info = archive.getinfo(name + _SUFFIX)
    title = f"{path.name}/{name}"
    if info.flag_bits & _ENCRYPTED:
        raise SourceError(f"{title}: is encrypted, expected an archive without password")
    with archive.open(info) as stream:
        shape, dtype, fortran, offset = _read_header(stream, title, info.file_size)
    packed = info.compress_type != zipfile.ZIP_STORED
    if not packed:
        if info.compress_size != info.file_size:
            raise SourceError(
                f"{title}: {info.compress_size} bytes are stored, expected {info.file_size}"
            )
        file.seek(info.header_offset)
        name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        offset += info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    identity = {"name": name, "bytes": info.file_size, "crc32": f"{info.CRC:08x}"}
    return _checked(StoredArray(path, name, packed, offset, shape, dtype, fortran, identity))


def _checked(array: StoredArray) -> StoredArray:
    if array.fortran and len(array.shape) > 1 and (array.packed or is_remote(array.path)):
        raise SourceError(
            f"{array.title}: is in Fortran order, which cannot be read in ranges from a "
            "compressed or remote file; save np.ascontiguousarray(...) of it, or with np.savez"
        )
    return array


def _check_content(archive: zipfile.ZipFile, name: str) -> None:
    """Read a member to its end, where zipfile compares its checksum."""
    with archive.open(name + _SUFFIX) as stream:
        while stream.read(_READ_BYTES):
            pass


@dataclass(frozen=True)
class _Pair:
    """The images of one part of a split and their labels; None where there are none."""

    images: StoredArray
    labels: StoredArray | None


@dataclass
class _Found:
    """What was found in all files so far."""

    pairs: dict[str, list[_Pair]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None

    def add(self, split: str, pair: _Pair) -> None:
        labels = pair.labels
        check_shapes(
            pair.images.title,
            pair.images.shape,
            None if labels is None else labels.shape,
            np.dtype(np.uint8) if labels is None else labels.dtype,
        )
        self.pairs.setdefault(split, []).append(pair)


def _named_pairs(names: Collection[str], default: str) -> dict[str, tuple[str, str | None]]:
    """Return for each split that names of arrays tell of the images' name and the labels'."""
    pairs: dict[str, tuple[str, str | None]] = {}
    for name in names:
        split, labels = _split_of(name), _labels_of(name)
        if split is None or labels is None:
            continue
        if labels in names or not name.startswith("x_"):  # x_mean may be anything
            pairs[split or default] = name, labels if labels in names else None
    return pairs


def _split_of(name: str) -> str | None:
    """Return the split that the name of an array tells of; "" for the only one, None for none."""
    if name == "images":
        return ""
    if name.endswith("_images"):
        return name.removesuffix("_images")
    if name.startswith(("images_", "x_")):
        return name.removeprefix("images_").removeprefix("x_")
    return None


def _labels_of(name: str) -> str | None:
    """Return what the labels are called that belong to images of this name."""
    if name.startswith("x_"):
        return "y_" + name.removeprefix("x_")
    return name.replace("images", "labels") if "images" in name else None


def _is_labels(name: str) -> bool:
    return "labels" in name or name.startswith("y_")


def _add_archive(found: _Found, path: Path, split: str | None, default: str) -> None:
    """Open an `.npz` archive and check the content of every array that is used."""
    cursors.close({path})  # the file may be another one than before
    with _reading(path), path.open("rb") as file, zipfile.ZipFile(file) as archive:
        _check_count(path, archive, file)
        listed = archive.namelist()
        names = [n.removesuffix(_SUFFIX) for n in listed if n.endswith(_SUFFIX)]
        others = [n for n in listed if not n.endswith(_SUFFIX)]
        pairs = _chosen(path, names, others, split, default)
        members = {
            name: _open_member(path, archive, file, name)
            for pair in pairs.values()
            for name in pair
            if name is not None
        }
        for part, (images, labels) in pairs.items():
            found.add(part, _Pair(members[images], None if labels is None else members[labels]))
        if "class_names" in names:
            _add_names(found, path, _open_member(path, archive, file, "class_names"))
        for name in members:
            _check_content(archive, name)


def _check_count(path: Path, archive: zipfile.ZipFile, file: IO[bytes]) -> None:
    """Raise where damage hides members: zipfile does not count them."""
    file.seek(-_END.size - len(archive.comment), io.SEEK_END)
    (count,) = _END.unpack(file.read(_END.size))
    found = len(archive.infolist())
    if count not in (found, _MANY):
        raise SourceError(
            f"{shown(path)}: lists {found} members, expected {count} by its end record; the file "
            "is damaged: fetch it again"
        )


def _chosen(
    path: Path, names: Sequence[str], others: Sequence[str], split: str | None, default: str
) -> dict[str, tuple[str, str | None]]:
    """Return the pairs of an archive that are wanted: all, or those of one split."""
    pairs = _named_pairs(names, default)
    if not pairs:
        raise SourceError(
            f"{shown(path)}: holds {', '.join(names) or 'nothing'}; expected arrays such as "
            "train_images and train_labels, test_images and test_labels"
        )
    used = {name for pair in pairs.values() for name in pair} | {"class_names"}
    others = [*others, *(name for name in names if name not in used)]
    for images, labels in pairs.values():
        if labels is None and others:  # one of them may be the labels, under a damaged name
            raise SourceError(
                f"{shown(path)}: holds {images} without {_labels_of(images)}, and "
                f"{', '.join(others)}; name the labels so, or save unlabelled images alone"
            )
    if split is None:
        return pairs
    if split not in pairs and len(pairs) > 1:
        raise SourceError(
            f"{shown(path)}: holds the splits {', '.join(pairs)}, expected '{split}' or one only"
        )
    return {split: pairs.get(split) or next(iter(pairs.values()))}


def _add_names(found: _Found, path: Path, array: StoredArray) -> None:
    size = math.prod(array.shape) * array.dtype.itemsize
    if len(array.shape) != 1 or size > _NAMES_BYTES:
        raise SourceError(
            f"{array.title}: has shape {array.shape} and {size} bytes, expected one name a class"
        )
    names = tuple(str(name) for name in as_text(array.read(0, array.shape[0])).tolist())
    if found.class_names not in (None, names):
        raise SourceError(f"{shown(path)}: names other classes than the file before it")
    found.class_names = names


def _add_arrays(found: _Found, paths: Sequence[Path], split: str | None, default: str) -> None:
    """Open `.npy` files: those of images, each with the labels given or beside it."""
    given = [path for path in paths if _is_labels(path.stem)]
    named = [path for path in paths if path.stem == "class_names"]
    images = [path for path in paths if path not in given and path not in named]
    for path in named:
        _add_names(found, path, _open_array(path))
    if given and not images:
        raise SourceError(f"{shown(given[0])}: holds labels, expected images as well")
    for path in images:
        wanted = _labels_of(path.stem)
        labels = None if wanted is None else path.with_name(wanted + path.suffix)
        if labels not in given and (labels is None or not labels.is_file()):
            labels = given[0] if len(images) == len(given) == 1 else None
        pair = _Pair(_open_array(path), None if labels is None else _open_array(labels))
        found.add(split or _split_of(path.stem) or default, pair)


@dataclass(frozen=True)
class NumpySource:
    """Splits of arrays in files.

    Attributes
    ----------
    pairs
        For each split its parts: images and labels.
    labelling
        How labels become codes.
    full_scale
        The pixel value that counts as 1.
    provenance
        Names, sizes and checksums.
    """

    pairs: Mapping[str, Sequence[_Pair]]
    labelling: Labelling
    full_scale: int
    provenance: Mapping[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelling.class_names

    def splits(self) -> dict[str, SplitInfo]:
        found = {}
        for name, pairs in self.pairs.items():
            first = pairs[0].images
            count = sum(pair.images.shape[0] for pair in pairs)
            found[name] = SplitInfo(count, first.shape[1:], pixel_type(first.dtype) or "")
        return found

    def read(self, split: str, start: int, stop: int) -> Block:
        pairs = self.pairs[split]
        counts = [pair.images.shape[0] for pair in pairs]
        return joined(
            [
                self._read_part(pairs[number], first, last)
                for number, first, last in in_parts(counts, start, stop)
            ]
        )

    def _read_part(self, pair: _Pair, start: int, stop: int) -> Block:
        images = as_pixels(pair.images.read(start, stop))
        codes = np.full(stop - start, -1, np.int32)
        if pair.labels is not None:
            codes = self.labelling.apply(pair.labels.read(start, stop).reshape(-1))
        origins = [f"{pair.images.title}[{index}]" for index in range(start, stop)]
        return Block(images, codes, origins)

    def close(self) -> None:
        cursors.close({pair.images.path for pairs in self.pairs.values() for pair in pairs})
        labels = [pair.labels for pairs in self.pairs.values() for pair in pairs]
        cursors.close({array.path for array in labels if array is not None})


def open_numpy(
    places: Places, class_names: Sequence[str] | None = None, split: str = "train"
) -> NumpySource:
    """Open images in `.npz` and `.npy` files.

    An archive holds `SPLIT_images` and `SPLIT_labels`, or `x_SPLIT` and `y_SPLIT` as Keras has it,
    and optionally `class_names`. A `.npy` file holds the images of one split, named like
    `train_images.npy`; its labels lie beside it as `train_labels.npy`, or are given with it. A file
    `class_names.npy` may be among those given.

    Parameters
    ----------
    places
        For each split its files, or folders of them, in order; for None those whose names, or the
        names in which, tell of the splits.
    class_names
        The name of each label code; default: those in the archive, else the distinct texts, sorted,
        else the codes themselves.
    split
        The split of files of None whose names tell of none.

    Raises
    ------
    SourceError
        Where a file is missing, damaged, not of its kind, or holds another type of images.
    ShapeError
        Where images and labels, or the parts of a split, do not fit together.
    LabelError
        Where a label is outside the classes.
    """
    found = _Found()
    for name, given in places.items():
        paths = [path for place in given for path in _files(place)]
        archives = [path for path in paths if path.suffix.lower() == ".npz"]
        arrays = [path for path in paths if path.suffix.lower() == _SUFFIX]
        for path in paths:
            if path not in archives and path not in arrays:
                raise SourceError(f"{shown(path)}: expected a file named .npz or .npy")
        for path in archives:
            _add_archive(found, path, name, split)
        _add_arrays(found, arrays, name, split)
    if not found.pairs:
        raise SourceError("no .npz or .npy file was given, expected one at least")
    for name, pairs in found.pairs.items():
        _check_parts(name, pairs)
    kinds = {
        pair.images.path.suffix.lower()[1:] for pairs in found.pairs.values() for pair in pairs
    }
    names = found.class_names if class_names is None else class_names
    labelling = survey_labels(_labels(found), names)
    scale = max(scale_of(pairs[0].images.dtype) for pairs in found.pairs.values())
    provenance = {"kind": kinds.pop() if len(kinds) == 1 else "numpy", "arrays": _record(found)}
    return NumpySource(found.pairs, labelling, scale, provenance)


def _files(place: Path) -> list[Path]:
    """Return the files that a place stands for: itself, or those in it, sorted by name."""
    if not place.is_dir():
        return [place]
    found = [path for path in place.iterdir() if path.suffix.lower() in (".npz", _SUFFIX)]
    if not found:
        raise SourceError(f"{shown(place)}: holds no .npz or .npy file, expected one at least")
    return sorted(found, key=lambda path: path.name)


def _check_parts(split: str, pairs: Sequence[_Pair]) -> None:
    first = pairs[0].images
    for pair in pairs:
        images = pair.images
        if pixel_type(images.dtype) is None:
            blocks = (block for _, block in images.blocks())
            refuse_pixels(f"{images.title} (split '{split}')", images.dtype, blocks)
        if images.shape[1:] != first.shape[1:] or images.dtype.name != first.dtype.name:
            raise ShapeError(
                f"{images.title}: images of shape {images.shape[1:]} and {images.dtype}, expected "
                f"{first.shape[1:]} and {first.dtype} as in {first.title}"
            )


def _labels(found: _Found) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    for pairs in found.pairs.values():
        before = 0
        for pair in pairs:
            for start, block in pair.labels.blocks() if pair.labels is not None else ():
                yield before + start, block.reshape(-1)
            before += pair.images.shape[0]


def _record(found: _Found) -> dict[str, list[dict[str, Any]]]:
    """Return for each part of a split which arrays it is made of, for the provenance."""
    return {
        split: [
            {
                "file": pair.images.path.name,
                "images": dict(pair.images.identity),
                "labels": None if pair.labels is None else dict(pair.labels.identity),
            }
            for pair in pairs
        ]
        for split, pairs in found.pairs.items()
    }


def read_npz(path: Path) -> NumpySource:
    """Open an `.npz` file with `SPLIT_images` and `SPLIT_labels`, and optionally `class_names`.

    The layout `x_train`, `y_train`, `x_test`, `y_test` that Keras uses is read too. Nothing is
    ever unpickled.

    Raises
    ------
    SourceError
        Where the file is no such archive.
    """
    return open_numpy({None: [path]})
