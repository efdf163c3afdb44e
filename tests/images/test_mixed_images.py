"""Images that are not alike: of many formats, sizes, modes and depths; each cure is followed."""

from __future__ import annotations

import io
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import write_tar
from jobs_for_tests import Heard
from PIL import Image

import pipeline
from pipeline.config.job_settings import make_images
from pipeline.core.errors import BadSamplesError, ConfigError, ShapeError, SourceError
from pipeline.sources.arrays import from_arrays
from pipeline.sources.file_names import IMAGE_SUFFIXES

SIDE = 16
COLOUR = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
GREY, WIDE = COLOUR[..., 0], COLOUR[..., 0].astype(np.uint16) * 257


def image_of(kind, size=(SIDE, SIDE)):
    """Return an image of a kind, some of whose names are Pillow's modes."""
    if kind == "grey 16":
        found = Image.fromarray(WIDE)
        return found if size == (SIDE, SIDE) else Image.fromarray(WIDE[: size[0], : size[1]])
    found = Image.fromarray(COLOUR)
    found = found.quantize(16) if kind == "P" else found.convert(kind)
    return found.resize(size[::-1]) if size != (SIDE, SIDE) else found


def save(path, image, kind=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, kind, **options)


# One set of several kinds ----------------------------------------------------------------------


def cured(settings, error):
    """Return settings with those that an error says would bring all images to one."""
    (wanted,) = re.findall(r"set (.*) to bring all to one", error.rows[0][4])
    found = dict(settings)
    for part in wanted.split(", "):
        if part == "resize (or crop and pad)":
            found["resize"] = [8, 8]
        else:
            key, value = part.split(": ")
            found[key] = int(value) if value.isdigit() else value
    return found


@pytest.mark.parametrize(
    ("most", "odd", "suffix", "words"),
    [
        ("RGB", "L", "png", "grey, 8 bits, expected 16 x 16, RGB, 8 bits"),
        ("RGB", "1", "png", "grey, 8 bits, expected 16 x 16, RGB, 8 bits"),
        ("RGB", "LA", "png", "grey, 8 bits, expected 16 x 16, RGB, 8 bits"),
        ("RGB", "L", "jpg", "grey, 8 bits, expected 16 x 16, RGB, 8 bits"),
        ("RGB", "grey 16", "png", "grey, 16 bits, expected 16 x 16, RGB, 8 bits"),
        ("L", "grey 16", "png", "grey, 16 bits, expected 16 x 16, grey, 8 bits"),
        ("L", "grey 16", "tif", "grey, 16 bits, expected 16 x 16, grey, 8 bits"),
        ("L", "RGB", "png", "RGB, 8 bits, expected 16 x 16, grey, 8 bits"),
        ("L", "P", "png", "RGB, 8 bits, expected 16 x 16, grey, 8 bits"),
        ("L", "RGBA", "png", "RGB, 8 bits, expected 16 x 16, grey, 8 bits"),
        ("L", "CMYK", "jpg", "RGB, 8 bits, expected 16 x 16, grey, 8 bits"),
        ("L", "L", "gif", "RGB, 8 bits, expected 16 x 16, grey, 8 bits"),
        ("grey 16", "L", "png", "grey, 8 bits, expected 16 x 16, grey, 16 bits"),
        ("grey 16", "RGB", "bmp", "RGB, 8 bits, expected 16 x 16, grey, 16 bits"),
    ],
)
def test_the_message_names_what_differs_and_its_cure_works(tmp_path, most, odd, suffix, words):
    for number in range(3):
        save(tmp_path / "set" / "cat" / f"{number}.png", image_of(most))
    save(tmp_path / "set" / "dog" / f"odd.{suffix}", image_of(odd))
    images = {"source": str(tmp_path / "set")}
    with pytest.raises(BadSamplesError, match=words) as refused:
        pipeline.ingest(images, tmp_path / "refused.zarr")
    path = pipeline.ingest(cured(images, refused.value), tmp_path / "cured.zarr")
    found = pipeline.open_images(path, "train")
    assert found.sizes["sample"] == 4
    assert found["image"].dtype == (np.uint16 if most == "grey 16" else np.uint8)


@pytest.mark.parametrize("size", [(16, 17), (8, 16), (9, 30)])
@pytest.mark.parametrize("kind", ["RGB", "L", "grey 16"])
def test_other_sizes_are_named_and_a_resize_cures_them(tmp_path, size, kind):
    if kind == "grey 16":
        size = (size[0], 15)
    for number in range(3):
        save(tmp_path / "set" / "cat" / f"{number}.png", image_of("RGB"))
    save(tmp_path / "set" / "dog" / "odd.png", image_of(kind, size))
    images = {"source": str(tmp_path / "set")}
    words = rf"is {size[0]} x {size[1]}, .*, expected 16 x 16, RGB, 8 bits \(height x width\)"
    with pytest.raises(BadSamplesError, match=words) as refused:
        pipeline.ingest(images, tmp_path / "refused.zarr")
    path = pipeline.ingest(cured(images, refused.value), tmp_path / "cured.zarr")
    assert pipeline.open_images(path, "train")["image"].shape == (4, 8, 8, 3)


def test_a_depth_is_recorded_only_where_it_is_asked_for(tmp_path):
    for number in range(2):
        save(tmp_path / "set" / "cat" / f"{number}.png", image_of("grey 16"))
    stores = {}
    for depth in (None, 8, 16):
        images = {"source": str(tmp_path / "set")} | ({} if depth is None else {"depth": depth})
        stores[depth] = pipeline.ingest(images, tmp_path / f"{depth}.zarr")
    told = {depth: pipeline.describe(path) for depth, path in stores.items()}
    assert told[None]["provenance"]["conversion"] == {}
    assert told[8]["provenance"]["conversion"]["depth"]["to"] == 8
    assert told[16]["digest"] == told[None]["digest"]
    found = pipeline.open_images(stores[8], "train")
    assert np.array_equal(found["image"][0], GREY)
    assert found.attrs["full_scale"] == 255


@pytest.mark.parametrize("value", ["depth=8", "depth=16"])
def test_a_depth_is_given_on_the_command_line(value):
    assert f"depth={make_images('digits', [value]).depth}" == value


def test_another_depth_is_refused():
    with pytest.raises(ConfigError, match="depth"):
        pipeline.ingest({"source": "digits", "depth": 12}, "never.zarr")


def test_a_crop_that_no_image_has_room_for_is_refused_and_its_cure_works(tmp_path):
    for number in range(2):
        save(tmp_path / "set" / "cat" / f"{number}.png", image_of("RGB"))
    images = {"source": str(tmp_path / "set"), "crop": [32, 16]}
    words = r"crop is 32 x 16 \(height x width\), larger than an image of 16 x 16.*pad: \[32, 16\]"
    with pytest.raises(SourceError, match=words):
        pipeline.ingest(images, tmp_path / "refused.zarr")
    path = pipeline.ingest(images | {"pad": [32, 16]}, tmp_path / "cured.zarr")
    assert pipeline.open_images(path, "train")["image"].shape == (2, 32, 16, 3)


def test_a_crop_that_one_image_has_no_room_for_is_of_that_image(tmp_path):
    for number in range(3):
        save(tmp_path / "set" / "cat" / f"{number}.png", image_of("RGB"))
    save(tmp_path / "set" / "dog" / "small.png", image_of("RGB", (7, 16)))
    images = {"source": str(tmp_path / "set"), "crop": [8, 8]}
    with pytest.raises(BadSamplesError, match="larger than an image of 7 x 16") as refused:
        pipeline.ingest(images, tmp_path / "refused.zarr")
    assert [row[3] for row in refused.value.rows] == ["wrong size"]
    path = pipeline.ingest(images | {"pad": [8, 8]}, tmp_path / "cured.zarr")
    assert pipeline.open_images(path, "train")["image"].shape == (4, 8, 8, 3)


# Arrays ----------------------------------------------------------------------------------------


def npz(path, dtype, channels=3, **other):
    images = np.stack([COLOUR[..., :channels]] * 4).astype(dtype)
    arrays = {"x_train": images, "y_train": np.array([0, 1, 0, 1])} | other
    np.savez(path, **arrays)
    return {"source": str(path)}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "words", "cure", "shape"),
    [
        ({"crop": [32, 32]}, "split 'train': crop is 32 x 32", {"pad": [32, 32]}, (32, 32)),
        ({"crop": [32, 8]}, "split 'train': crop is 32 x 8", {"pad": [32, 8]}, (32, 8)),
        ({"crop": [20, 20]}, "larger than an image of 16 x 16", {"resize": [20, 20]}, (20, 20)),
        ({"pad": [8, 8]}, "split 'train': pad is 8 x 8", {"crop": [8, 8]}, (8, 8)),
        ({"pad": [32, 8]}, "smaller than an image of 16 x 16", {"crop": [16, 8]}, (32, 8)),
    ],
)
def test_a_conversion_that_would_do_nothing_is_refused_and_its_cure_works(
    tmp_path, dtype, channels, options, words, cure, shape
):
    images = npz(tmp_path / "a.npz", dtype, channels) | options
    with pytest.raises(ShapeError, match=words):
        pipeline.ingest(images, tmp_path / "refused.zarr")
    path = pipeline.ingest(images | cure, tmp_path / "cured.zarr")
    assert pipeline.open_images(path, "train")["image"].shape == (4, *shape, channels)


@pytest.mark.parametrize(
    ("dtype", "channels", "options", "words"),
    [
        ("uint8", 2, {"mode": "RGB"}, "2 channels, expected 1 or 3 for mode RGB"),
        ("uint8", 2, {"mode": "L"}, "2 channels, expected 1 or 3 for mode L"),
        ("float32", 3, {"depth": 8}, "these are float32; leave the depth out"),
        ("bool", 3, {"depth": 8}, "whose full scale is 255, it is 1 here; leave the depth out"),
        ("uint8", 3, {"value_range": [0, 1]}, "is for images of floats, these are uint8; leave it"),
        ("uint16", 1, {"value_range": [0, 1]}, "is for images of floats, these are uint16"),
        ("uint8", 3, {"resize": 0}, "'resize' is 0"),
        ("uint8", 3, {"resize": [0, 4]}, "'resize' is .0, 4."),
        ("uint8", 3, {"crop": [8, 8], "pad": [4, 4]}, "no side of pad below that of crop"),
    ],
)
def test_what_cannot_be_done_with_arrays_is_refused(tmp_path, dtype, channels, options, words):
    images = npz(tmp_path / "a.npz", dtype, channels)
    with pytest.raises((ConfigError, ShapeError), match=words):
        pipeline.ingest(images | options, tmp_path / "refused.zarr")
    assert not (tmp_path / "refused.zarr").exists()
    pipeline.ingest(images, tmp_path / "cured.zarr")  # left out, as it is told


@pytest.mark.parametrize("depth", [8, 16])
def test_splits_of_two_depths_are_refused_and_a_depth_brings_them_together(tmp_path, depth):
    wide = np.stack([COLOUR] * 2).astype(np.uint16) * 257
    images = npz(tmp_path / "a.npz", "uint8", x_test=wide, y_test=np.array([0, 1]))
    with pytest.raises(ShapeError, match=r"'train' 8, 'test' 16 bits.*depth: 8 or depth: 16"):
        pipeline.ingest(images, tmp_path / "refused.zarr")
    path = pipeline.ingest(images | {"depth": depth}, tmp_path / "cured.zarr")
    train, test = (pipeline.open_images(path, split) for split in ("train", "test"))
    assert np.array_equal(train["image"][0], test["image"][0])
    assert train.attrs["full_scale"] == test.attrs["full_scale"] == 2**depth - 1


def test_two_types_on_one_scale_are_what_was_said(tmp_path):
    arrays = {
        "train": (np.stack([GREY] * 2), np.array([0, 1])),
        "test": (np.stack([GREY] * 2).astype(np.uint16), np.array([0, 1])),
    }
    path = pipeline.ingest(from_arrays(arrays, full_scale=255), tmp_path / "s.zarr")
    assert pipeline.open_images(path, "test").attrs["full_scale"] == 255


@pytest.mark.parametrize("value", [0.5, 0.0, 1.5])
def test_floats_of_one_value_keep_it(tmp_path, value):
    images = np.full((4, 4, 4), value, np.float32)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=np.array([0, 1, 0, 1]))
    path = pipeline.ingest(str(tmp_path / "a.npz"), tmp_path / "s.zarr")
    import xarray as xr

    assert np.array_equal(xr.open_zarr(path, group="train")["image"], images)


# Formats ---------------------------------------------------------------------------------------

FILES = {
    "a.jpe": ("JPEG", {}), "b.jfif": ("JPEG", {}), "c.gif": ("GIF", {}), "d.avif": ("AVIF", {}),
    "e.ppm": ("PPM", {}), "f.pnm": ("PPM", {}), "g.jp2": ("JPEG2000", {}), "h.apng": ("PNG", {}),
    "i.J2K": ("JPEG2000", {"no_jp2": True}), "j.WebP": ("WEBP", {}), "k.Tif": ("TIFF", {}),
    "l.bmp": ("BMP", {}), "m.qoi": ("QOI", {}), "n.sgi": ("SGI", {}), "o.mpo": ("JPEG", {}),
}  # fmt: skip


def bytes_of(kind, **options):
    stream = io.BytesIO()
    Image.fromarray(COLOUR).save(stream, kind, **options)
    return stream.getvalue()


def as_folder(root, files):
    for name, data in files.items():
        path = root / "set" / "cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {"source": str(root / "set")}


def as_tar(root, files):
    write_tar(root / "set.tar", [(f"cat/{name}", data) for name, data in files.items()])
    return {"source": str(root / "set.tar")}


def as_parquet(root, files):
    table = pa.table({"image": list(files.values()), "label": [0] * len(files)})
    pq.write_table(table, root / "set.parquet")
    return {"source": str(root / "set.parquet")}


def as_list(root, files):
    as_folder(root, files)
    lines = "".join(f"set/cat/{name},cat\n" for name in files)
    (root / "set.csv").write_text(f"path,label\n{lines}")
    return {"source": str(root / "set.csv")}


@pytest.mark.parametrize("kind", [as_folder, as_tar, as_parquet, as_list])
def test_every_format_is_read_from_every_kind_of_source(tmp_path, kind):
    files = {name: bytes_of(made, **options) for name, (made, options) in FILES.items()}
    assert {f".{name.rpartition('.')[2].lower()}" for name in files} <= set(IMAGE_SUFFIXES)
    path = pipeline.ingest(kind(tmp_path, files), tmp_path / "s.zarr")
    found = pipeline.open_images(path, "train")["image"].values
    assert len(found) == len(files)
    for image, data in zip(found, files.values(), strict=True):
        with Image.open(io.BytesIO(data)) as opened:
            assert np.array_equal(image, np.asarray(opened.convert("RGB")))


@pytest.mark.parametrize("suffix", [".heic", ".svg", ".pdf", ".eps", ".txt", ".json", ".h5"])
def test_what_is_no_image_by_its_suffix_is_left_out(suffix):
    assert suffix not in IMAGE_SUFFIXES


def test_content_decides_and_not_the_suffix(tmp_path):
    files = {"a.png": bytes_of("GIF"), "b.gif": bytes_of("PNG"), "c.jpg": bytes_of("AVIF")}
    path = pipeline.ingest(as_folder(tmp_path, files), tmp_path / "s.zarr")
    assert pipeline.open_images(path, "train").sizes["sample"] == 3


@pytest.mark.parametrize("kind", [as_folder, as_tar, as_parquet])
def test_of_several_frames_the_first_is_taken_and_that_is_said(tmp_path, kind):
    frames = [Image.fromarray(COLOUR // part) for part in (1, 2, 3)]
    files = {"0.png": bytes_of("PNG")}
    for made in ("GIF", "TIFF", "WEBP"):
        files[f"{made}.{made.lower()}"] = bytes_of(made, save_all=True, append_images=frames[1:])
    heard = Heard()
    images = kind(tmp_path, files)
    path = pipeline.ingest(images, tmp_path / "s.zarr", shard_samples=2, reporter=heard)
    said = "of 3 images the first of several frames was taken: see samples.parquet"
    assert said in heard.lines
    table = pq.read_table(path / "samples.parquet").to_pylist()
    assert [row["status"] for row in table] == ["ok"] * 4
    assert [bool(row["detail"]) for row in table].count(True) == 3
    assert {row["detail"] for row in table} == {None, "the first of several frames or pages"}


def test_frames_are_said_where_bad_samples_were_left_out(tmp_path):
    frames = [Image.fromarray(COLOUR // part) for part in (1, 2)]
    animated = bytes_of("GIF", save_all=True, append_images=frames)
    files = {"a.gif": animated, "b.gif": animated[:200], "c.png": bytes_of("PNG")}
    heard = Heard()
    images = as_folder(tmp_path, files) | {"max_bad": 1}
    path = pipeline.ingest(images, tmp_path / "s.zarr", reporter=heard)
    assert any("of 1 images the first" in line for line in heard.lines)
    rows = pq.read_table(path / "samples.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["ok", "truncated", "ok"]


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "JPEG2000", "PPM", "QOI", "SGI"])
def test_a_truncated_file_of_a_new_format_is_a_bad_sample(tmp_path, kind):
    data = bytes_of(kind)
    files = {"a.png": bytes_of("PNG"), "b.jpg": data[: len(data) * 2 // 3]}
    with pytest.raises(BadSamplesError, match="truncated"):
        pipeline.ingest(as_folder(tmp_path, files), tmp_path / "s.zarr")


@pytest.mark.parametrize(("key", "most"), [("max_pixels", SIDE * SIDE - 1), ("max_bytes", 100)])
def test_the_limits_hold_for_new_formats(tmp_path, key, most):
    images = as_folder(tmp_path, {"a.gif": bytes_of("GIF"), "b.ppm": bytes_of("PPM")})
    with pytest.raises(SourceError, match=key):
        pipeline.ingest(images | {key: most}, tmp_path / "s.zarr")
