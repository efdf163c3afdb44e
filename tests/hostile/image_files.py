"""Image files as nobody should have to read them, and the statuses that they may end with."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from hostile.making import (
    END,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    jpeg_said,
    orientation,
    patched,
    picture,
    png_of,
    rows_of,
    saved,
    small_tiff,
    start,
    tiff_of,
    with_exif,
    zeros_compressed,
)
from pipeline.core.blocks import OK, TOO_LARGE, TRUNCATED, UNREADABLE

ANY = (OK, UNREADABLE, TRUNCATED)
BAD = (UNREADABLE, TRUNCATED)


class Hostile(NamedTuple):
    """A file, and the statuses of which it must end with one."""

    name: str
    data: bytes
    statuses: tuple[int, ...]


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
    wide = io.BytesIO()
    tifffile.imwrite(wide, picture(dtype="uint16"), photometric="rgb", compression="zlib")
    yield Hostile("tiff-16-bit-3", wide.getvalue(), (OK,))
    floats = Image.fromarray(picture(channels=1).astype(np.float32))
    yield Hostile("tiff-float", saved(floats, "TIFF"), (OK,))
    whole = Image.fromarray(picture(channels=1).astype(np.int32))
    yield Hostile("tiff-32-bit", saved(whole, "TIFF"), (UNREADABLE,))


@cache
def hostile_files() -> tuple[Hostile, ...]:
    """Return all of them."""
    makers = (bombs, lies, truncated, others, structures, unusual)
    return tuple(file for make in makers for file in make())
