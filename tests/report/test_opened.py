"""Image sets and runs as notebooks show them, and image sets opened as a whole."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import pipeline
from pipeline.core.errors import StoreError
from pipeline.report import markup
from pipeline.report.pictures import draw_prototypes
from pipeline.sources.arrays import from_arrays

HOSTILE = ["<script>alert(1)</script>", "a & b", "\x1b[2Jgone", '" onload="x', "$x$"]


class Page(HTMLParser):
    """The tags, the cells and the pictures of a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.pictures, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.pictures.append(dict(attrs))
        assert {name for name, _ in attrs} <= {"style", "alt", "src"}

    def handle_data(self, data):
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def make_store(folder, names=HOSTILE, per_class=3):
    code = np.repeat(np.arange(len(names)), per_class)
    images = np.broadcast_to(code[:, None, None] * 9, (len(code), 5, 4)).astype(np.uint8)
    splits = {"train": (images, code), "<test>": (images[:2], np.array([0, -1]))}
    return pipeline.ingest(from_arrays(splits, names), folder / "images.zarr")


def make_run(folder, **settings):
    job = {
        "images": str(make_store(folder, **settings)), "name": "a <b>", "output": str(folder / "r"),
        "evaluate": "<test>",
    }  # fmt: skip
    return pipeline.run_job(pipeline.make_job(job))


# image sets ------------------------------------------------------------------------------------


def test_an_image_set_knows_its_splits_classes_and_images(tmp_path):
    path = make_store(tmp_path)
    opened = pipeline.open_store(path)
    assert opened.path == path
    assert opened.splits == {"train": 15, "<test>": 2}
    assert opened.class_names == HOSTILE
    assert opened.manifest["digest"] == pipeline.digest(path)["images"]
    for split in opened.splits:
        assert xr.Dataset.identical(opened.images(split), pipeline.open_images(path, split))
    assert opened.images().sizes["sample"] == 15
    shown = repr(opened)
    assert shown == f"ImageSet({str(path)!r}, {{train: 15, <test>: 2}}, 5 classes)"


def test_what_is_no_image_set_is_refused_when_it_is_opened(tmp_path):
    with pytest.raises(StoreError):
        pipeline.open_store(tmp_path / "nothing")
    with pytest.raises(StoreError):
        pipeline.open_store(make_run(tmp_path).path)
    with pytest.raises(StoreError, match="no split 'valid', expected one of train, <test>"):
        pipeline.open_store(tmp_path / "images.zarr").images("valid")


def test_an_image_set_is_shown_as_tables_of_text(tmp_path):
    opened = pipeline.open_store(make_store(tmp_path))
    page = Page(opened._repr_html_())
    assert set(page.tags) == {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    assert ["train", "15", "5 x 4", "uint8", "0"] in page.rows
    assert ["<test>", "2", "5 x 4", "uint8", "1"] in page.rows
    assert ["digest", f"sha256:{opened.manifest['digest']}"] in page.rows
    assert ["class", "train", "<test>"] in page.rows
    assert [HOSTILE[0], "3", "1"] in page.rows
    assert ["\\x1b[2Jgone", "3", "0"] in page.rows
    assert page.text.isprintable()


def test_of_many_classes_the_first_are_listed_and_the_rest_counted(tmp_path):
    names = [f"class {n}" for n in range(1003)]
    page = Page(pipeline.open_store(make_store(tmp_path, names, 1))._repr_html_())
    assert sum(row[0].startswith("class ") for row in page.rows) == 20
    assert "and 983 classes more" in page.text


# runs ------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_accuracy_and_its_prototypes(tmp_path):
    run = make_run(tmp_path)
    page = Page(run._repr_html_())
    assert page.text.startswith("pixsim run a <b>")
    assert ["digest", f"sha256:{run.manifest['digests']['run']}"] in page.rows
    assert ["prototypes", "mean of 'train'"] in page.rows
    assert ["measured", "'<test>'"] in page.rows
    assert ["classes", "5"] in page.rows
    for metric in ("l1", "l2"):
        assert [metric, "1", "1.0000", "1.0000"] in page.rows
    (picture,) = page.pictures
    data = picture["src"].removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        expected = np.asarray(draw_prototypes(run.prototypes))
        assert np.array_equal(np.asarray(shown.convert("RGB")), expected)


def test_a_run_of_many_classes_is_shown_without_prototypes_and_of_no_labels_without_accuracy(
    tmp_path,
):
    run = make_run(tmp_path, names=[f"class {n}" for n in range(21)], per_class=1)
    page = Page(run._repr_html_())
    assert not page.pictures
    job = {
        "images": str(run.images), "name": "x", "output": str(tmp_path / "x"),
        "classes": ["class 7"], "evaluate": "<test>",
    }  # fmt: skip
    none = pipeline.run_job(pipeline.make_job(job))
    assert ["l1", "0", "-", "-"] in Page(none._repr_html_()).rows


# pieces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*HOSTILE, "</td></table><b>", "x" * 5000, "two\nlines", 12, None])
def test_whatever_is_in_a_table_is_text_in_its_cell(text):
    page = Page(markup.table(["name", text], [[text, "after"]]))
    assert page.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert page.rows[1][1] == "after"
    assert len(page.rows[1][0]) <= markup.MAX_TEXT
    if isinstance(text, str) and text.isprintable() and len(text) < markup.MAX_TEXT:
        assert page.rows[1][0] == text


@pytest.mark.slow
def test_matplotlib_is_loaded_when_plots_are_first_used_and_not_before(tmp_path):
    run = make_run(tmp_path)
    script = (
        "import sys, pipeline\n"
        f"run = pipeline.open_run({str(run.path)!r})\n"
        "run._repr_html_(), pipeline.open_store(run.images)._repr_html_()\n"
        "assert 'plots' in dir(pipeline) and 'matplotlib' not in sys.modules\n"
        "assert callable(pipeline.plots.image) and 'matplotlib' in sys.modules\n"
        "from pipeline import plots\n"
        "assert plots is pipeline.plots\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
