"""Zip archives: members at one place, sizes that are lies, bombs, and archives in archives."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostile.cases import BOMB_BYTES, CUT, LARGE, LOST, NAMES, Made, goods, small
from hostile.making import patched, zeros_compressed


@dataclass
class Member:
    """A member of a zip archive; where sizes, place or flags are given, they are what is said."""

    name: bytes
    content: bytes
    method: int = 0
    flags: int = 0
    attributes: int = 0
    size: int | None = None
    packed_size: int | None = None
    crc: int | None = None
    at: int | None = None
    extra: bytes = b""

    def fields(self) -> tuple[int, ...]:
        """Return flags, method, time, checksum, sizes, and lengths of name and extra field."""
        size = len(self.content) if self.size is None else self.size
        packed = len(self.content) if self.packed_size is None else self.packed_size
        crc = zlib.crc32(self.content) if self.crc is None else self.crc
        lengths = len(self.name), len(self.extra)
        return self.flags, self.method, 0, 0x21, crc, packed, size, *lengths


def zip_of(members: Iterable[Member], comment: bytes = b"") -> bytes:
    """Return a zip archive of members, each as it says."""
    data, directory, count = b"", b"", 0
    for member in members:
        at = len(data) if member.at is None else member.at
        data += b"PK\3\4" + struct.pack("<5H3I2H", 20, *member.fields())
        data += member.name + member.extra + member.content
        directory += b"PK\1\2" + struct.pack("<6H3I2H", 0x314, 20, *member.fields())
        directory += struct.pack("<3H2I", 0, 0, 0, member.attributes, at)
        directory += member.name + member.extra
        count += 1
    end = struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(data), len(comment))
    return data + directory + b"PK\5\6" + end + comment


def plain(files: dict[str, bytes]) -> list[Member]:
    return [Member(name.encode("utf-8", "surrogateescape"), data) for name, data in files.items()]


def zeros(count: int) -> bytes:
    """Return `count` zeros, deflated."""
    return zeros_compressed(count)[2:-4]


def packed(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def zips(tar: bytes) -> Iterator[Made]:
    """Yield names of archives, their bytes, how many samples are stored, and what of the rest.

    `tar` is a tar archive of the good images.
    """
    good, bad = plain(goods()), b"train/cat/bad.png"
    whole = zip_of(good)
    yield "whole.zip", whole, 3, {}
    evil = {"../../evil.png": small(9), "/abs/e.png": small(9), "train/cat/../../../e.png": b"x"}
    yield "leads-out.zip", zip_of([*good, *plain(evil)]), 3, {LOST: 3}
    for name, fields in {
        "link": {"attributes": 0o120777 << 16},
        "device": {"attributes": 0o020666 << 16},
        "encrypted": {"flags": 1},
        "method": {"method": 97},
        "size-0": {"size": 0},
        "size-4-gib": {"size": 2**32 - 2, "method": 8},
        "packed-4-gib": {"packed_size": 2**32 - 2},
        "beyond": {"at": 2**32 - 2},
        "checksum": {"crc": 1},
        "no-deflate": {"method": 8},
        "no-bzip2": {"method": 12},
        "huge": {"size": 2**32 - 1, "extra": struct.pack("<2HQ", 1, 8, 2**63)},
    }.items():
        member = Member(bad, small(9), **fields)
        left_out = {LARGE if name == "size-4-gib" else LOST: 1}
        yield f"{name}.zip", zip_of([*good, member]), 3, left_out
    # many members in the bytes of one: at one place, and one in the other
    same = [Member(b"train/cat/%d.png" % n, small(9), at=0) for n in range(100)]
    yield "same-place.zip", zip_of(same), None, "overlaps"
    inside = Member(b"train/cat/in.png", small(9), at=200)
    yield "inside.zip", zip_of([*good, inside]), None, {}
    bomb = Member(bad, zeros(BOMB_BYTES), method=8, size=BOMB_BYTES)
    yield "bomb.zip", zip_of([*good, bomb]), 3, {LARGE: 1}
    yield (
        "lies.zip",
        zip_of([*good, Member(bad, zeros(BOMB_BYTES), method=8, size=99)]),
        3,
        {LOST: 1},
    )
    yield "cut.zip", whole[:-30], None, "is no zip archive"
    yield "no-directory.zip", whole[:200], None, "is no zip archive"
    yield "nothing.zip", b"", None, "is no zip archive"
    yield "text.zip", b"no archive\n" * 200, None, "is no zip archive"
    yield "end-only.zip", zip_of([]), None, "no image found"
    yield "hidden-members.zip", patched(whole, len(whole) - 12, b"\x09\0"), None, "of 9"
    large = patched(whole, len(whole) - 10, b"\xff\xff\xff\x7f")
    yield "large-directory.zip", large, None, "is no zip archive"
    yield "comment.zip", zip_of(good, b"PK\5\6" * 1000), None, {}
    many = {f"train/{NAMES[n % 2]}/{n:05}.png": small(n % 256) for n in range(10_000)}
    yield "many.zip", zip_of(plain(many)), 10_000, {}
    names = [Member(b"train/c\xff/%d\x1b[2J\n.png" % n, small(n)) for n in (1, 2)]
    yield "raw-names.zip", zip_of(names), 2, {}
    yield "no-utf-8.zip", zip_of([Member(m.name, m.content, flags=0x800) for m in names]), None, {}
    yield from _nested(tar)


def _nested(tar: bytes) -> Iterator[Made]:
    """Yield archives in archives."""
    yield "tar.zip", packed({"a.tar": tar}), 3, {}
    yield "cut-tar.zip", packed({"a.tar": tar[: 512 * 5 + 20]}), 2, {CUT: 1}
    yield "zip-of-text.zip", packed({"a.zip": b"text" * 99}), None, "a.zip: is no zip archive"
    deep = packed({"train/cat/0.png": small()})
    for n in range(5):
        deep = packed({f"{n}.zip": deep})
    yield "deep.zip", deep, None, "no image found"
    inner = Member(b"a.tar", zeros(BOMB_BYTES), method=8, size=BOMB_BYTES)
    yield "tar-bomb.zip", zip_of([inner]), None, "no image found"
    inner = Member(b"a.zip", zeros(2**26), method=8, size=2**26)
    yield "zip-bomb.zip", zip_of([inner]), None, "is no zip archive"
    both = packed({"train.zip": packed(goods()), "test.zip": b""})
    yield "empty-inner.zip", both, None, "is no zip archive"
    content = packed({"a.tar": tar})
    flipped = patched(content, len(content) // 2, bytes([content[len(content) // 2] ^ 64]))
    yield "flipped-tar.zip", flipped, None, {}
