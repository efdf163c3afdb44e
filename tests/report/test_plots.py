"""Plots: what is drawn is what was given, and names are text and nothing else."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from axes_for_tests import (
    as_svg,
    drawn,
    fresh,
    make_explanation,
    many_metrics,
    names,
    nothing_left,  # noqa: F401  (after each test)
    texts,
)
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from pipeline.core.errors import InputError
from pipeline.report import plots
from pipeline.report.look import one_line, text_width

HOSTILE = [
    "$x^2$", r"$\undefined{", "<script>alert(1)</script>", "\x1b[2Jgone", "two\nlines", "", "a & b",
    "\u202eright to left", "caf\udce9", "字" * 60, "W" * 500, "50 % \\alpha_1",
]  # fmt: skip
OWN_COLOURS = {plots.INK, plots.MUTED, plots.RIGHT, plots.WRONG, plots.ACCENT}
ON_CELLS = {plots.ON_LIGHT, plots.ON_DARK}


# every plot ------------------------------------------------------------------------------------

IMAGE = np.arange(48, dtype=np.uint8).reshape(6, 8)


def every_plot(labels):
    """Return each plot of classes of these names, to be drawn into axes."""
    number = len(labels)
    unique = list(labels)
    metrics, counts = many_metrics(number, unique)
    explanation = make_explanation(np.linspace(0.1, 0.9, number)[::-1], unique[0], unique)
    ideals = xr.Dataset(
        {
            "prototype": (("class_name", "y", "x"), np.full((number, 4, 4), 90.0)),
            "std": (("class_name", "y", "x"), np.full((number, 4, 4), 9.0)),
        },
        {"class_name": unique}, {"full_scale": 255},
    )  # fmt: skip
    per_split = {f"split {label}": dict.fromkeys(unique, 7) for label in unique[:2]}
    edges, bins = np.linspace(0, 0.4, 9), np.arange(8)
    return {
        "image": lambda ax: plots.image(IMAGE, 255, title=unique[0], ax=ax),
        "gallery": lambda ax: plots.gallery([IMAGE] * number, unique, 255, ax=ax),
        "prototypes": lambda ax: plots.prototypes(ideals, ax=ax),
        "std": lambda ax: plots.prototypes(ideals, "std", ax=ax),
        "pixel_values": lambda ax: plots.pixel_values(IMAGE, 255, ax=ax),
        "difference": lambda ax: plots.difference(IMAGE, IMAGE / 2, 255, ax=ax),
        "distances": lambda ax: plots.distances(explanation, "l1", ax=ax),
        "accuracy": lambda ax: plots.accuracy(metrics, ax=ax),
        "confusion": lambda ax: plots.confusion(metrics, "l1", ax=ax),
        "class_distances": lambda ax: plots.class_distances(counts / 60, unique, ax=ax),
        "margins": lambda ax: plots.margins(edges, bins, bins[::-1], ax=ax),
        "agreement": lambda ax: plots.agreement(5, 1, 2, 3, (unique[0], unique[-1]), ax=ax),
        "class_counts": lambda ax: plots.class_counts(per_split, ax=ax),
    }


PLOTS = sorted(every_plot(["a", "b"]))


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_draws_into_the_axes_given_or_a_new_figure_and_returns_it(name):
    draw = every_plot(["a", "b", "c"])[name]
    ax = fresh()
    assert draw(ax) is ax
    assert not plt.get_fignums()
    own = draw(None)
    assert [plt.figure(number) for number in plt.get_fignums()] == [own.figure]
    assert drawn(own) != drawn(fresh())


@pytest.mark.parametrize("name", PLOTS)
def test_hostile_names_are_text_on_one_line_and_nothing_else(name, recwarn):
    ax = every_plot(HOSTILE)[name](fresh(9, 6))
    with mpl.rc_context({"text.parse_math": True}):
        root = as_svg(ax)  # raises where a name is taken for mathematics that it is not
    assert not [warning for warning in recwarn if "lyph" not in str(warning.message)]
    assert {node.tag.rpartition("}")[2] for node in root.iter()} <= {
        "svg", "metadata", "RDF", "Work", "type", "date", "format", "creator", "Agent", "title",
        "defs", "style", "g", "path", "text", "tspan", "use", "image", "clipPath", "rect",
    }  # fmt: skip
    for text in ax.figure.findobj(Text):
        said = text.get_text()
        assert said.isprintable(), said
        assert text_width(said) <= 64, said
        if "$" in said or "\\" in said:
            assert not text.get_parse_math(), said
            assert not text.get_usetex(), said


@pytest.mark.parametrize("name", PLOTS)
def test_lines_and_texts_have_the_colours_of_the_module(name):
    ax = every_plot([f"class {n}" for n in range(22)])[name](fresh())
    drawn(ax)
    for text in ax.figure.findobj(lambda item: isinstance(item, Text) and item.get_text()):
        assert to_hex(text.get_color()) in OWN_COLOURS | ON_CELLS, text
    assert {to_hex(line.get_color()) for line in ax.lines} <= OWN_COLOURS
    for patch in ax.patches:
        colour = patch.get_facecolor() if patch.get_fill() else patch.get_edgecolor()
        assert to_hex(colour) in OWN_COLOURS
    for spine in ax.spines.values():
        assert to_hex(spine.get_edgecolor()) == plots.MUTED or not spine.get_visible()
    assert to_rgb(ax.get_facecolor()) == (0, 0, 0)
    assert ax.get_facecolor()[3] == 0  # transparent


def test_the_colours_differ_so_that_a_page_can_give_each_another():
    assert len(OWN_COLOURS | ON_CELLS) == 7
    assert all(colour == to_hex(colour) for colour in OWN_COLOURS | ON_CELLS)


@pytest.mark.parametrize("width", [2, 9, 28])
@pytest.mark.parametrize("text", [*HOSTILE, "a", "a name of some words that is long"])
def test_a_name_is_cut_to_its_width_and_only_where_it_must_be(text, width):
    line = one_line(text, width)
    assert text_width(line) <= width
    assert line.isprintable()
    if not line.endswith("…"):
        assert " ".join(text.split()) == line or not text.isprintable()


# images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_an_image_is_dark_on_light_in_units_of_its_full_scale(dtype):
    pixels = np.array([[0, 51], [102, 255]], dtype)
    (shown,) = plots.image(pixels, 255, ax=fresh()).images
    assert np.asarray(shown.get_array()).tolist() == [[255, 204], [153, 0]]
    assert to_hex(shown.cmap(shown.norm(0))) == "#000000"
    assert to_hex(shown.cmap(shown.norm(255))) == "#ffffff"


def test_colours_are_drawn_as_they_are_and_a_title_as_it_is():
    rgb = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) * 20
    ax = plots.image(rgb, 255, title="$a$", ax=fresh())
    assert np.array_equal(ax.images[0].get_array(), rgb)
    assert ax.get_title(loc="left") == "$a$"


@pytest.mark.parametrize(
    ("number", "columns", "across"), [(1, None, 1), (4, None, 4), (10, None, 5), (23, None, 10),
                                      (7, 3, 3)],
)  # fmt: skip
def test_a_gallery_has_each_image_once_in_order_with_its_caption_below(number, columns, across):
    images = [np.full((4, 6), 10 * n, np.uint8) for n in range(number)]
    ax = plots.gallery(images, [f"n {n}" for n in range(number)], 255, columns=columns)
    mosaic = np.asarray(ax.images[0].get_array())
    solid = mosaic[..., 3] == 255
    assert solid.sum() == number * 24
    assert set(np.unique(mosaic[..., 3])) <= {0, 255}
    down = -(-number // across)
    tops, lefts = starts(solid.any(axis=1)), starts(solid.any(axis=0))
    assert (len(tops), len(lefts)) == (down, across)
    assert texts(ax) == [f"n {n}" for n in range(number)]
    for n, text in enumerate(ax.texts):
        top, left = tops[n // across], lefts[n % across]
        cell = mosaic[top : top + 4, left : left + 6]
        assert (cell[..., 0] == 255 - 10 * n).all()
        assert (cell[..., 3] == 255).all()
        x, y = text.get_position()
        assert x == left + 2.5
        assert top + 3.5 < y < [*tops, len(mosaic)][n // across + 1]


def starts(there):
    """Return where what is there begins, along one axis."""
    return np.flatnonzero(there & ~np.concatenate([[False], there[:-1]])).tolist()


def test_captions_of_a_gallery_do_not_touch_the_images_or_each_other():
    images = [np.full((9, 9), 200, np.uint8)] * 12
    for columns, size in ((4, (5, 4)), (12, (9, 1)), (3, (3, 9))):
        ax = plots.gallery(images, ["W" * 50] * 12, 255, columns=columns, ax=fresh(*size))
        drawn(ax)
        boxes = [text.get_window_extent() for text in ax.texts]
        for n, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[n + 1 :]), (columns, n)
        mosaic = np.asarray(ax.images[0].get_array())
        for box in boxes:  # what is below a caption is no image
            corners = ax.transData.inverted().transform([(box.x0, box.y1), (box.x0, box.y0)])
            rows = [round(y) for _, y in corners if 0 <= round(y) < len(mosaic)]
            middle = round(ax.transData.inverted().transform((box.x0 + box.width / 2, 0))[0])
            assert all(mosaic[row, middle, 3] == 0 for row in rows)


def test_images_of_many_classes_are_made_smaller_and_all_there():
    images = [np.full((300, 300), n % 250, np.uint8) for n in range(400)]
    ax = plots.gallery(images, [""] * 400, 255, columns=20, ax=fresh())
    mosaic = np.asarray(ax.images[0].get_array())
    assert mosaic[..., 3].astype(bool).sum() == 400 * 100 * 100
    assert mosaic.size < 40_000_000


def test_a_gallery_without_images_or_of_other_captions_is_refused():
    with pytest.raises(InputError, match="0 images and 0 captions"):
        plots.gallery([], [], 255)
    with pytest.raises(InputError, match="2 images and 1 captions"):
        plots.gallery([IMAGE, IMAGE], ["a"], 255)


def test_prototypes_and_deviations_are_drawn_each_in_its_scale():
    ideals = xr.Dataset(
        {
            "prototype": (("class_name", "y", "x"), np.array([[[0.0, 16]], [[8, np.nan]]])),
            "std": (("class_name", "y", "x"), np.array([[[0.0, 8]], [[4, np.nan]]])),
        },
        {"class_name": ["3", "7"]}, {"full_scale": 16},
    )  # fmt: skip
    for what in ("prototype", "std"):
        ax = plots.prototypes(ideals, what, ax=fresh())
        mosaic = np.asarray(ax.images[0].get_array())[0, :, :]
        assert mosaic[mosaic[:, 3] > 0, 0].tolist() == [255, 0, 128, 255]
        assert texts(ax) == ["3", "7"]
    with pytest.raises(InputError, match="what='mean', expected 'prototype' or 'std'"):
        plots.prototypes(ideals, "mean")


# pixel values ----------------------------------------------------------------------------------


def test_each_cell_has_its_value_and_is_as_dark_as_that():
    ax = plots.pixel_values(IMAGE * 5, 255, rows=slice(2, 5), columns=slice(1, 7))
    part = IMAGE[2:5, 1:7] * 5
    assert texts(ax) == [str(value) for value in part.ravel().tolist()]
    shown = np.asarray(ax.images[0].get_array())
    assert np.array_equal(shown[..., 0], 255 - part)
    for text, value in zip(ax.texts, part.ravel(), strict=True):
        assert text.get_color() == (plots.ON_LIGHT if 255 - value > 127 else plots.ON_DARK)
        x, y = text.get_position()
        assert part[y, x] == value
    assert names(ax.yaxis) == ["2", "3", "4"]
    assert names(ax.xaxis) == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("pixels", "full_scale", "said"),
    [
        (np.array([[[255, 0, 16]]], np.uint8), 255, "ff0010"),
        (np.array([[[65535, 0, 16]]], np.uint16), 65535, "ffff00000010"),
        (np.array([[[7, 9]]], np.uint8), 255, "7/9"),
        (np.array([[12.3456]]), 255, "12.3"),
        (np.array([[54321]], np.uint16), 65535, "54321"),
    ],
)
def test_values_of_any_kind_are_written_so_that_they_fit(pixels, full_scale, said):
    ax = plots.pixel_values(np.tile(pixels, (3, 3, *(1,) * (pixels.ndim - 2))), full_scale)
    assert texts(ax) == [said] * 9
    drawn(ax)
    width = ax.get_window_extent().width / 3
    assert all(text.get_window_extent().width < width for text in ax.texts)


def test_a_table_that_nobody_could_read_is_refused():
    with pytest.raises(InputError, match=r"100 x 100 pixel values, expected 1 to 4,096"):
        plots.pixel_values(np.zeros((100, 100), np.uint8), 255)
    with pytest.raises(InputError, match="0 x 8 pixel values"):
        plots.pixel_values(IMAGE, 255, rows=slice(9, 20))


# differences -----------------------------------------------------------------------------------


def test_a_difference_is_signed_and_centred_at_zero():
    pixels = np.array([[0, 200], [100, 50]], np.uint8)
    prototype = np.array([[100.0, 100.0], [100.0, 49.5]])
    ax = plots.difference(pixels, prototype, 200, ax=fresh())
    (shown,) = ax.images
    assert np.allclose(shown.get_array(), [[-0.5, 0.5], [0, 0.0025]])
    assert shown.get_clim() == (-0.5, 0.5)
    more, none, less = (to_rgb(shown.cmap(shown.norm(value))) for value in (0.5, 0, -0.5))
    assert to_hex(more) == plots.WRONG
    assert to_hex(less) == plots.RIGHT
    assert min(none) > 0.95
    bar = ax.figure.axes[1]
    assert bar.get_ylim() == (-0.5, 0.5)
    assert bar.get_ylabel() == "image minus prototype"


def test_differences_of_channels_are_averaged_and_a_limit_is_kept():
    pixels = np.array([[[30, 60, 0]]], np.uint8)
    ax = plots.difference(pixels, np.zeros((1, 1, 3)), 60, limit=2.0, ax=fresh())
    assert np.allclose(ax.images[0].get_array(), [[0.5]])
    assert ax.images[0].get_clim() == (-2, 2)


def test_equal_images_and_empty_prototypes_can_be_drawn_and_other_shapes_not():
    assert plots.difference(IMAGE, IMAGE, 255, ax=fresh()).images[0].get_clim() == (-1, 1)
    drawn(plots.difference(IMAGE, np.full(IMAGE.shape, np.nan), 255, ax=fresh()))
    with pytest.raises(InputError, match=r"shape \(6, 8\) and a prototype of \(2, 2\)"):
        plots.difference(IMAGE, np.zeros((2, 2)), 255)
