"""Image files in folders: `SPLIT/CLASS/FILE`, read with Pillow.

Names are sorted as text, so the numbering does not depend on the file system. All images must
have one size and one mode (8-bit grey, 8-bit RGB or 16-bit grey); the first file of the first
split decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import ShapeError, SourceError
from pipeline.sources import Block, SplitInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MODES = {"L": "L", "1": "L", "RGB": "RGB", "I;16": "I;16"}


def read_image(path: Path) -> npt.NDArray[Any]:
    """Read one image file as [y, x] or [y, x, channel].

    Raises
    ------
    SourceError
        Where Pillow cannot read it, or its mode is none of the supported ones.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _MODES:
                raise SourceError(
                    f"{path}: has mode {image.mode}, expected 8-bit grey (L), RGB or 16-bit "
                    "grey (I;16); convert it first"
                )
            return np.asarray(image.convert(_MODES[image.mode]))
    except SourceError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: cannot be read as an image: {error}") from None


@dataclass(frozen=True)
class FolderSource:
    """The image files below `path`, one folder per split, one per class inside."""

    path: Path

    @cached_property
    def _files(self) -> dict[str, list[tuple[str, Path]]]:
        """For each split its (class name, file) pairs in order."""
        found: dict[str, list[tuple[str, Path]]] = {}
        for split in _subfolders(self.path):
            pairs = [
                (folder.name, file)
                for folder in _subfolders(split)
                for file in sorted(folder.iterdir(), key=lambda item: item.name)
                if file.suffix.lower() in SUFFIXES
            ]
            if pairs:
                found[split.name] = pairs
        if not found:
            raise SourceError(
                f"{self.path}: no image found; expected SPLIT/CLASS/FILE, such as "
                f"{self.path}/train/cat/1.png, files ending in {', '.join(SUFFIXES)}"
            )
        return found

    @cached_property
    def _first(self) -> npt.NDArray[Any]:
        return read_image(next(iter(self._files.values()))[0][1])

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for pairs in self._files.values() for name, _ in pairs}))

    @property
    def full_scale(self) -> int:
        return int(np.iinfo(self._first.dtype).max)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Kind, folder, and a digest of names, sizes and times: a changed file is noticed."""
        listing = hashlib.sha256()
        for pairs in self._files.values():
            for _, file in pairs:
                status = file.stat()
                name = file.relative_to(self.path).as_posix()
                listing.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return {"kind": "folder", "folder": self.path.name, "listing": listing.hexdigest()}

    def splits(self) -> dict[str, SplitInfo]:
        shape, dtype = self._first.shape, str(self._first.dtype)
        return {name: SplitInfo(len(pairs), shape, dtype) for name, pairs in self._files.items()}

    def read(self, split: str, start: int, stop: int) -> Block:
        pairs = self._files[split][start:stop]
        codes = {name: code for code, name in enumerate(self.class_names)}
        first = self._first
        images = np.empty((len(pairs), *first.shape), first.dtype)
        for place, (_, file) in enumerate(pairs):
            image = read_image(file)
            if image.shape != first.shape or image.dtype != first.dtype:
                raise ShapeError(
                    f"{file}: has shape {image.shape} and {image.dtype}, expected "
                    f"{first.shape} and {first.dtype} as the first file; bring all to one size"
                )
            images[place] = image
        labels = np.array([codes[name] for name, _ in pairs], np.int32)
        return Block(images, labels, [f.relative_to(self.path).as_posix() for _, f in pairs])

    def close(self) -> None:
        """Nothing is left open."""


def _subfolders(path: Path) -> list[Path]:
    return sorted((item for item in path.iterdir() if item.is_dir()), key=lambda item: item.name)
