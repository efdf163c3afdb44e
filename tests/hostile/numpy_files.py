"""NumPy's files: pickles, headers that lie, archives that overlap or inflate."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hostile.cases import Case
from hostile.making import patched, picture, zeros_compressed


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
