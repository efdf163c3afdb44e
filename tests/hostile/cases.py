"""What containers are held against: how the ingest of each must end."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hostile.making import picture, saved, zeros_compressed

LOST = "unreadable"
CUT = "truncated"
LARGE = "too large"
NO_LABEL = "label unknown"
NAMES = ("cat", "dog")
BOMB_BYTES = 2**29


@dataclass(frozen=True)
class Case:
    """A container on disk, and how its ingest must end.

    Attributes
    ----------
    name
        Of the case, and of its store.
    source
        What to ingest.
    stored
        How many samples end in the store; None: nothing is said.
    left_out
        Status -> how many samples have it.
    error
        A pattern of the message, where there can be no store.
    settings
        Further ones of the images.
    like
        The case of the undamaged container: what is stored without a sample left out is the same.
    """

    name: str
    source: str
    stored: int | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    like: str | None = None


@cache
def small(number: int = 0) -> bytes:
    """Return one of 256 different PNG files of 5 x 6 grey pixels."""
    return saved(picture(6, 5, 1) ^ np.uint8(number), "PNG")


def goods(count: int = 3) -> dict[str, bytes]:
    """Return images by path, in two classes of one split."""
    return {f"train/{NAMES[n % 2]}/{n}.png": small(n) for n in range(count)}


@cache
def zeros_gzipped(count: int) -> bytes:
    """Return `count` zeros, a multiple of 16 MiB, as a gzip file."""
    checksum, part = 0, bytes(2**24)
    for _ in range(count // len(part)):
        checksum = zlib.crc32(part, checksum)
    trailer = struct.pack("<2I", checksum, count % 2**32)
    return b"\x1f\x8b\x08" + bytes(7) + zeros_compressed(count)[2:-4] + trailer


# Name of a file, its bytes, how many samples are stored, and what of the rest, or the error.
Made = tuple[str, bytes, int | None, dict[str, int] | str]


def written(
    root: Path, files: Iterable[Made], settings: Mapping[str, dict[str, Any]] | None = None
) -> Iterator[Case]:
    """Write files below `root` and yield their cases; `settings` by the name of a file."""
    for name, data, stored, rest in files:
        (root / name).write_bytes(data)
        if isinstance(rest, str):
            yield Case(name, str(root / name), error=rest)
        else:
            given = (settings or {}).get(name, {})
            yield Case(name, str(root / name), stored, rest, settings=given)
