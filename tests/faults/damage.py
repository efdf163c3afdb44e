"""Files that are changed behind the back of what wrote them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damaged:
    """What was done to which files, their paths below the folder."""

    kind: str
    files: tuple[str, ...]


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 200))


def _blank(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + bytes(len(data) - start)


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flipped": _flip,
    "cut short": _cut,
    "garbage appended": _extend,
    "end zeroed": _blank,
}
KINDS = (*CHANGES, "deleted", "swapped")


def damage(folder: Path, result: str, kind: str, rng: random.Random) -> Damaged:
    """Damage any file of a result in a folder, or swap two that differ, alike if possible."""
    files = sorted(p for p in (folder / result).rglob("*") if p.is_file() and p.stat().st_size)
    while True:
        file = rng.choice(files)
        data = file.read_bytes()
        if kind == "swapped":
            others = [other for other in files if other.read_bytes() != data]
            alike = [other for other in others if _array_of(other) == _array_of(file)]
            other = rng.choice(alike or others)
            file.write_bytes(other.read_bytes())
            other.write_bytes(data)
            return Damaged(kind, tuple(str(p.relative_to(folder)) for p in (file, other)))
        if kind == "deleted":
            file.unlink()
        elif (changed := CHANGES[kind](data, rng)) == data:
            continue
        else:
            file.write_bytes(changed)
        return Damaged(kind, (str(file.relative_to(folder)),))


def _array_of(file: Path) -> tuple[str, str]:
    """Return what files are alike by: the array whose chunks they are, or their suffix."""
    array, is_chunk, _ = str(file).partition("/c/")
    return (array, "") if is_chunk else ("", file.suffix)
