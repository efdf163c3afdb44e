"""The picture of an explanation: what it is composed of, and how it is written."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import pipeline
from pipeline.cli import main
from pipeline.core.errors import InputError
from pipeline.report.explanation_picture import chosen_classes, explanation_figure
from pipeline.sources.arrays import from_arrays

NAMES = ["$x^2$", "<script>b</script>", "\x1b[2Jc", "d" * 90, "e"]


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """Return what makes a run of five classes, each of a grey of its own, of images of a shape."""

    def make(shape=(6, 7), dtype=np.uint8, labels=(0, 1, 2, 3, 4), **settings):
        folder = tmp_path_factory.mktemp("explained")
        rng = np.random.default_rng(0)
        code = np.repeat(np.arange(5), 4)
        noise = rng.integers(0, 9, (20, *shape))
        images = (code.reshape(-1, *(1,) * len(shape)) * 40 + 10 + noise).astype(dtype)
        splits = {"train": (images, code), "test": (images[::4] + 30, np.array(labels))}
        store = pipeline.ingest(from_arrays(splits, NAMES), folder / "images.zarr")
        job = {"images": str(store), "name": "five", "output": str(folder / "run"), **settings}
        return pipeline.run_job(pipeline.make_job(job)).path

    return make


@pytest.fixture(scope="module")
def five(make_run):
    return make_run()


def panels(figure: Figure):
    """Return the axes that are shown: of images, of distances, of pixel values."""
    above, between, below = figure.subfigs
    shown = [ax for ax in above.axes if ax.axison or ax.images]
    return shown, between.axes, below.axes


# what an explanation carries --------------------------------------------------------------------


def test_an_explanation_has_the_nearest_prototypes_and_that_of_the_label(make_run):
    run = make_run(labels=(4, 4, 4, 4, -1))
    written = pipeline.open_run(run).prototypes["prototype"]
    found = pipeline.explain(run, "test", 0)
    assert found.predicted["l1"] == NAMES[1]  # 40 away is nearer than 0 is, by 30
    assert set(found.prototypes) == {*NAMES[:3], NAMES[4]}
    for name, prototype in found.prototypes.items():
        assert np.array_equal(prototype, written.sel(class_name=name).values)
    assert found.ranked("l1") == np.argsort(found.distances[0], kind="stable").tolist()
    unlabelled = pipeline.explain(run, "test", 4)
    assert unlabelled.label_name is None
    assert set(unlabelled.prototypes) == set(NAMES[2:])
    with pytest.raises(InputError, match="metric 'l3', expected one of l1, l2"):
        found.ranked("l3")


def test_the_classes_drawn_are_the_nearest_and_the_label(make_run, five):
    far = pipeline.explain(make_run(labels=(4, 4, 4, 4, 4)), "test", 0)
    assert chosen_classes(far, "l1") == {
        NAMES[1]: "predicted", NAMES[0]: "second nearest", NAMES[4]: "label"
    }  # fmt: skip
    near = chosen_classes(pipeline.explain(five, "test", 1), "l1")
    assert list(near.values()) == ["predicted", "second nearest, label", "third nearest"]
    two = pipeline.explain(make_run(classes=[NAMES[0], NAMES[1]]), "test", 3)
    assert two.label_name == NAMES[3]  # of a class that the run does not have
    assert chosen_classes(two, "l1") == {NAMES[1]: "predicted", NAMES[0]: "second nearest"}


# what is drawn ---------------------------------------------------------------------------------


def test_the_picture_has_image_prototypes_differences_distances_and_pixels(five):
    found = pipeline.explain(five, "test", 1)
    above, between, below = panels(explanation_figure(found))
    pictures = [np.asarray(ax.images[0].get_array()) for ax in above if ax.images]
    chosen = [found.prototypes[name] for name in chosen_classes(found, "l1")]
    assert np.array_equal(pictures[0], 255 - found.image)
    for drawn, prototype in zip(pictures[1:4], chosen, strict=True):
        assert np.allclose(drawn, 255 - prototype, rtol=0, atol=0.51)
    signed = [(found.image - prototype) / 255 for prototype in chosen]
    for drawn, expected in zip(pictures[4:7], signed, strict=True):
        assert np.allclose(drawn, expected)
    limits = {
        ax.images[0].get_clim()
        for ax in above
        if ax.images and len(ax.images[0].get_array().shape) == 2
    }
    largest = max(np.abs(part).max() for part in signed)
    assert (-largest, largest) in limits
    assert len(limits) == 2  # of pictures, and one for all differences
    assert [ax.get_xlabel().split()[0] for ax in between] == ["l1", "l2"]
    assert [bar.get_width() for bar in between[1].patches] == sorted(found.distances[1])
    assert [text.get_text() for text in below[0].texts] == [str(v) for v in found.image.ravel()]


def test_the_table_is_of_the_pixels_asked_for_or_of_the_middle(make_run):
    found = pipeline.explain(make_run(shape=(40, 61, 3)), "test", 0)
    _, _, (below,) = panels(explanation_figure(found))
    assert len(below.texts) == 28 * 28
    assert [below.get_yticklabels()[at].get_text() for at in (0, -1)] == ["6", "33"]
    assert [below.get_xticklabels()[at].get_text() for at in (0, -1)] == ["16", "43"]
    _, _, (below,) = panels(explanation_figure(found, "38:,0:3"))
    expected = ["".join(f"{v:02x}" for v in pixel) for row in found.image[38:, :3] for pixel in row]
    assert [text.get_text() for text in below.texts] == expected


# what is written -------------------------------------------------------------------------------


def test_the_command_writes_png_and_svg_and_the_same_bytes_each_time(five, tmp_path, capsys):
    words = ["explain", str(five), "--split", "test", "--sample", "1", "--pixels", "2:4,0:3"]
    for name in ("a.PNG", "a.svg", "b.svg"):
        assert main([*words, "--picture", str(tmp_path / "deep" / name)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"drawn in {tmp_path / 'deep' / name}"
    content = {path.name: path.read_bytes() for path in (tmp_path / "deep").iterdir()}
    assert sorted(content) == ["a.PNG", "a.svg", "b.svg"]
    assert content["a.svg"] == content["b.svg"]
    with Image.open(tmp_path / "deep" / "a.PNG") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1500
        assert picture.getpixel((picture.width - 2, 2))[:3] == (255, 255, 255)
    text = "".join(ElementTree.fromstring(content["a.svg"]).itertext())
    assert "<script>" in text  # as text
    assert b"<script" not in content["a.svg"]
    assert "$x^2$" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(("name", "pixels", "said"), [
    ("a.jpg", None, "expected a name ending in .png or .svg"),
    ("a", None, "expected a name ending in .png or .svg"),
    ("a.png", "9:,3", "rows '9:' hold no line of an image of 6"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_and_nothing_written(five, tmp_path, name, pixels, said):
    found = pipeline.explain(five, "test", 1)
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        pipeline.draw_explanation(found, tmp_path / name, pixels)
    assert not list(tmp_path.iterdir())


def test_a_picture_that_fails_midway_leaves_what_was_there(five, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")

    def fail(self, file, **settings):
        Path(file).write_bytes(b"half")
        raise OSError("no more")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no more"):
        pipeline.draw_explanation(pipeline.explain(five, "test", 1), path)
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("a.png", b"before")]
