"""What is damaged is named and made again, and ends with the digest that it had."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

import pipeline

SHARD = 8


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


@pytest.fixture
def images(tmp_path):
    """A store with bad samples left out, duplicates, and samples appended."""
    folder = make_folder(tmp_path / "pictures", bad=(4, 11))
    copy = folder / "train/class0/000.png"
    shutil.copyfile(copy, folder / "train/class1/900.png")
    more = make_folder(tmp_path / "more", 13, seed=1)
    store = pipeline.ingest(str(folder), tmp_path / "images.zarr", SHARD, max_bad=2)
    return pipeline.ingest(str(more), store, SHARD, append=True)


def run(images, path):
    settings = {"name": "job", "images": str(images), "output": str(path)}
    return pipeline.run_job(pipeline.make_job(settings)).path


@pytest.fixture
def done(images, tmp_path):
    return run(images, tmp_path / "run")


def all_files(path):
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())


def contents(path):
    return {name: (path / name).read_bytes() for name in all_files(path)}


def flip(file, place=0.5):
    content = bytearray(file.read_bytes())
    content[min(int(len(content) * place), len(content) - 1)] ^= 4
    file.write_bytes(content)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-3])


def append_garbage(file):
    file.write_bytes(file.read_bytes() + b"\0\0\0\0")


def delete(file):
    file.unlink()


def replace(file):
    file.write_bytes(b"something else")


DAMAGES = [flip, truncate, append_garbage, delete, replace]


def test_what_is_whole_is_found_whole(images, done):
    assert pipeline.verify(images) == []
    assert pipeline.verify(done, repair=True) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_an_image_set_is_named_and_mended(images, damage):
    before = contents(images)
    digest = pipeline.digest(images)
    for name in all_files(images):
        damage(images / name)
        assert [found.file for found in pipeline.verify(images)] == [name]
        assert name in [found.file for found in pipeline.verify(images, repair=True)]
        assert pipeline.digest(images) == digest
        assert contents(images) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_of_a_run_is_named_and_mended(done, damage):
    digest, names = pipeline.digest(done), all_files(done)
    for name in names:
        damage(done / name)
        assert [found.file for found in pipeline.verify(done)] == [name]
        assert name in [found.file for found in pipeline.verify(done, repair=True)]
        assert pipeline.digest(done) == digest
        assert pipeline.verify(done) == []
        assert all_files(done) == names
