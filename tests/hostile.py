"""Input as nobody should have to read it: bombs, lies, damage, and other things by name.

Image files come with the statuses that they may end with; `OK` stands for a decoded image.
Containers (archives, tables, arrays, lists, stores, job files) are written below a folder and come
with how their ingest must end. `python hostile.py FOLDER` ingests what `FOLDER/cases.json` lists,
with the command line and with the API, and writes down what became of each.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import resource
import socket
import struct
import sys
import tarfile
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.core.blocks import OK, STATUSES, TOO_LARGE, TRUNCATED, UNREADABLE

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
ANY = (OK, UNREADABLE, TRUNCATED)
BAD = (UNREADABLE, TRUNCATED)


class Hostile(NamedTuple):
    """A file, and the statuses of which it must end with one."""

    name: str
    data: bytes
    statuses: tuple[int, ...]


# Making files ------------------------------------------------------------------------------------


def picture(height: int = 24, width: int = 32, channels: int = 3, dtype: str = "uint8"):
    """Return pixels, [y, x] or [y, x, channel], that no two places share by pattern."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    rng = np.random.default_rng(height * width + channels)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(image, kind: str, **options) -> bytes:
    """Return a file of a kind that Pillow writes, of an array or a Pillow image."""
    target = io.BytesIO()
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(target, kind, **options)
    return target.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of chunks given as (name, content)."""
    return PNG_MAGIC + b"".join(chunk(name, content) for name, content in chunks)


def start(width: int, height: int, depth: int, colour: int, interlace: int = 0):
    """Return the chunk that a PNG begins with."""
    return b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, interlace)


END = (b"IEND", b"")


def rows_of(pixels) -> bytes:
    """Return pixels as the rows of a PNG, big-endian, each after filter 0, compressed."""
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(len(pixels), -1)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def zeros_compressed(count: int) -> bytes:
    """Return `count` zeros as a zlib stream, without taking the time to compress them all."""
    part = 2**24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = packer.compress(bytes(part)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = packer.compress(bytes(count % part)) + packer.flush()
    checksum = (count % 65521) << 16 | 1
    return b"\x78\xda" + whole * (count // part) + rest + struct.pack(">I", checksum)


def tiff_of(tags, order: str = "<", after: bytes = b"", following: int = 0) -> bytes:
    """Return a TIFF of (tag, type, count, value) with `after` behind its only directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    return b"".join(
        (
            mark,
            struct.pack(order + "I", 8),
            struct.pack(order + "H", len(tags)),
            entries,
            struct.pack(order + "I", following),
            after,
        )
    )


def small_tiff(pixels: bytes, width: int, height: int, **other: int) -> bytes:
    """Return an uncompressed 8-bit grey TIFF in one strip; `other` replaces values of tags."""
    values = {"width": width, "height": height, "rows": height, "bytes": len(pixels), **other}
    place = 8 + 2 + 12 * 8 + 4
    tags = [
        (256, 4, 1, values["width"]),
        (257, 4, 1, values["height"]),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, values.get("strips", 1), values.get("offset", place)),
        (278, 4, 1, values["rows"]),
        (279, 4, 1, values["bytes"]),
    ]
    return tiff_of(tags, after=pixels, following=values.get("following", 0))


def patched(data: bytes, place: int, new: bytes) -> bytes:
    """Return `data` with `new` instead of what is at `place`."""
    return data[:place] + new + data[place + len(new) :]


def jpeg_said(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header says another size."""
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return patched(data, place + 5, struct.pack(">HH", height, width))


def with_exif(data: bytes, payload: bytes) -> bytes:
    """Return a JPEG with an Exif segment."""
    content = b"Exif\0\0" + payload
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def orientation(value: int) -> bytes:
    """Return the content of an Exif segment that says an orientation."""
    return tiff_of([(274, 3, 1, value)])


# The files ---------------------------------------------------------------------------------------


def bombs() -> Iterator[Hostile]:
    """Yield small files that say, or inflate to, far more than they are."""
    side = 50_000
    zeros = zeros_compressed(side * (side + 1))
    bomb = png_of(start(side, side, 8, GREY), (b"IDAT", zeros), END)
    yield Hostile("png-bomb", bomb, (TOO_LARGE,))
    pixels = rows_of(picture(channels=1))
    head, image = start(32, 24, 8, GREY), (b"IDAT", pixels)
    text = zeros_compressed(100_000_000)
    for name, content in {
        "ztxt": (b"zTXt", b"Comment\0\0" + text),
        "itxt": (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text),
        "iccp": (b"iCCP", b"profile\0\0" + text),
    }.items():
        yield Hostile(f"png-{name}-bomb", png_of(head, content, image, END), (OK,))
    after = png_of(head, image, (b"zTXt", b"Comment\0\0" + text), END)
    yield Hostile("png-ztxt-after-bomb", after, (OK,))
    more = png_of(start(4, 4, 8, GREY), (b"IDAT", zeros), END)
    yield Hostile("png-more-pixels-than-said", more, ANY)
    jpeg = saved(picture(), "JPEG")
    yield Hostile("jpeg-65535", jpeg_said(jpeg, 65535, 65535), (TOO_LARGE,))
    bmp = saved(picture(), "BMP")
    yield Hostile("bmp-large", patched(bmp, 18, struct.pack("<ii", 60_000, 60_000)), (TOO_LARGE,))
    yield Hostile("tiff-large", small_tiff(bytes(99), 100_000, 100_000), (TOO_LARGE,))
    webp = saved(picture(), "WEBP", lossless=True)
    yield Hostile("webp-large", patched(webp, 21, b"\xff\xff\xff\x0f"), (TOO_LARGE,))
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2 + webp[12:]
    riff = b"RIFF" + struct.pack("<I", len(canvas) + 4) + b"WEBP" + canvas
    yield Hostile("webp-canvas", riff, (TOO_LARGE,))
    gif = saved(picture(), "GIF")
    yield Hostile("gif-screen", patched(gif, 6, b"\xff" * 4), (TOO_LARGE,))
    frame = patched(gif, gif.index(b",", 13 + 768) + 5, b"\xff" * 4)
    yield Hostile("gif-frame", frame, (TOO_LARGE,))
    yield Hostile("pgm-large", b"P5 99999 99999 255\n" + bytes(99), (TOO_LARGE,))
    yield Hostile("ppm-negative", b"P6 -9 -9 255\n" + bytes(99), (UNREADABLE,))
    yield Hostile("pbm-comment", b"P1 #" + b"a" * 10_000, BAD)
    for name, options in (("jp2", {}), ("j2k", {"no_jp2": True})):
        jp2 = saved(picture(), "JPEG2000", **options)
        place = jp2.index(b"\xff\x4f\xff\x51") + 8
        large = patched(jp2, place, struct.pack(">2I", 99_999, 99_999))
        yield Hostile(f"{name}-stream-large", large, (TOO_LARGE,))
    head = saved(picture(), "JPEG2000").index(b"ihdr") + 4
    large = patched(saved(picture(), "JPEG2000"), head, struct.pack(">2I", 99_999, 99_999))
    yield Hostile("jp2-header-large", large, (UNREADABLE,))
    said = patched(saved(picture(), "SGI"), 6, b"\xff" * 4)
    yield Hostile("sgi-large", said, (TOO_LARGE,))
    qoi = saved(picture(), "QOI")
    yield Hostile("qoi-large", patched(qoi, 4, struct.pack(">2I", 99_999, 99_999)), (TOO_LARGE,))
    sun = struct.pack(">8I", 0x59A66A95, 99_999, 99_999, 24, 99, 1, 0, 0) + bytes(99)
    yield Hostile("sun-large", sun, (TOO_LARGE,))
    avif = saved(picture(), "AVIF")
    ispe = avif.index(b"ispe") + 8
    said = patched(avif, ispe, struct.pack(">2I", 20_000, 20_000))
    yield Hostile("avif-large", said, (TOO_LARGE, UNREADABLE))
    tiles = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tiles += [(322, 4, 1, 2**16), (323, 4, 1, 2**15), (324, 4, 1, 8), (325, 4, 1, 8)]
    yield Hostile("tiff-tiles", tiff_of(tiles), (TOO_LARGE,))


def lies() -> Iterator[Hostile]:
    """Yield files whose header says another size than their data have."""
    pixels = rows_of(picture(channels=1))
    for name, size, statuses in (
        ("larger", (64, 48), BAD),
        ("taller", (32, 4000), BAD),
        ("smaller", (31, 24), ANY),
        ("no-width", (0, 24), (UNREADABLE,)),
        ("no-height", (32, 0), (UNREADABLE,)),
    ):
        data = png_of(start(*size, 8, GREY), (b"IDAT", pixels), END)
        yield Hostile(f"png-says-{name}", data, statuses)
    jpeg = saved(picture(), "JPEG")
    yield Hostile("jpeg-says-larger", jpeg_said(jpeg, 640, 480), ANY)
    yield Hostile("jpeg-says-smaller", jpeg_said(jpeg, 8, 8), ANY)
    yield Hostile("jpeg-no-height", jpeg_said(jpeg, 32, 0), BAD)
    bmp = saved(picture(), "BMP")
    yield Hostile("bmp-says-larger", patched(bmp, 18, struct.pack("<ii", 64, 48)), (TRUNCATED,))
    yield Hostile("bmp-says-smaller", patched(bmp, 18, struct.pack("<ii", 8, 8)), (OK,))
    negative = patched(bmp, 18, struct.pack("<ii", -32, 24))
    yield Hostile("bmp-negative-width", negative, (TOO_LARGE,))
    lowest = patched(bmp, 18, struct.pack("<ii", -32, -(2**31)))
    yield Hostile("bmp-negative-sizes", lowest, (UNREADABLE, TOO_LARGE))
    grey = picture(channels=1).tobytes()
    yield Hostile("tiff-says-larger", small_tiff(grey, 64, 48), (TRUNCATED,))
    yield Hostile("tiff-says-taller", small_tiff(grey, 32, 48, rows=24), (TRUNCATED,))
    yield Hostile("tiff-says-smaller", small_tiff(grey, 8, 8), (OK,))
    webp = saved(picture(), "WEBP", lossless=True)
    bits = struct.unpack_from("<I", webp, 21)[0]
    yield Hostile("webp-says-larger", patched(webp, 21, struct.pack("<I", bits + 99)), BAD)
    yield Hostile("webp-says-smaller", patched(webp, 21, struct.pack("<I", bits - 9)), ANY)


def truncated() -> Iterator[Hostile]:
    """Yield files of each format that end too early."""
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("AVIF", {}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
        ("SGI", {}),
        ("QOI", {}),
    ):
        data = saved(picture(), kind, **options)
        name = "-".join((kind.lower(), *map(str, options)))
        for part in (0.02, 0.3, 0.7, 0.95):
            stop = max(3, int(part * len(data)))
            yield Hostile(f"{name}-cut-at-{stop}", data[:stop], (TRUNCATED,))
        yield Hostile(f"{name}-cut-by-1", data[:-1], (TRUNCATED,))


def others() -> Iterator[Hostile]:
    """Yield what is no image, or none of the formats that are read."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("image.png", saved(picture(), "PNG"))
    for name, data in {
        "empty": b"",
        "zeros": bytes(1000),
        "text": b"not an image, but long enough to be one\n" * 9,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pickle": pickle.dumps({"image": [1, 2, 3]}),
        "zip": archive.getvalue(),
        "gzip": gzip.compress(saved(picture(), "PNG")),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) run\n",
        "tga": saved(picture(), "TGA"),
        "ico": saved(picture(), "ICO"),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "pam": b"P7\nWIDTH 2\nHEIGHT 2\nDEPTH 1\nMAXVAL 255\nENDHDR\n" + bytes(4),
        "pfm": b"Pf 2 2 -1.0\n" + bytes(16),
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "escape": b"\x1b]0;owned\x07" * 9,
        "riff-wave": b"RIFF" + struct.pack("<I", 30) + b"WAVEfmt " + bytes(24),
    }.items():
        yield Hostile(f"{name}.png", data, (UNREADABLE,))


def structures() -> Iterator[Hostile]:
    """Yield files whose structure is broken, not their size."""
    grey = picture(channels=1)
    head, image = start(32, 24, 8, GREY), (b"IDAT", rows_of(grey))
    yield Hostile("png-without-header", png_of(image, END), (UNREADABLE,))
    yield Hostile("png-without-image", png_of(head, END), (UNREADABLE,))
    yield Hostile("png-without-end", png_of(head, image), (TRUNCATED,))
    yield Hostile("png-two-headers", png_of(head, head, image, END), (UNREADABLE,))
    yield Hostile("png-strange-depth", png_of(start(32, 24, 7, GREY), image, END), (UNREADABLE,))
    yield Hostile("png-no-palette", png_of(start(32, 24, 8, PALETTE), image, END), (UNREADABLE,))
    yield Hostile("png-critical", png_of(head, (b"EVIL", b""), image, END), (UNREADABLE,))
    broken = png_of(head, (b"IDAT", b"\x78\xda" + bytes(range(1, 255))), END)
    yield Hostile("png-broken-stream", broken, (UNREADABLE,))
    frames = (b"fcTL", struct.pack(">5I2H2B", 0, 4, 4, 1, 1, 1, 9, 0, 0))
    animated = png_of(head, (b"acTL", struct.pack(">2I", 2**31, 0)), frames, image, END)
    yield Hostile("png-false-frames", animated, (OK,))
    cyclic = small_tiff(grey.tobytes(), 32, 24, following=8)
    yield Hostile("tiff-cyclic", cyclic, (OK, UNREADABLE))
    away = small_tiff(grey.tobytes(), 32, 24, following=2**31)
    yield Hostile("tiff-next-is-away", away, ANY)
    many = small_tiff(grey.tobytes(), 32, 24, strips=2**30)
    yield Hostile("tiff-huge-count", many, (TRUNCATED,))
    yield Hostile("tiff-far-strip", small_tiff(grey.tobytes(), 32, 24, offset=2**31), (TRUNCATED,))
    yield Hostile("tiff-no-rows", small_tiff(grey.tobytes(), 32, 24, rows=0), BAD)
    yield Hostile("tiff-tags", b"II*\0\x08\0\0\0\xff\xff" + bytes(12) * 65535, BAD)
    yield Hostile("tiff-no-tags", tiff_of([]), (UNREADABLE,))
    jpeg = saved(picture(), "JPEG")
    yield Hostile("jpeg-exif-garbage", with_exif(jpeg, b"II*\0" + b"\xff" * 99), (OK,))
    yield Hostile("jpeg-exif-nothing", with_exif(jpeg, b""), (OK,))
    yield Hostile("jpeg-orientation-9", with_exif(jpeg, orientation(9)), (OK,))
    yield Hostile("jpeg-no-image", b"\xff\xd8\xff\xd9", (UNREADABLE,))
    yield Hostile("jpeg-only-start", b"\xff\xd8\xff", (TRUNCATED,))
    exif = png_of(head, (b"eXIf", b"\xff" * 99), image, END)
    yield Hostile("png-exif-garbage", exif, (OK,))
    rle = patched(saved(grey, "BMP"), 30, struct.pack("<I", 1))
    yield Hostile("bmp-rle-garbage", rle, ANY)


def unusual() -> Iterator[Hostile]:
    """Yield honest files of kinds that a careless reader gets wrong."""
    cmyk = Image.fromarray(picture()).convert("CMYK")
    yield Hostile("cmyk", saved(cmyk, "JPEG"), (OK,))
    palette = Image.fromarray(picture()).quantize(16)
    yield Hostile("palette-alpha", saved(palette, "PNG", transparency=bytes(range(16))), (OK,))
    for colour, channels in ((GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGB_ALPHA, 4)):
        pixels = picture(channels=channels, dtype="uint16")
        data = png_of(start(32, 24, 16, colour), (b"IDAT", rows_of(pixels)), END)
        yield Hostile(f"png-16-bit-{channels}", data, (OK,))
    frames = [Image.fromarray(picture(24, 32, 3) // part) for part in (1, 2, 3)]
    for kind in ("PNG", "WEBP", "TIFF", "GIF", "AVIF"):
        many = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        yield Hostile(f"{kind.lower()}-frames", many, (OK,))
    floats = Image.fromarray(picture(channels=1).astype(np.float32))
    yield Hostile("tiff-float", saved(floats, "TIFF"), (UNREADABLE,))
    whole = Image.fromarray(picture(channels=1).astype(np.int32))
    yield Hostile("tiff-32-bit", saved(whole, "TIFF"), (UNREADABLE,))


@cache
def hostile_files() -> tuple[Hostile, ...]:
    """Return all of them."""
    makers = (bombs, lies, truncated, others, structures, unusual)
    return tuple(file for make in makers for file in make())


# Containers --------------------------------------------------------------------------------------

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


# Folders -----------------------------------------------------------------------------------------

STRANGE_NAMES = (
    b"a\nb", b"a\rb", b'"quoted"', b"'single'", b"<img src=x onerror=alert(1)>", b"--set", b"-rf",
    b"\xff\xfe", b"\x1b[2J", b"\x1b]0;owned\x07", b"\x7f\x08", b" ", b"a,b;c\td", b"$(id)", b"`id`",
    b"%s%n", b"{0}", b"*?[a]", b"~", b"..a", "\u202egnp".encode(), "\u00e9".encode(),
    "o\u0302".encode(), b"C:\\a", b"NUL", b"x" * 251, b"__proto__",
)  # fmt: skip


def write_strange_names(root: Path) -> int:
    """Write good images under strange names into strangely named classes; return how many."""
    names = [name for name in STRANGE_NAMES if not name.startswith(b".")]
    for number, name in enumerate(names):
        for folder in (b"plain", name):
            path = os.fsencode(root) + b"/train/" + folder
            Path(os.fsdecode(path)).mkdir(parents=True, exist_ok=True)
            Path(os.fsdecode(path + b"/" + name + b".png")).write_bytes(small(number))
    return 2 * len(names)


def write_specials(root: Path) -> dict[str, str]:
    """Write what is no image file under names of images; return what must be said of each."""
    folder = root / "train" / "cat"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"good{number}.png").write_bytes(small(number))
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
    for name, target in {
        "broken": "nowhere",
        "outside": "/etc/passwd",
        "loop": "loop.png",
        "device": "/dev/zero",
        "memory": "/proc/self/mem",
    }.items():
        (folder / f"{name}.png").symlink_to(target)
    (folder / "folder.png").mkdir()
    (folder / "round").symlink_to(root)
    (folder / "empty.png").touch()
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    if os.getuid():
        (folder / "locked.png").write_bytes(small())
        (folder / "locked.png").chmod(0)
    locked = {"locked.png": "Permission denied"} if os.getuid() else {}
    return locked | {
        "pipe.png": "is a pipe",
        "socket.png": "is a socket",
        "broken.png": "is a broken link",
        "outside.png": "begins with",
        "loop.png": "is a broken link",
        "device.png": "is a device",
        "memory.png": "",
        "empty.png": "",
        "sparse.png": "holds 1,099,511,627,776 bytes",
    }


# Tar archives ------------------------------------------------------------------------------------

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


def tars() -> Iterator[tuple[str, bytes, int | None, dict[str, int] | str]]:
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
    yield "tar-of-tar.tar", tar_of({"train/cat/inner.tar": whole}), None, "no image found"
    yield "end-only.tar", TAR_END, None, "no image found"
    yield "nothing.tar", b"", None, "is no tar archive"
    yield "text.tar", b"no archive\n" * 200, None, "is no tar archive"
    yield "zip.tar", others_by_name("zip.png"), None, "is no tar archive"
    many = {f"train/{NAMES[n % 2]}/{n:05}.png": small(n % 256) for n in range(10_000)}
    yield "many.tar", tar_of(many), 10_000, {}
    yield (
        "raw-names.tar",
        tar_of({f"train/c\udcff/{n}\x1b[2J\n.png": small(n) for n in (1, 2)}),
        2,
        {},
    )
    yield from gzipped(whole)


def others_by_name(name: str) -> bytes:
    return next(file.data for file in others() if file.name == name)


def gzipped(whole: bytes) -> Iterator[tuple[str, bytes, int | None, dict[str, int] | str]]:
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


@cache
def zeros_gzipped(count: int) -> bytes:
    """Return `count` zeros, a multiple of 16 MiB, as a gzip file."""
    checksum, part = 0, bytes(2**24)
    for _ in range(count // len(part)):
        checksum = zlib.crc32(part, checksum)
    trailer = struct.pack("<2I", checksum, count % 2**32)
    return b"\x1f\x8b\x08" + bytes(7) + zeros_compressed(count)[2:-4] + trailer


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
    for name, data, stored, rest in tars():
        (root / name).write_bytes(data)
        if isinstance(rest, str):
            yield Case(name, str(root / name), error=rest)
        else:
            once = {"max_bad": "100%"} if name == "bomb.tgz" else {}
            yield Case(name, str(root / name), stored, rest, settings=once)
    yield from webdataset_cases(root)


# NumPy's files -----------------------------------------------------------------------------------


class Trap:
    """An object that makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def npy(array: Any, **options: Any) -> bytes:
    """Return an array as a `.npy` file."""
    target = io.BytesIO()
    np.lib.format.write_array(target, np.asanyarray(array), **options)
    return target.getvalue()


def npy_said(text: str, content: bytes = b"", version: int = 1) -> bytes:
    """Return a `.npy` file with a header of one's own."""
    data = text.encode("latin1")
    length = struct.pack("<H" if version == 1 else "<I", len(data))
    return b"\x93NUMPY" + bytes((version, 0)) + length + data + content


def says(shape: str, kind: str = "|u1") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n"


def zip_of(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, kind)
    return target.getvalue()


def arrays(count: int = 8) -> dict[str, bytes]:
    """Return the members of an archive of images and labels."""
    images = np.stack([picture(28, 28, 1) ^ np.uint8(n) for n in range(count)])
    labels = np.arange(count, dtype=np.int64) % 2
    return {"train_images.npy": npy(images), "train_labels.npy": npy(labels)}


def npys(trap: Path) -> Iterator[tuple[str, bytes, str]]:
    """Yield names of `.npy` files, their bytes, and the error."""
    objects = np.array([Trap(trap)], object)
    yield "objects.npy", npy(objects, allow_pickle=True), "without pickle"
    yield "pickle.npy", pickle.dumps(Trap(trap)), "without pickle"
    yield "petabyte.npy", npy_said(says("(1000000000000000, 28, 28)"), bytes(99)), "expected 78400"
    yield "overflow.npy", npy_said(says("(4294967296, 4294967296, 4294967296)")), "damaged"
    yield "negative.npy", npy_said(says("(-1, 28, 28)")), "shape"
    yield "shape-is-text.npy", npy_said(says("'many'")), "shape"
    yield "true.npy", npy_said(says("(True, True, True)"), b"\0"), "no class names|shape"
    code = f"__import__('os').mkdir({str(trap)!r})"
    yield "code.npy", npy_said(says(code)), "cannot be read"
    yield "code-only.npy", npy_said(code), "cannot be read"
    yield "deep.npy", npy_said("(" * 9_000), "cannot be read"
    yield "minuses.npy", npy_said("-" * 9_000 + "1"), "cannot be read"
    yield "gigabyte.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**30) + b"{" * 99, "cannot be read"
    yield "long-header.npy", npy_said(says("(1, 1, 1)") + " " * 2**20, version=2), "cannot be read"
    yield "version.npy", b"\x93NUMPY\x09\0" + bytes(99), "format"
    yield "nothing.npy", b"", "cannot be read"
    yield "text.npy", b"no array" * 99, "cannot be read"
    yield "cut.npy", npy(np.zeros((9, 8, 8), np.uint8))[:-1], "damaged"
    yield "cut-header.npy", npy(np.zeros((9, 8, 8), np.uint8))[:40], "cannot be read"
    yield "void.npy", npy(np.zeros((9, 8, 8), "V3")), "expected"
    yield "complex.npy", npy(np.zeros((9, 8, 8), complex)), "expected"
    yield "dates.npy", npy(np.zeros((9, 8, 8), "M8[s]")), "expected"
    yield "one-number.npy", npy(np.uint8(3)), "expected"
    yield "no-rows.npy", npy(np.zeros((9, 0, 8), np.uint8)), ""
    yield "no-images.npy", npy(np.zeros((0, 8, 8), np.uint8)), "no image|no class names"
    yield "not-finite.npy", npy(np.full((4, 8, 8), np.nan)), ""


def npzs(trap: Path) -> Iterator[tuple[str, bytes, str | None]]:
    """Yield names of `.npz` archives, their bytes, and the error; None where there may be none."""
    good = arrays()
    images = good["train_images.npy"]
    for kind, name in ((zipfile.ZIP_STORED, "stored"), (zipfile.ZIP_DEFLATED, "deflated")):
        whole = zip_of(good, kind)
        for place in (400, 2000, 4000):
            flipped = patched(whole, place, bytes((whole[place] ^ 4,)))
            yield f"flipped-{name}-{place}.npz", flipped, "cannot be read"
        yield f"cut-{name}.npz", whole[:-300], "cannot be read"
    zeros = says("(10, 28, 28)").encode()
    yield "bomb.npz", bomb_zip(npy_said(zeros.decode()), 2**30), "bytes, expected"
    yield (
        "bomb-says-less.npz",
        bomb_zip(npy_said(zeros.decode()), 2**30, 10 * 784),
        "cannot be read",
    )
    yield "leads-out.npz", zip_of({f"../../{k}": v for k, v in good.items()}), "split '../../train'"
    yield "absolute.npz", zip_of({f"/tmp/{k}": v for k, v in good.items()}), "split '/tmp/train'"
    many = zip_of({f"{n:0200}.npy": b"" for n in range(2_000)})
    yield "many.npz", many, "expected arrays"
    yield "overlap.npz", overlapping(zip_of(good)), "cannot be read"
    yield "encrypted.npz", encrypted(zip_of(good)), "encrypted|password"
    yield (
        "method.npz",
        zip_of(good).replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x61\0"),
        "cannot be read",
    )
    yield "nothing.npz", b"", "cannot be read"
    yield "text.npz", b"no archive" * 99, "cannot be read"
    yield "empty.npz", zip_of({}), "nothing"
    yield "no-labels.npz", zip_of({"x_train.npy": images}), None
    objects = npy(np.array([Trap(trap)] * 8, object), allow_pickle=True)
    for name, wrong in {
        "fewer": npy(np.zeros(7, np.int64)),
        "more": npy(np.zeros(9, np.int64)),
        "two-columns": npy(np.zeros((8, 2), np.int64)),
        "halves": npy(np.full(8, 0.5)),
        "not-a-number": npy(np.full(8, np.nan)),
        "objects": objects,
        "huge": npy(np.full(8, 2**62)),
        "below": npy(np.full(8, -2)),
    }.items():
        members = {"train_images.npy": images, "train_labels.npy": wrong}
        # none at all, and one class of a strange code, are labels too
        error = None if name in ("not-a-number", "huge") else ""
        yield f"labels-{name}.npz", zip_of(members), error
    for name, wrong in {"objects": objects, "bytes": npy(np.array([b"\xff\xfe", b"b"]))}.items():
        yield f"names-{name}.npz", zip_of({**good, "class_names.npy": wrong}), ""


def bomb_zip(start: bytes, zeros: int, said: int | None = None) -> bytes:
    """Return an archive whose images unpack to `start` and many zeros, and say they have `said`."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (
        packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + zeros_compressed(zeros)[2:-4]
    )
    data = zip_of({"train_images.npy": b"", **dict([list(arrays(10).items())[1]])})
    size = len(start) + (zeros if said is None else said)
    name = b"train_images.npy"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 33, 0, len(packed), size, len(name), 0)
    return zip_joined(data, local + name + packed, struct.pack("<2I", len(packed), size))


def zip_joined(data: bytes, local: bytes, sizes: bytes) -> bytes:
    """Return an archive with another first member; its directory says it is deflated."""
    first, second = (data.find(b"PK\3\4"), data.find(b"PK\3\4", 4))
    start = data.find(b"PK\1\2")
    following = data.find(b"PK\1\2", start + 4)
    stop = data.find(b"PK\5\6")
    entry = patched(patched(data[start:following], 10, b"\x08\0"), 20, sizes)
    other = patched(data[following:stop], 42, struct.pack("<I", len(local)))
    body = local + data[second:start]
    end = patched(data[stop:], 16, struct.pack("<I", len(body)))
    assert first == 0
    return body + entry + other + end


def overlapping(data: bytes) -> bytes:
    """Return an archive whose second entry of the directory points to the first member."""
    second = data.rfind(b"PK\1\2")
    return patched(data, second + 42, struct.pack("<I", 0))


def encrypted(data: bytes) -> bytes:
    """Return an archive that says its members are encrypted."""
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(mark)
        while at >= 0:
            data = patched(data, at + place, b"\1\0")
            at = data.find(mark, at + 4)
    return data


def numpy_cases(root: Path, trap: Path) -> Iterator[Case]:
    for name, data, error in (*npys(trap), *npzs(trap)):
        (root / name).write_bytes(data)
        yield Case(name, str(root / name), error=error)
    (root / "whole.npz").write_bytes(zip_of(arrays()))
    yield Case("whole.npz", str(root / "whole.npz"), 8)


# Parquet files -----------------------------------------------------------------------------------


def parquet(images: list[Any], labels: Any, **options: Any) -> bytes:
    """Return a file as Hugging Face writes it; `images` are bytes, or what the column holds."""
    cells = [{"bytes": i, "path": None} if isinstance(i, bytes) else i for i in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"label": {"_type": "ClassLabel", "names": NAMES}}
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": pa.array(cells, kind), "label": pa.array(labels)})
    return parquet_of(table.replace_schema_metadata(notes), **options)


def parquet_of(table: Any, **options: Any) -> bytes:
    target = pa.BufferOutputStream()
    pq.write_table(table, target, write_page_checksum=True, **options)
    return target.getvalue().to_pybytes()


def parquets() -> Iterator[tuple[str, bytes, int | None, dict[str, int] | str]]:
    """Yield names of files, their bytes, how many samples are stored, and what of the rest."""
    images = [small(n) for n in range(8)]
    whole = parquet(images, [n % 2 for n in range(8)])
    yield "whole.parquet", whole, 8, {}
    yield "nothing.parquet", b"", None, "cannot be read as Parquet"
    yield "text.parquet", b"no table" * 99, None, "cannot be read as Parquet"
    yield "magic.parquet", b"PAR1" + bytes(99) + b"PAR1", None, "cannot be read as Parquet"
    footer = b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "footer-size.parquet", footer, None, "cannot be read as Parquet"
    for part in (0.1, 0.5, 0.9, 0.999):
        yield (
            f"cut-{part}.parquet",
            whole[: int(part * len(whole))],
            None,
            "cannot be read as Parquet",
        )
    yield "no-columns.parquet", parquet_of(pa.table({"a": [1]})), None, "has no column"
    yield "no-rows.parquet", parquet([], pa.array([], pa.int64())), None, "no samples"
    wrong = parquet([*images[:6], small(8), small(9)], [0, 1, 0, 1, 0, 1, 2, -2])
    yield "labels.parquet", wrong, 6, {NO_LABEL: 2}
    large = parquet(images, [0, 1, 2**62, -(2**63), 0, 1, 0, 1])
    yield "large-labels.parquet", large, 6, {NO_LABEL: 2}
    yield "halves.parquet", parquet(images, [0.5] * 8), None, "expected a whole number"
    yield "lists.parquet", parquet(images, [[0]] * 8), 8, {}
    yield "boxes.parquet", parquet(images, [[3, 4, 9, 9]] * 8), None, "has 4 columns"
    odd = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "../../../../etc/passwd"}]
    odd += [{"bytes": None, "path": path} for path in ("/etc/passwd", "file:///etc/passwd")]
    odd += [{"bytes": None, "path": path} for path in ("a\0b", "x" * 9_999, ".", "nowhere.png")]
    odd += [{"bytes": None, "path": path} for path in ("http://127.0.0.1:9/x.png", "http://[::1")]
    odd += [b"", b"\x1b[2J"]
    labels = [0] * (len(odd) + 1)
    yield "odd.parquet", parquet([*odd, small()], labels), 1, {LOST: len(odd)}
    numbers = pa.table({"image": pa.array([[1, 2]]), "label": [0]})
    yield "numbers.parquet", parquet_of(numbers), None, "list|has no column|expected"
    zeros = parquet([small(), bytes(2**25)], [0, 1], compression="zstd", row_group_size=1)
    yield "bomb.parquet", zeros, 1, {LARGE: 1}
    # one page of 32 MiB that stands for 16 images
    places = pa.array([0] * 16, pa.int32())
    same = pa.DictionaryArray.from_arrays(places, pa.array([bytes(2**25)]))
    table = pa.table({"image": same, "label": [0] * 16})
    packed = parquet_of(table, compression="zstd", store_schema=False)
    yield "same-bomb.parquet", packed, None, "none of the first"


def flipped_parquets() -> Iterator[tuple[str, bytes]]:
    """Yield files of which one bit is another: of the pages, and of what describes them."""
    images = [small(n) for n in range(8)]
    whole = parquet(images, [n % 2 for n in range(8)])
    described = len(whole) - 8 - struct.unpack("<I", whole[-8:-4])[0]
    for start, stop, name in ((4, described, "page"), (described, len(whole), "footer")):
        for number, place in enumerate(np.linspace(start, stop - 1, 30).astype(int).tolist()):
            flip = bytes((whole[place] ^ 1 << number % 8,))
            yield f"flipped-{name}-{place}.parquet", patched(whole, place, flip)


def parquet_cases(root: Path) -> Iterator[Case]:
    for name, data, stored, rest in parquets():
        (root / name).write_bytes(data)
        if isinstance(rest, str):
            yield Case(name, str(root / name), error=rest)
        else:
            most = {"max_bytes": 2**20} if "bomb" in name else {}
            yield Case(name, str(root / name), stored, rest, settings=most)
    for name, data in flipped_parquets():
        (root / name).write_bytes(data)
        yield Case(name, str(root / name), like="whole.parquet" if "page" in name else None)


# Lists -------------------------------------------------------------------------------------------


STRANGE_PATHS = (
    b"../../../../../../etc/passwd", b"/etc/passwd", b"file:///etc/passwd", b"local://etc/passwd",
    b"simplecache::file:///etc/passwd", b"ftp://127.0.0.1/x.png", b"images/0.png\0.txt", b"images",
    b"x" * 5_000, b"\x1b[2J\x1b]0;owned\x07", b"\xff\xfe.png", b"12", b'""', b"/dev/zero",
)  # fmt: skip


def lists() -> Iterator[tuple[str, bytes, int | None, dict[str, int] | str]]:
    """Yield names of CSV tables, their bytes, how many samples are stored, and what of the rest."""
    good = b"path,label\nimages/0.png,cat\nimages/1.png,dog\n"
    yield "whole.csv", good, 2, {}
    yield "bom.csv", b"\xef\xbb\xbf" + good, 2, {}
    yield "crlf.csv", good.replace(b"\n", b"\r\n"), 2, {}
    bad = [path + b",cat\n" for path in STRANGE_PATHS]
    yield "paths.csv", good + b"".join(bad), 2, {LOST: len(bad)}
    yield "long-line.csv", good + b"x" * 10**8 + b",cat\n", None, "no proper CSV table"
    yield "long-header.csv", b"x" * 10**7, None, "first line of"
    yield "quotes.csv", good + b'"images/2.png,cat\n' * 9, None, ""
    yield "wide.csv", good + b"a,b,c,d\n", None, "no proper CSV table"
    yield "narrow.csv", good + b"a\n", None, "no proper CSV table"
    yield "no-rows.csv", b"path,label\n", None, "no samples"
    yield "nothing.csv", b"", None, "is empty"
    yield "line-ends.csv", b"\n\n\n", None, "is empty"
    yield "binary.csv", bytes(range(256)) * 9, None, "NUL bytes"
    yield "numbers.csv", b"path,label\n7,2\n9,4\n", None, "none of the first"
    yield "two-paths.csv", good.replace(b"label", b"path"), None, "has 2 columns"
    yield "two-labels.csv", b"path,label,label\nimages/0.png,cat,dog\n", None, "has 2 columns"
    yield "labels-bytes.csv", good + b"images/2.png,\xff\xfe\n", None, "no UTF-8"


def list_cases(root: Path) -> Iterator[Case]:
    (root / "images").mkdir()
    for number in range(4):
        (root / "images" / f"{number}.png").write_bytes(small(number))
    for name, data, stored, rest in lists():
        (root / name).write_bytes(data)
        if isinstance(rest, str):
            yield Case(name, str(root / name), error=rest)
        else:
            yield Case(name, str(root / name), stored, rest)


# IDX files ---------------------------------------------------------------------------------------


def idx(*sizes: int, content: bytes = b"", kind: int = 8) -> bytes:
    return struct.pack(f">2x2B{len(sizes)}I", kind, len(sizes), *sizes) + content


def idx_sets() -> Iterator[tuple[str, bytes, bytes, int | None, str]]:
    """Yield names of sets, images and labels, how many are stored, and the error."""
    pixels, codes = picture(8, 35, 1).tobytes(), bytes((0, 1) * 4)
    images, labels = idx(8, 5, 7, content=pixels), idx(8, content=codes)
    yield "idx-whole", images, labels, 8, ""
    yield "idx-packed", gzip.compress(images), labels, 8, ""
    most = 2**32 - 1
    for name, changed in {
        "cut": images[:-1],
        "cut-header": images[:9],
        "nothing": b"",
        "text": b"no images" * 9,
        "most": idx(most, most, most),
        "most-packed": gzip.compress(idx(most, most, most)),
        "most-images": idx(most, 1, 1),
        "four": idx(8, most, most, 4),
        "no-rows": idx(8, 0, 7),
        "dimensions": idx(*[1] * 255),
        "floats": idx(8, 5, 7, content=pixels * 4, kind=0x0D),
        "other": idx(9, 5, 7, content=pixels + bytes(35)),
        "no-images": idx(0, 5, 7),
        "cut-packed": gzip.compress(images)[:-20],
        "flipped": patched(images, 99, bytes((images[99] ^ 1,))),
        "flipped-packed": gzip.compress(patched(images, 99, bytes((images[99] ^ 1,)))),
    }.items():
        yield f"idx-{name}", changed, labels, None, "."
    yield "idx-most-both", idx(most, most, most), idx(most, content=codes), None, "header announces"
    yield "idx-many", idx(most, 1, 1), idx(most, content=codes), None, "header announces"
    yield "idx-labels", images, idx(8, content=bytes([0] * 7 + [9])), None, ""
    yield "idx-bomb", gzip.compress(images) + zeros_gzipped(BOMB_BYTES), labels, 8, ""


def idx_cases(root: Path) -> Iterator[Case]:
    """Write sets of the catalog below `root`, and `catalog.yml`."""
    catalog = {}
    for name, images, labels, stored, error in idx_sets():
        folder = root / name
        folder.mkdir()
        packed = images.startswith(b"\x1f\x8b")
        (folder / ("images.gz" if packed else "images")).write_bytes(images)
        (folder / "labels").write_bytes(labels)
        catalog[name] = {
            "title": name, "kind": "idx", "licence": "none", "source": "nobody", "image": [5, 7],
            "class_names": NAMES, "splits": {"train": {"images": "images", "labels": "labels"}},
        }  # fmt: skip
        if "flipped" in name:
            whole = idx(8, 5, 7, content=picture(8, 35, 1).tobytes())
            catalog[name]["checksums"] = {"images": f"sha256:{hashlib.sha256(whole).hexdigest()}"}
        if stored or not error:
            yield Case(name, name, stored or 7, {} if stored else {NO_LABEL: 1})
        else:
            yield Case(name, name, error=error)
    (root / "catalog.yml").write_text(json.dumps(catalog))


# Zarr stores of others ---------------------------------------------------------------------------


def write_zarr(root: Path, arrays: dict[str, dict[str, Any]]) -> str:
    """Write a Zarr 2 store of one chunk an array: `data`, `dims`, and its metadata; return it."""
    root.mkdir()
    (root / ".zgroup").write_text('{"zarr_format": 2}')
    for name, array in arrays.items():
        folder = root / name
        folder.mkdir()
        data, dims = array.pop("data", None), array.pop("dims")
        usual = {"zarr_format": 2, "dtype": "|u1", "compressor": None, "fill_value": 0}
        usual |= {"order": "C", "filters": None, "chunks": array.get("shape")}
        (folder / ".zarray").write_text(json.dumps(usual | array))
        (folder / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": dims}))
        if data is not None:
            (folder / ".".join("0" for _ in dims)).write_bytes(data)
    return str(root)


def zarr_cases(root: Path, trap: Path) -> Iterator[Case]:
    dims = ["sample", "y", "x"]
    pixels = picture(8, 35, 1).tobytes()

    def image(**other: Any) -> dict[str, Any]:
        return {"image": {"shape": [8, 5, 7], "dims": dims, "data": pixels, **other}}

    def label(**other: Any) -> dict[str, Any]:
        return {"label": {"shape": [8], "dims": ["sample"], "data": bytes((0, 1) * 4), **other}}

    def case(name: str, arrays: dict[str, Any], stored: int | None, error: str = ".") -> Case:
        source = write_zarr(root / name, arrays)
        return Case(name, source, stored, error=None if stored else error)

    yield case("whole.zarr", image() | label(), 8)
    yield case("no-chunk.zarr", image(data=None) | label(), 8)
    yield case("short-chunk.zarr", image(data=pixels[:-1]) | label(), None)
    yield case("long-chunk.zarr", image(data=pixels + b"x") | label(), None)
    for kind in ("gzip", "zlib", "zstd", "blosc", "lz4"):
        packer = {"compressor": {"id": kind}}
        yield case(f"garbage-{kind}.zarr", image(**packer) | label(), None)
    trapped = {"data": pickle.dumps(Trap(trap))}
    unpickle = [{"id": "pickle", "protocol": 5}]
    text = [{"id": "vlen-utf8"}]
    for number, filters in enumerate((unpickle, unpickle + text, text + unpickle)):
        for name in ("label", "sample"):
            arrays = image() | {name: label(dtype="|O", filters=filters, **trapped)["label"]}
            yield case(f"pickle-{number}-{name}.zarr", arrays, None)
    packer = {"compressor": {"id": "pickle"}}
    yield case("pickle-compressor.zarr", image(**packer, **trapped) | label(), None)
    yield case("unknown.zarr", image(compressor={"id": "os.system"}) | label(), None)
    yield case("exbibytes.zarr", image(shape=[2**60, 5, 7]) | label(shape=[2**60]), None)
    yield case("exbibyte-chunk.zarr", image(chunks=[2**60, 5, 7], data=None) | label(), 8)
    yield case("negative.zarr", image(shape=[-8, 5, 7]) | label(), None)
    yield case("shape-is-text.zarr", image(shape="many") | label(), None)
    for name, text_of in {
        "garbage": "\x1b[2J{",
        "nothing": "",
        "list": "[]",
        "deep": "[" * 100_000,
        "format": '{"zarr_format": 9, "node_type": "group"}',
        "array": '{"zarr_format": 3, "node_type": "array"}',
    }.items():
        folder = root / f"json-{name}.zarr"
        folder.mkdir()
        (folder / "zarr.json").write_text(text_of)
        yield Case(folder.name, str(folder), error=".")
    for name, data in {
        "nothing.nc": b"",
        "text.nc": b"no array" * 99,
        "hdf.h5": b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 9,
        "classic.nc": b"CDF\1" + b"\xff" * 99,
    }.items():
        (root / name).write_bytes(data)
        yield Case(name, str(root / name), error=".")


# Job files ---------------------------------------------------------------------------------------


def job_cases(root: Path) -> Iterator[Case]:
    """Write job files whose images are hostile, or honest and named strangely."""
    folder = root / "set"
    for path, data in goods(4).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (root / "codes.npz").write_bytes(zip_of(arrays()))
    html = ["<script>alert(1)</script>", "\x1b[2J\n'\"&"]
    images = {"source": str(root / "codes.npz")}
    many = [f"class {number}" for number in range(10_000)]
    for name, stored, error, content in (
        ("html", 8, None, {**images, "class_names": html}),
        ("many", 8, None, {**images, "class_names": many}),
        ("twice", None, "two classes named|twice|distinct", {**images, "class_names": ["a", "a"]}),
        ("one", None, "label", {**images, "class_names": ["a"]}),
        (
            "folder",
            None,
            "cannot be used|can be used",
            {"source": str(folder), "class_names": html},
        ),
        ("nowhere", None, "nothing matches", {"source": "\x1b[2J<b>"}),
        ("pattern", None, "more than", {"source": "x{0..1000000}"}),
        ("deep-pattern", None, "braces", {"source": "{" * 5_000 + "}" * 5_000}),
        ("url", None, ".", {"source": "nothing://\x1b[2J"}),
        ("both", None, "not both", {**images, "splits": {"a": "b"}}),
        ("split", None, "split", {"splits": {"../x": str(folder / "train")}}),
        ("key", None, "\\bimports?\\b|unknown|expected", {**images, "imports": "os"}),
        ("store", None, ".", {**images, "resize": [2**31, 1]}),
    ):
        path = root / f"job-{name}.yml"
        job = {"images": content}
        path.write_text(json.dumps(job))
        yield Case(path.name, str(path), stored, error=error)
    for name, text in {
        "tag": "images: !!python/object/apply:os.system [exit]",
        "laughs": "a: &a [x, x]\n" + "".join(
            f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
            for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        ) + "images: *j\n",
        "deep": "images: " + "[" * 1_000,
        "nothing": "",
        "bytes": "images: \x00",
    }.items():  # fmt: skip
        path = root / f"yaml-{name}.yml"
        path.write_text(text)
        yield Case(path.name, str(path), error=".")


def write_containers(root: Path, trap: Path) -> list[Case]:
    """Write all containers below `root`; what makes the folder `trap` was run as code."""
    found: list[Case] = []
    for name, make in {
        "archives": archive_cases,
        "numpy": lambda folder: numpy_cases(folder, trap),
        "parquet": parquet_cases,
        "lists": list_cases,
        "idx": idx_cases,
        "zarr": lambda folder: zarr_cases(folder, trap),
        "jobs": job_cases,
    }.items():
        (root / name).mkdir(parents=True)
        found += make(root / name)
    return found


# Ingesting ---------------------------------------------------------------------------------------


MOST_ADDRESSES = 2**33  # of the process, so that a failing case does not harm others


def peak_bytes() -> int:
    """Return the most memory this process held; not what the one that started it did."""
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def ingest_all(folder: Path) -> None:
    """Ingest the cases of `cases.json`, and write what became of them into `outcomes.json`."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    outcomes = {}
    cases = json.loads((folder / "cases.json").read_text())
    for case in cases:
        (folder / "now").write_text(case["name"])  # what a crash was at
        outcomes[case["name"]] = attempt(case, folder / "stores" / f"{case['name']}.zarr")
    found = {
        "outcomes": outcomes,
        "peak": peak_bytes(),
        "heavy": sorted({"torch", "torchvision"} & set(sys.modules)),
    }
    (folder / "outcomes.json").write_text(json.dumps(found))


def attempt(case: dict[str, Any], store: Path) -> dict[str, Any]:
    """Ingest one case by the command line; then, where samples are bad, by the API without them."""
    from pipeline import ingest
    from pipeline.config.job_settings import load_images
    from pipeline.core.errors import PixsimError

    outcome = by_command_line(case, store)
    bad = store / "bad_samples.csv"
    try:
        if bad.exists():
            with bad.open(encoding="utf-8", newline="") as file:
                outcome["listed"] = list(csv.DictReader(file))
            is_job = case["source"].endswith(".yml")
            images: Any = {"source": case["source"], **case["settings"], "max_bad": "100%"}
            images = load_images(Path(case["source"]), ["max_bad=100%"]) if is_job else images
            ingest(images, store)
        if "listed" in outcome or outcome.get("code") == 0:
            outcome["store"] = stored(store)
    except PixsimError as error:
        outcome["error"] = str(error)
    except BaseException:
        outcome["crash"] = traceback.format_exc()
    return outcome


def by_command_line(case: dict[str, Any], store: Path) -> dict[str, Any]:
    from pipeline.cli import main

    settings = [f"{key}={json.dumps(value)}" for key, value in case["settings"].items()]
    words = [
        "ingest",
        case["source"],
        "-o",
        str(store),
        *(["--set", *settings] if settings else []),
    ]
    out, err = io.StringIO(), io.StringIO()
    outcome: dict[str, Any] = {}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            outcome["code"] = main(words)
        except BaseException:
            outcome["crash"] = traceback.format_exc()
    return outcome | {"out": out.getvalue(), "err": err.getvalue()}


def stored(path: Path) -> dict[str, Any]:
    """Return what a store holds: its digest and the samples by status."""
    content = json.loads((path / "manifest.json").read_text())
    table = pq.read_table(path / "samples.parquet", columns=["status"])
    statuses = table["status"].to_pylist()
    counts = {status: statuses.count(status) for status in STATUSES if status in statuses}
    return {"digest": content["digest"], "statuses": counts}


if __name__ == "__main__":
    ingest_all(Path(sys.argv[1]))
