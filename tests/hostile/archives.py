"""Archives and webdatasets: members that lead out, lie about their size, or are bombs."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.cases import (
    BOMB_BYTES,
    CUT,
    LARGE,
    LOST,
    NAMES,
    NO_LABEL,
    Case,
    Made,
    goods,
    small,
    written,
    zeros_gzipped,
)
from hostile.image_files import others
from hostile.making import patched
from hostile.zips import zips

TAR_END = bytes(1024)


def header(name: str, size: int = 0, kind: bytes = b"0", link: str = "", raw: bytes = b"") -> bytes:
    """Return a tar header; `raw` replaces the 12 bytes of the size."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    data = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    if raw:
        data = patched(patched(data, 124, raw.ljust(12, b"\0")), 148, b" " * 8)
        data = patched(data, 148, b"%06o\0 " % sum(data))
    return data


def member(name: str, content: bytes) -> bytes:
    return header(name, len(content)) + content + bytes(-len(content) % 512)


def tar_of(members: dict[str, bytes], end: bytes = TAR_END) -> bytes:
    return b"".join(member(name, content) for name, content in members.items()) + end


def pax(**records: str) -> bytes:
    """Return the extended header of the next member."""
    content = b"".join(_pax_record(f"{key}={value}\n".encode()) for key, value in records.items())
    return header("x", len(content), b"x") + content + bytes(-len(content) % 512)


def _pax_record(text: bytes) -> bytes:
    length = len(text) + 2
    while length != len(str(length)) + 1 + len(text):
        length += 1
    return b"%d " % length + text


def tars() -> Iterator[Made]:
    """Yield names of archives, their bytes, how many samples are stored, and what of the rest."""
    good = tar_of(goods(), b"")
    evil = {"../../evil.png": small(9), "/abs/evil.png": small(9), "train/cat/../../../e.png": b""}
    yield "leads-out.tar", good + tar_of(evil), 3, {LOST: 3}
    links = header("train/cat/sym.png", 0, b"2", "/etc/passwd")
    links += header("train/cat/hard.png", 0, b"1", "../../../etc/passwd")
    yield "links.tar", good + links + TAR_END, 3, {LOST: 2}
    devices = b"".join(header(f"train/cat/d{k}.png", 0, b"%d" % k) for k in (3, 4, 6))
    yield "devices.tar", good + devices + TAR_END, 3, {LOST: 3}
    yield "sparse.tar", good + header("train/cat/s.png", 0, b"S") + TAR_END, 3, {LOST: 1}
    holes = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999999"}
    yield "sparse-pax.tar", good + pax(**holes) + tar_of({"train/cat/s.png": b""}), 3, {LOST: 1}
    huge = pax(size="9" * 30) + tar_of({"train/cat/s.png": b""})
    yield "pax-huge-size.tar", good + huge, 3, {CUT: 1}
    yield "pax-negative-size.tar", good + pax(size="-512") + tar_of(goods(1)), 3, {LOST: 1}
    yield "pax-size-is-text.tar", good + pax(size="many") + tar_of({}), 3, {LOST: 1}
    yield "pax-large.tar", good + header("x", 2**40, b"x") + bytes(2**16), 3, {LOST: 1}
    yield "long-name.tar", good + header("x", 2**33, b"L") + bytes(2**16), 3, {LOST: 1}
    for name, raw, status in (
        ("negative", b"\xff" * 11 + b"\0", LOST),
        ("minus", b"-0000000512", LOST),
        ("text", b"lots", LOST),
        ("exbibytes", b"\x80\0\0\0\x80" + bytes(7), CUT),
        ("96-bit", b"\x80" + b"\xff" * 11, CUT),
    ):
        odd = header("train/cat/size.png", raw=raw) + bytes(1024) + TAR_END
        yield f"size-{name}.tar", good + odd, 3, {status: 1}
    whole = good + TAR_END
    yield "cut-in-header.tar", whole[: 512 * 4 + 100], 2, {CUT: 1}
    yield "cut-in-data.tar", whole[: 512 * 5 + 20], 2, {CUT: 1}
    yield "cut-at-end.tar", good, 3, {CUT: 1}
    yield "half-an-end.tar", good + bytes(512), 3, {}
    yield "checksum.tar", patched(whole, 1024 + 148, b"\x37"), 1, {LOST: 1}
    yield "twice.tar", good + whole, 3, {}  # the last of each counts
    yield "tar-of-tar.tar", tar_of({"train/cat/inner.tar": whole}), 3, {}
    yield "end-only.tar", TAR_END, None, "no image found"
    yield "nothing.tar", b"", None, "is no tar archive"
    yield "text.tar", b"no archive\n" * 200, None, "is no tar archive"
    yield "zip.tar", others_by_name("zip.png"), 1, {}  # read as what it is
    many = {f"train/{NAMES[n % 2]}/{n:05}.png": small(n % 256) for n in range(10_000)}
    yield "many.tar", tar_of(many), 10_000, {}
    yield (
        "raw-names.tar",
        tar_of({f"train/c\udcff/{n}\x1b[2J\n.png": small(n) for n in (1, 2)}),
        2,
        {},
    )
    yield from gzipped(whole)
    for name, pack in (("xz", lzma.compress), ("bz2", bz2.compress)):
        packed = pack(whole)
        yield f"whole.tar.{name}", packed, 3, {}
        yield f"cut.tar.{name}", packed[:-30], None, {}
        yield f"flipped.tar.{name}", patched(packed, len(packed) // 2, b"\xff\0"), None, {}
        yield f"bomb.tar.{name}", _bomb(pack), 3, {LARGE: 1}


def _bomb(pack: Callable[[bytes], bytes]) -> bytes:
    """Return a compressed archive, a member of which unpacks to 64 MiB."""
    start = tar_of(goods(), b"") + header("train/cat/bomb.png", 2**26)
    return pack(start) + pack(bytes(2**20)) * 2**6 + pack(TAR_END)


def others_by_name(name: str) -> bytes:
    return next(file.data for file in others() if file.name == name)


def gzipped(whole: bytes) -> Iterator[Made]:
    """Yield compressed archives as `tars` does."""
    packed = gzip.compress(whole)
    yield "whole.tgz", packed, 3, {}
    yield "cut.tgz", packed[:-30], None, {CUT: 1}
    yield "no-trailer.tgz", packed[:-8], None, {CUT: 1}
    yield "crc.tgz", patched(packed, len(packed) - 8, b"\0\0\0\0"), 3, {CUT: 1}
    yield "two.tgz", gzip.compress(whole[:1024]) + gzip.compress(whole[1024:]), 3, {}
    yield "garbage-after.tgz", packed + b"garbage" * 9, 3, {CUT: 1}
    start = gzip.compress(tar_of(goods(), b"") + header("train/cat/bomb.png", BOMB_BYTES))
    yield "bomb.tgz", start + zeros_gzipped(BOMB_BYTES) + gzip.compress(TAR_END), 3, {LARGE: 1}
    yield "bomb-after-end.tgz", packed + zeros_gzipped(BOMB_BYTES), 3, {}


def webdataset() -> bytes:
    """Return a webdataset archive of two samples and of those with a strange label."""
    members = {"0.png": small(0), "0.cls": b"0", "1.png": small(1), "1.cls": b"1"}
    for number, (name, (kind, label)) in enumerate(strange_labels().items(), 2):
        members[f"{name}.png"] = small(number)
        members |= {f"{name}.{kind}": label} if kind else {}
    return tar_of(members)


def strange_labels() -> dict[str, tuple[str, bytes]]:
    """Return the kind and the content of labels by name; those named `text-` are text."""
    return {
        "none": ("", b""),
        "empty": ("cls", b""),
        "spaces": ("cls", b" \n"),
        "text-garbage": ("cls", b"\x1b[2J<b>\0"),
        "text-below": ("cls", b"-2"),
        "text-above": ("cls", b"2"),
        "text-huge": ("cls", b"9" * 400),
        "text-digits": ("cls", b"9" * 60_000),
        "text-bytes": ("cls", b"\xff\xfe"),
        "megabyte": ("cls", b"a" * 2**20),
        "deep": ("json", b"[" * 60_000),
        "deeper": ("json", b"[" * 100_000),
        "deep-label": ("json", b'{"label":' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
        "invalid": ("json", b'{"label":'),
        "digits": ("json", b'{"label": ' + b"9" * 5_000 + b"}"),
        "number": ("json", b'{"label": ' + b"9" * 4_000 + b"}"),
        "float": ("json", b'{"label": 1e999}'),
        "nan": ("json", b'{"label": NaN}'),
        "text-list": ("json", b'{"label": [0]}'),
        "text-true": ("json", b'{"label": true}'),
        "text-surrogate": ("json", b'{"label": "\\ud800"}'),
        "bytes": ("json", b'\xff\xfe{"label": 0}'),
    }


def webdataset_cases(root: Path) -> Iterator[Case]:
    """Yield the same archive with its classes named, and with labels taken for names."""
    path, count = root / "web.tar", len(strange_labels())
    path.write_bytes(webdataset())
    named = {"class_names": list(NAMES)}
    codes = 3  # those of a list of one, of a truth value, and none, which NaN says
    yield Case("web-named", str(path), 2 + codes, {NO_LABEL: count - codes}, settings=named)
    texts = sum(name.startswith("text-") for name in strange_labels()) + 1  # and NaN
    yield Case("web", str(path), 2 + texts, {NO_LABEL: count - texts})


def archive_cases(root: Path) -> Iterator[Case]:
    small_ones = {"max_bytes": 2**20, "max_bad": "100%"}
    bombs = dict.fromkeys(("bomb.tar.xz", "bomb.tar.bz2", "bomb.zip", "lies.zip"), small_ones)
    yield from written(root, tars(), {"bomb.tgz": {"max_bad": "100%"}, **bombs})
    yield from written(root, zips(tar_of(goods())), bombs)
    yield from webdataset_cases(root)
