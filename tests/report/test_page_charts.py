"""The charts of a run's page: what matplotlib draws of the same numbers."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.ops.predictions import summarise
from pipeline.report import page_charts, plots
from pipeline.report.look import needs_white, palette


def rgb(colour):
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def axes():
    return Figure().add_subplot()


@pytest.mark.parametrize("number", [2, 20, 21, 40])
def test_cells_have_the_colours_and_numbers_of_the_plot(number):
    rng = np.random.default_rng(number)
    counts = rng.integers(0, 9, (number, number)) * rng.integers(0, 2, (number, number))
    counts[0], counts[1, 1] = 0, 1234
    names = [f"class\n{at}" for at in range(number)]
    order = rng.permutation(number).tolist()
    drawn = plots.confusion({"l1": summarise(counts, names)}, "l1", order=order, ax=axes())
    expected = drawn.images[0].to_rgba(drawn.images[0].get_array())[..., :3] * 255
    chart = page_charts.confusion(counts, names, order)
    found = np.array([[rgb(colour) for colour, _, _ in cells] for _, cells in chart["rows"]])
    assert np.abs(found - expected).max() <= 2
    assert [name for name, _ in chart["rows"]] == chart["names"]
    assert chart["names"] == [names[at].replace("\n", " ") for at in order]
    texts = [text for _, cells in chart["rows"] for _, _, text in cells]
    if number <= 20:
        assert texts == [text.get_text() for text in drawn.texts]
        assert "1,234" in texts
    assert chart["numbers"] == any(texts) == (number <= 20)


def test_distances_between_classes_have_the_colours_of_the_plot_and_nothing_where_there_are_none():
    values = np.array([[0, 0.2, np.nan], [0.2, 0, np.nan], [np.nan] * 3])
    names, order = ["a", "b", "c"], [1, 2, 0]
    drawn = plots.class_distances(values, names, order=order, ax=axes())
    expected = drawn.images[0].to_rgba(drawn.images[0].get_array())[..., :3] * 255
    rows = page_charts.class_distances(values, names, order)["rows"]
    for row, (_, cells) in enumerate(rows):
        for column, (colour, _, text) in enumerate(cells):
            value = values[order[row], order[column]]
            assert text == ("" if np.isnan(value) else f"{value:.3f}")
            if not text:
                assert colour == ""
            else:
                assert np.abs(np.array(rgb(colour)) - expected[row, column]).max() <= 2


@pytest.mark.parametrize("number", [41, 480, 481, 1100])
def test_many_classes_are_one_picture_in_which_nothing_is_lost(number):
    counts = 9 * np.eye(number, dtype=np.int64)
    counts[1, 2] = 3
    chart = page_charts.confusion(counts, [str(at) for at in range(number)], range(number))
    content = base64.b64decode(chart["picture"].partition("base64,")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    side = min(number, 480)
    assert pixels.shape == (side, side, 3)
    assert chart["side"] % side == 0
    light = palette()[0].astype(int)
    assert (light != np.diagonal(pixels, axis1=0, axis2=1).T).any(axis=1).all()
    assert (pixels[0, -1] == light).all()
    if number <= 480:
        assert np.abs(pixels[1, 2] - palette()[128]).max() <= 2  # the root of 3 / 12


def test_text_on_every_colour_of_the_scale_has_contrast_enough():
    shares = palette() / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    light = linear @ [0.2126, 0.7152, 0.0722]
    white = needs_white(palette())
    ratios = np.where(white, 1.05 / (light + 0.05), (light + 0.05) / 0.05)
    assert ratios.min() >= 4.5
    assert 0 < white.sum() < 256


@pytest.mark.parametrize(("edges", "right", "wrong"), [
    ([0, 0.1, 0.2, 0.4], [3, 0, 1], [0, 5, 0]), ([0, 1e-6], [7], [0]), ([0, 1.0], [0], [2]),
])  # fmt: skip
def test_bars_of_margins_are_as_high_as_their_shares(edges, right, wrong):
    edges, right, wrong = np.array(edges), np.array(right), np.array(wrong)
    chart = page_charts.margins(edges, right, wrong)
    width, height = map(int, chart["box"].split()[2:])
    (lower, _), *_, (upper, percent) = chart["y"]
    assert (lower, chart["x"][0]) == (0, (0, "0"))
    for (name, count, path), counts in zip(chart["series"], (right, wrong), strict=True):
        points = np.array(re.findall(r"[ML]([\d.e-]+),([\d.e-]+)", path), float)
        assert (name in ("right", "wrong"), count) == (True, counts.sum())
        assert points[[0, -1]].tolist() == [[0, height], [width, height]]
        tops = (height - points[1:-1, 1].reshape(-1, 2)) / height * 100 / upper
        shares = counts / max(counts.sum(), 1)
        scale = float(percent.removesuffix(" %")) / 100
        assert np.allclose(tops * scale, shares[:, None], atol=2e-3)
        ends = points[1:-1, 0].reshape(-1, 2) / width * (edges[-1] - edges[0])
        assert np.allclose(ends, np.stack([edges[:-1], edges[1:]], axis=1), rtol=1e-3)
    labels = [float(text) for _, text in chart["x"]]
    assert labels == sorted(labels)
    assert len(labels) <= 10
    assert labels[-1] <= edges[-1]
    assert labels[-1] > 0.7 * edges[-1]
