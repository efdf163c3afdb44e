"""Image files that tests make, in folders, archives and layouts, and what is read of them."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile

import fsspec
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.core.blocks import Problem
from pipeline.core.errors import InputError, PixsimError
from pipeline.core.paths import locate
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import Decoded, decode
from pipeline.sources.registry import open_source, release


def png(pixels):
    """Return pixels as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def grey(value):
    """Return a small PNG of one grey."""
    return png(np.full((6, 4), value, np.uint8))


def put(path, content):
    """Write a file of bytes or text, and the folders that it lies in; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def members(files, prefix=""):
    """Return files, as of `make_files`, as members of an archive: pairs of a name and bytes."""
    return [(prefix + path, data) for path, (_, data) in files.items()]


def make_files(splits=("train", "valid"), classes=("3", "7"), count=5, shape=(6, 4), seed=0):
    """Return `SPLIT/CLASS/FILE` -> (pixels, PNG) of random images, in the order of the names."""
    rng = np.random.default_rng(seed)
    paths = [f"{s}/{c}/{n}.png" for s in splits for c in classes for n in range(count)]
    pixels = {path: rng.integers(0, 256, shape, np.uint8) for path in sorted(paths)}
    return {path: (image, png(image)) for path, image in pixels.items()}


def write_files(root, files):
    for path, (_, data) in files.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return root


def write_tar(path, members, mode="w"):
    """Write an archive of (name, bytes) pairs."""
    with path.open("wb") as file, tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, members, method=zipfile.ZIP_DEFLATED):
    """Write a zip archive of (name, bytes) pairs, into a file or a stream."""
    with contextlib.ExitStack() as stack:
        file = path if isinstance(path, io.BytesIO) else stack.enter_context(path.open("wb"))
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return path


def by_split(files):
    found = {}
    for path, (pixels, _) in files.items():
        split, name, _ = path.split("/")
        found.setdefault(split, []).append((name, pixels))
    return found


def everything(source):
    """Return for each split images, class names of the labels, and problems."""
    found = {}
    for split, info in source.splits().items():
        block = source.read(split, 0, info.count)
        names = [source.class_names[code] if code >= 0 else None for code in block.labels]
        assert (len(block.origins), len(block.images)) == (info.count, info.count)
        assert (block.labels.dtype, block.images.dtype) == (np.int32, info.dtype)
        found[split] = (block.images, names, block)
    return found


def assert_holds(source, files):
    """Compare a source with the files it was made of."""
    found, expected = everything(source), by_split(files)
    assert list(found) == list(expected)
    for split, pairs in expected.items():
        images, names, block = found[split]
        assert block.problems == {}
        assert names == [name for name, _ in pairs]
        np.testing.assert_array_equal(images, np.stack([pixels for _, pixels in pairs]))
        height, width = pairs[0][1].shape[:2]
        assert block.sizes.tolist() == [[width, height]] * len(pairs)


@pytest.fixture
def remote():
    """An empty folder behind a URL."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield locate("memory://bucket/set")
    files.store.clear()


def make_folder(path, count=30, seed=0, bad=()):
    """Write PNG files in train/CLASS and test/CLASS; some of them are no pictures."""
    rng = np.random.default_rng(seed)
    for split, images in {"train": count, "test": count // 2}.items():
        for number in range(images):
            file = path / split / f"class{number % 3}" / f"{number:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8)).save(file)
            if split == "train" and number in bad:
                file.write_bytes(b"no picture")
    return path


AS_IT_IS = Conversion()


def pixels_of(data, conversion=AS_IT_IS, expected=None):
    found = decode(data, conversion, expected)
    assert isinstance(found, Decoded), found
    return found.image


def problem_of(data, conversion=AS_IT_IS, expected=None):
    found = decode(data, conversion, expected)
    assert isinstance(found, Problem), found
    return found


def by_pillow(data, mode):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


# every image has other pixels, so that which one was taken can be told
_numbers = iter(range(10**9))


def image():
    return png(np.full((6, 4), next(_numbers) % 256, np.uint8))


def make(root, *paths):
    """Write images, and texts where the name is no image's: `NAME`, or `NAME=CONTENT`."""
    for path in paths:
        name, equals, content = path.partition("=")
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        text = equals or not name.lower().endswith((".png", ".jpeg"))
        place.write_bytes(content.encode() if text else image())
    return root


def held(images):
    """Return split -> class (None: no label) -> how many, and the remarks."""
    source = open_source(images if isinstance(images, dict) else str(images))
    found = {}
    for split, info in source.splits().items():
        block = source.read(split, 0, info.count)
        assert block.problems == {}
        names = [source.class_names[code] if code >= 0 else None for code in block.labels]
        found[split] = {name: names.count(name) for name in dict.fromkeys(names)}
    remarks = source.remarks
    release(source)
    return found, list(remarks)


def refusal(images):
    with pytest.raises(PixsimError) as error:
        held(images)
    assert isinstance(error.value, InputError)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def classes(*names, count=2):
    return [f"{name}/{number}.png" for name in names for number in range(count)]


TWO = {"cat": 2, "dog": 2}
LABELLED = [f"train/{path}" for path in classes("cat", "dog")]
