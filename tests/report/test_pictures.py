"""Pictures of images: what is drawn where, and as what kind of file."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

import pipeline
from pipeline.core.errors import InputError, StoreError
from pipeline.report import description, pictures
from pipeline.sources.arrays import from_arrays

INK, PAPER = pictures._INK, pictures._PAPER


def make_store(path, labels, names, shape=(6, 6), dtype=np.uint8):
    """Store images of one value each: the sample index plus one."""
    labels = np.asarray(labels, np.int32)
    values = np.arange(1, len(labels) + 1, dtype=dtype)
    images = np.broadcast_to(values.reshape(-1, *(1,) * len(shape)), (len(labels), *shape))
    source = from_arrays({"train": (np.ascontiguousarray(images), labels)}, names)
    return pipeline.ingest(source, path)


def cells(picture, columns, cell=pictures.CELL):
    """Return the colour in the middle of each image of a grid, None where there is none."""
    found = []
    top = pictures.GAP
    while top + cell <= picture.height:
        left = pictures.GAP
        for _ in range(columns):
            if left + cell <= picture.width:
                colour = picture.getpixel((left + cell // 2, top + cell // 2))
                found.append(None if colour == PAPER else colour)
            left += cell + pictures.GAP
        top += cell + pictures.CAPTION + pictures.GAP
    return found


# one image -------------------------------------------------------------------------------------


def test_grey_is_drawn_dark_on_light_and_colour_as_it_is():
    grey = pictures.to_picture(np.array([[0, 255], [51, 102]], np.uint8), 255, cell=2)
    assert np.asarray(grey).tolist() == [[255, 0], [204, 153]]
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    assert np.array_equal(np.asarray(pictures.to_picture(rgb, 255, cell=2)), rgb)


def test_pixels_are_shown_in_units_of_the_full_scale():
    image = np.array([[0, 8, 16]], np.uint8)
    assert np.asarray(pictures.to_picture(image, 16, cell=3)).tolist() == [[255, 128, 0]]
    wide = np.array([[0, 65535]], np.uint16)
    assert np.asarray(pictures.to_picture(wide, 65535, cell=2)).tolist() == [[255, 0]]


def test_small_images_are_enlarged_by_a_whole_factor_and_stay_sharp():
    image = np.array([[0, 255, 0], [255, 0, 255]], np.uint8)
    picture = pictures.to_picture(image, 255, cell=20)
    assert picture.size == (18, 12)
    np.testing.assert_array_equal(np.asarray(picture), 255 - image.repeat(6, 0).repeat(6, 1))


@pytest.mark.parametrize(("shape", "size"), [((500, 250), (42, 84)), ((10, 2000), (84, 1))])
def test_large_images_are_made_to_fit(shape, size):
    assert pictures.to_picture(np.zeros(shape, np.uint8), 255).size == size


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_channels_are_drawn_as_grey(channels):
    picture = pictures.to_picture(np.full((4, 4, channels), 255, np.uint8), 255, cell=4)
    assert (np.asarray(picture) == 0).all()
    assert picture.size == (4, 4)


def test_the_prototype_of_an_empty_class_is_drawn_as_nothing():
    assert (np.asarray(pictures.to_picture(np.full((4, 4), np.nan), 255, cell=4)) == 255).all()


# captions --------------------------------------------------------------------------------------


def test_a_caption_that_fits_stays_and_a_long_one_is_cut_to_the_width():
    font = ImageFont.load_default(pictures.FONT_SIZE)
    assert pictures.shorten("Bag", 84, font) == "Bag"
    long = "the quick brown fox jumps over the lazy dog"
    cut = pictures.shorten(long, 84, font)
    assert cut.endswith("…")
    assert long.startswith(cut[:-1])
    assert len(cut) > 5
    assert font.getlength(cut) <= 84 < font.getlength(long[: len(cut)] + "…")


@pytest.mark.parametrize("text", ["", "   ", "two\nlines", "a\tb", "W" * 300, "字" * 50])
def test_any_caption_becomes_one_line_of_the_width(text):
    font = ImageFont.load_default(pictures.FONT_SIZE)
    cut = pictures.shorten(text, 84, font)
    assert font.getlength(cut) <= 84
    assert "\n" not in cut


# grids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "columns", "rows"), [(1, 8, 1), (8, 8, 1), (9, 8, 2), (5, 2, 3)]
)
def test_a_grid_has_rows_of_the_columns_asked_and_a_place_for_each_image(number, columns, rows):
    images = [np.full((6, 6), 10 + n, np.uint8) for n in range(number)]
    grid = pictures.image_grid(images, [str(n) for n in range(number)], columns, 255)
    across = min(columns, number)
    assert grid.size == (
        pictures.GAP + across * (pictures.CELL + pictures.GAP),
        pictures.GAP + rows * (pictures.CELL + pictures.CAPTION + pictures.GAP),
    )
    grey = [(255 - 10 - n,) * 3 for n in range(number)]
    assert cells(grid, across) == grey + [None] * (rows * across - number)


def test_a_caption_stands_below_its_image():
    white = np.zeros((6, 6), np.uint8)
    grid = np.asarray(pictures.image_grid([white, white], ["", "Coat"], 2, 255))
    below = grid[pictures.GAP + pictures.CELL :]
    middle = pictures.GAP + pictures.CELL + pictures.GAP // 2
    assert (below[:, :middle] == 255).all()
    assert (below[:, middle:] < 128).any()
    assert (grid[: pictures.GAP + pictures.CELL] == 255).all()


def test_images_and_captions_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        pictures.image_grid([np.zeros((4, 4))], ["a", "b"], 2, 255)


def test_a_store_is_drawn_a_row_a_class_with_its_first_images(tmp_path):
    per_class = description.PER_CLASS
    labels = [1] * 10 + [0] * 10
    grid = description.grid_of_images(make_store(tmp_path / "s", labels, ["a", "b"]), "train")
    first = [(255 - n - 1,) * 3 for n in range(10, 10 + per_class)]
    second = [(255 - n - 1,) * 3 for n in range(per_class)]
    assert cells(grid, per_class) == first + second


def test_many_classes_are_cut_to_what_fits_on_a_page(tmp_path):
    labels = np.repeat(np.arange(50), description.PER_CLASS)
    grid = description.grid_of_images(
        make_store(tmp_path / "s", labels, [f"class {n}" for n in range(50)], dtype=np.uint16),
        "train",
    )
    rows = (grid.height - pictures.GAP) // (pictures.CELL + pictures.CAPTION + pictures.GAP)
    assert rows == description.MAX_CLASSES


def test_images_without_labels_are_drawn_in_their_order(tmp_path):
    grid = description.grid_of_images(make_store(tmp_path / "s", [-1] * 5, ["a"]), "train")
    assert cells(grid, 5) == [(255 - n - 1,) * 3 for n in range(5)]


def test_colour_images_are_drawn_in_colour(tmp_path):
    images = np.zeros((2, 6, 6, 3), np.uint8)
    images[0], images[1] = (200, 10, 30), (0, 90, 250)
    source = from_arrays({"train": (images, np.array([0, 1]))}, ["red", "blue"])
    grid = description.grid_of_images(pipeline.ingest(source, tmp_path / "s"), "train")
    assert [cell for cell in cells(grid, 2) if cell] == [(200, 10, 30), (0, 90, 250)]


def test_an_empty_split_cannot_be_drawn_and_is_named(tmp_path):
    images, labels = np.zeros((3, 4, 4), np.uint8), np.zeros(3, int)
    arrays = {"train": (images, labels), "test": (images[:0], labels[:0])}
    path = pipeline.ingest(from_arrays(arrays, ["a"]), tmp_path / "s")
    with pytest.raises(InputError, match="split 'test' holds no image"):
        description.draw_grid(path, tmp_path / "a.png", "test")
    with pytest.raises(StoreError, match="no split 'valid', expected one of train, test"):
        description.draw_grid(path, tmp_path / "a.png", "valid")
    assert not (tmp_path / "a.png").exists()


# files -----------------------------------------------------------------------------------------


def test_a_grid_is_written_as_png(tmp_path):
    path = make_store(tmp_path / "s", [0, 1], ["a" * 300, "<b>&</b>"])
    description.draw_grid(path, tmp_path / "deep" / "grid.PNG")
    with Image.open(tmp_path / "deep" / "grid.PNG") as picture:
        assert (picture.format, picture.mode) == ("PNG", "RGB")
        assert cells(picture, 2)[0] == (254, 254, 254)
    assert [item.name for item in (tmp_path / "deep").iterdir()] == ["grid.PNG"]


@pytest.mark.parametrize("name", ["grid.jpg", "grid", "grid.png.txt"])
def test_another_kind_of_file_is_refused_and_not_written(tmp_path, name):
    path = make_store(tmp_path / "s", [0, 1], ["a", "b"])
    with pytest.raises(InputError, match=rf"{name}: .*expected a name ending in \.png"):
        description.draw_grid(path, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_image_is_reduced_to_the_means_of_its_parts():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2**16, (128, 64, 3)).astype(np.uint16)
    expected = image.reshape(64, 2, 32, 2, 3).mean(axis=(1, 3)) / 65535
    np.testing.assert_allclose(pictures.reduced(image, 65535.0), expected, atol=1e-6)
    assert pictures.reduced(image[:1, :, 0].repeat(1000, 1), 65535.0).shape == (1, 64)
    np.testing.assert_array_equal(
        pictures.reduced(image[:5, :4, 0], 65535.0), image[:5, :4, 0] / 65535
    )


def test_a_difference_has_its_sign():
    seen = []

    def colours(shares):
        seen.append(shares)
        return np.stack([shares] * 4, axis=-1)

    difference = np.array([[[-0.5] * 3, [0.0] * 3, [0.25] * 3, [0.1, 0.2, 0.3]]])
    address = pictures.signed_picture(difference, 0.5, colours)
    assert address.startswith("data:image/png;base64,")
    np.testing.assert_allclose(seen[0], [[0, 0.5, 0.75, 0.7]])
    pictures.signed_picture(np.array([[-3.0, 3.0]]), 0.5, colours)
    np.testing.assert_array_equal(seen[1], [[0, 1]])
