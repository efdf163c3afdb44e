"""torchvision's ImageFolder: files of images that are decoded, converted, or refused one by one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.core.blocks import TRUNCATED, UNREADABLE, WRONG_SIZE
from pipeline.core.errors import ConfigError
from pipeline.images.conversion import Conversion
from pipeline.images.decoders import Decoders
from pipeline.sources.torchvision import open_torchvision


def save_image(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 8, 3), np.uint8)
    for number, image in enumerate(images):
        save_image(tmp_path / "set" / ("cat" if number < 2 else "dog") / f"{number}.png", image)
    return tmp_path / "set", images


def test_a_folder_of_images_is_one_split(folder):
    root, images = folder
    source = open_torchvision("ImageFolder", [root], {})
    block = source.read("train", 0, 5)
    np.testing.assert_array_equal(block.images, images)
    assert block.labels.tolist() == [0, 0, 1, 1, 1]
    assert source.class_names == ("cat", "dog")
    assert source.read("train", 3, 3).images.shape == (0, 6, 8, 3)
    again = open_torchvision("ImageFolder", [], {"root": str(root)})
    assert again.provenance == source.provenance
    assert str(root) not in str(source.provenance)
    save_image(root / "dog" / "4.png", images[0])
    assert open_torchvision("ImageFolder", [root]).provenance != source.provenance


def test_images_that_cannot_be_used_are_problems(folder):
    root, images = folder
    save_image(root / "cat" / "1.png", images[1][:4])
    (root / "dog" / "2.png").write_bytes(b"no image")
    good = (root / "dog" / "3.png").read_bytes()
    (root / "dog" / "3.png").write_bytes(good[: len(good) // 2])
    source = open_torchvision("ImageFolder", [root])
    block = source.read("train", 0, 5)
    assert {place: p.status for place, p in block.problems.items()} == {
        1: WRONG_SIZE,
        2: UNREADABLE,
        3: TRUNCATED,
    }
    found = block.problems[1]
    assert (found.width, found.height) == (8, 4)
    assert "is 4 x 8, RGB, 8 bits, expected 6 x 8, RGB, 8 bits" in found.detail
    assert block.labels.tolist() == [0, -1, -1, -1, 1]
    assert not block.images[1:4].any()
    np.testing.assert_array_equal(block.images[[0, 4]], images[[0, 4]])


def test_a_conversion_brings_images_to_one_shape(folder):
    root, images = folder
    save_image(root / "cat" / "1.png", images[1][:4])
    conversion = Conversion(crop=(4, 4))
    source = open_torchvision("ImageFolder", [root], conversion=conversion)
    assert source.splits()["train"].shape == (4, 4, 3)
    block = source.read("train", 0, 5)
    assert block.problems == {}
    np.testing.assert_array_equal(block.images[0], images[0][1:5, 2:6])
    np.testing.assert_array_equal(block.images[1], images[1][:4, 2:6])
    assert block.sizes.tolist() == [[8, 6], [8, 4], [8, 6], [8, 6], [8, 6]]
    assert source.provenance["conversion"] == conversion.describe()


def test_a_depth_is_that_of_what_is_read(folder):
    root, images = folder
    source = open_torchvision("ImageFolder", [root], conversion=Conversion(depth=16))
    assert (source.splits()["train"].dtype, source.full_scale) == ("uint16", 65535)
    np.testing.assert_array_equal(source.read("train", 0, 1).images[0], images[0] * np.uint16(257))


def test_what_decodes_its_files_is_recorded_and_required(folder):
    root, _ = folder
    source = open_torchvision("ImageFolder", [root])
    assert source.provenance["decoders"]["other"].startswith("Pillow ")
    other = dataclasses.replace(source, decoders=Decoders("Pillow 1.0", "Pillow 1.0"))
    with pytest.raises(ConfigError, match=r"decoded by Pillow 1\.0, as this ingest was begun"):
        other.read("train", 0, 1)


@pytest.mark.parametrize("step", [None, "1"])
def test_what_decodes_the_rest_of_an_ingest_is_what_it_was_begun_with(
    folder, tmp_path, monkeypatch, capsys, step
):
    monkeypatch.chdir(tmp_path)
    images = {"source": "torchvision:ImageFolder", "options": {"root": str(folder[0])}, "shard": 2}
    Path("job.yml").write_text(json.dumps({"images": {**images, "store": "s.zarr"}}))
    assert main(["ingest", "job.yml", "--only", "plan"]) == 0
    assert main(["ingest", "job.yml", "--only", "0"]) == 0
    plan = Path("s.zarr/.work/plan.json")
    assert f"Pillow {PIL.__version__}" in plan.read_text()
    plan.write_text(plan.read_text().replace(f"Pillow {PIL.__version__}", "Pillow 1.0"))
    assert main(["ingest", "job.yml", *([] if step is None else ["--only", step])]) == 2
    assert "decoded by Pillow 1.0" in capsys.readouterr().err
