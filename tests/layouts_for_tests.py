"""Layouts of image files, as people have them, and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest
from image_files_for_tests import png

from pipeline.core.errors import InputError, PixsimError
from pipeline.sources.registry import open_source, release

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
