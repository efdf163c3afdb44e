"""How sets of image files are laid out: which names are images, what names say, patterns.

Names of files are bytes: they need not be valid UTF-8. They sort by their bytes, part of the path
by part, which for valid names is the order of Python's text.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigError, SourceError
from pipeline.core.urls import is_url, shown
from pipeline.storage.folders import is_folder, list_folder, matching

# of files that `decoding` reads; what one holds is told by its content
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo",
    ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".avif", ".avifs",
    ".pbm", ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc", ".j2c",
    ".qoi", ".sgi", ".ras",
)  # fmt: skip
_USUAL = (".png", ".jpg", ".tif", ".webp")
SPLIT_WORDS = (
    "training", "train", "testing", "test", "validation", "valid", "val", "dev", "eval",
)  # fmt: skip
_IN_NAME = re.compile(rf"(?:^|[-_./])({'|'.join(SPLIT_WORDS)})(?=\d*(?:[-_./]|$))", re.IGNORECASE)
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000
_MOST_BRACES = 100


def as_text(name: bytes) -> str:
    """Return a name as text that can be stored; bytes that are no UTF-8 are spelled out."""
    return name.decode("utf-8", "backslashreplace")


def suffix_of(name: bytes) -> str:
    """Return the suffix of a file's name in lower case, such as `.png`; empty where it has none."""
    _, dot, suffix = name.rpartition(b"/")[2].lstrip(b".").rpartition(b".")
    return f".{as_text(suffix).lower()}" if dot else ""


def is_image(name: bytes) -> bool:
    """Tell by the suffix whether a file is an image."""
    return suffix_of(name) in IMAGE_SUFFIXES


def image_files() -> str:
    """Return which files are images, in words: their suffixes are too many for a message."""
    usual = ", ".join(_USUAL)
    return f"files ending in {usual} or another of {len(IMAGE_SUFFIXES)} suffixes of images"


def is_hidden(name: bytes) -> bool:
    """Tell whether one part of a path is hidden, or what macOS leaves in archives."""
    return name.startswith(b".") or name == b"__MACOSX"


def split_of(name: str) -> str | None:
    """Return the split that the name of a file speaks of, in lower case.

    Examples
    --------
    >>> split_of("train-00000-of-00001.parquet"), split_of("imagenet_val.tar"), split_of("a.tar")
    ('train', 'val', None)
    """
    found = _IN_NAME.search(name.rpartition("/")[2])
    return found[1].lower() if found else None


def files_in(
    places: Mapping[str | None, Sequence[Path]], suffixes: Sequence[str]
) -> dict[str | None, tuple[Path, ...]]:
    """Return the places with each folder replaced by its files of some suffixes, sorted.

    Raises
    ------
    SourceError
        Where a folder has no such file.
    """
    return {
        split: tuple(file for path in paths for file in _files_of(path, suffixes))
        for split, paths in places.items()
    }


def _files_of(path: Path, suffixes: Sequence[str]) -> list[Path]:
    # what has the suffix is not asked for: there may be very many
    if path.name.lower().endswith(tuple(suffixes)) or not is_folder(path):
        return [path]
    names = [name for name in list_folder(path) if name.lower().endswith(tuple(suffixes))]
    if not names:
        raise SourceError(f"{shown(path)}: has no file ending in {', '.join(suffixes)}")
    return [path / name for name in names if not is_hidden(os.fsencode(name))]


def flattened(places: Mapping[str | None, Any], split: str) -> Iterator[tuple[str, bool, Path]]:
    """Yield for each place its split, whether that was given, and the place.

    Where no split was given (the key is None), the name of the place tells it, else it is `split`.
    """
    for given, paths in places.items():
        for path in paths:
            yield (given, True, path) if given else (split_of(path.name) or split, False, path)


def expand(text: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return the places that a pattern names: braces, then `*`, `?` and `[…]`.

    Braces hold alternatives (`{train,test}`) or numbers (`{0000..0147}`, as wide as the first),
    and all that they name are returned in order, whether there or not. What `*`, `?` and `[…]`
    match is sorted as text. A local place of exactly this name comes first.

    Parameters
    ----------
    text
        A path or a URL.
    options
        fsspec's storage options for a URL.

    Raises
    ------
    ConfigError
        Where the braces name more than a million places.
    SourceError
        Where nothing matches.

    Examples
    --------
    >>> expand("train-{08..10}.tar")
    ['train-08.tar', 'train-09.tar', 'train-10.tar']
    """
    if not is_url(text) and os.path.lexists(text):
        return [text]
    if text.count("{") > _MOST_BRACES:
        raise ConfigError(f"{shown(text)} has more than {_MOST_BRACES} braces; give a folder")
    names = list(itertools.islice(_braces(text), _MOST_NAMES + 1))
    if len(names) > _MOST_NAMES:
        raise ConfigError(f"{shown(text)} names more than {_MOST_NAMES:,} places; give a folder")
    return [found for name in names for found in _matches(name, options)]


def _braces(text: str) -> Iterator[str]:
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    numbers = _NUMBERS.fullmatch(found[1])
    if numbers:
        width = len(numbers[1])
        choices: Iterator[str] = (
            f"{number:0{width}}" for number in range(int(numbers[1]), int(numbers[2]) + 1)
        )
    else:
        choices = iter(found[1].split(","))
    for choice in choices:
        yield from _braces(text[: found.start()] + choice + text[found.end() :])


def _matches(text: str, options: Mapping[str, Any] | None) -> list[str]:
    is_query = text.startswith(("http://", "https://"))  # whose "?" begins a query
    if not set(text.partition("?")[0] if is_query else text) & set("*?["):
        return [text]
    # pathlib would not keep the text as it was given
    local = partial(glob.glob, recursive=True)
    found = matching(text, options) if is_url(text) else local(text)
    if not found:
        raise SourceError(f"{shown(text)}: nothing matches this pattern; correct it")
    return sorted(found)
