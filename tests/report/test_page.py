"""The report of a run: what it says is what the run found, in one page that a browser shows whole.

The pages are opened in Debian's chromium. Screenshots are kept in the folder that
`PIXSIM_SCREENSHOTS` names, else with what else the tests write.
"""

from __future__ import annotations

import itertools
import re
import shutil
from html import escape

import numpy as np
import pytest
from pages_for_tests import look
from stores_for_tests import swapped

import pipeline
from pipeline.cli import main
from pipeline.core.errors import DamagedError, InputError, StoreError
from pipeline.sources.arrays import from_arrays
from pipeline.storage.manifest import put_manifest

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x>', "$\\alpha$ & 'x' `y` {{ 7 * 7 }}", "long " * 60,
]  # fmt: skip
MB = 10**6


def make_run(folder, number=4, shape=(9, 8), train=6, test=5, names=None, noise=60, **settings):
    """Run a job on images of some classes: a pattern each, that of the class before it and more."""
    rng = np.random.default_rng(number)
    patterns = rng.integers(0, 200, (number, *shape))
    patterns[1::2] = (4 * patterns[: number - 1 : 2] + patterns[1::2]) // 5
    arrays = {}
    for split, each in {"train": train, "test": test}.items():
        labels = np.repeat(np.arange(number), each).astype(np.int32)
        images = patterns[labels] + rng.integers(-noise, noise, (len(labels), *shape))
        arrays[split] = np.clip(images, 0, 255).astype(np.uint8), labels
    names = names or [f"class {code}" for code in range(number)]
    store = pipeline.ingest(from_arrays(arrays, names), folder / "images.zarr")
    job = {"name": "made", "images": str(store), "output": str(folder / "run"), **settings}
    return pipeline.run_job(pipeline.make_job(job))


@pytest.fixture(autouse=True, scope="module")
def drawn_reports():
    """Here they are drawn."""


def page_of(run):
    return (run.path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("small"), names=HOSTILE, noise=160)


# what it says ---------------------------------------------------------------------------------


def test_every_run_has_a_report_that_its_manifest_vouches_for(small):
    assert "report.html" in small.manifest["files"]
    assert pipeline.verify(small.path) == []


def test_it_says_what_the_run_found(small):
    page, metrics = page_of(small), small.metrics
    best = max(("l1", "l2"), key=lambda name: metrics[name]["accuracy"])
    assert f"right for {100 * metrics[best]['accuracy']:.1f} %" in page
    for values in metrics[best]["per_class"].values():
        assert f"{100 * values['accuracy']:.1f} %" in page
    assert small.manifest["digests"]["run"] in page
    a, b, distance = small.highlights["prototypes"][best]["pairs"][0]
    assert a != b
    assert f"{distance:.4f}" in page


def test_the_distances_of_a_shown_image_are_those_of_the_run(small):
    page = page_of(small)
    best = max(("l1", "l2"), key=lambda name: small.metrics[name]["accuracy"])
    typical = small.highlights["samples"][best]["typical"]
    distances = small.distances.sel(metric=best).values[typical["sample"][0]]
    for value in np.sort(distances)[:3]:
        assert f'<span class="val">{value:.4f}</span>' in page


def test_a_row_of_the_table_is_where_it_says(small):
    for kinds in small.highlights["samples"].values():
        for columns in kinds.values():
            table = small.predictions.compute()
            for sample, row in zip(columns["sample"], columns["row"], strict=True):
                assert table["sample"].iloc[row] == sample


def test_it_names_nothing_outside_and_runs_nothing_of_others(small):
    page = page_of(small)
    bare = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert not re.search(r"(https?:)?//[a-z]", bare)
    assert page.count("<script") == 1
    assert "default-src 'none'" in page
    assert escape(HOSTILE[0], quote=False) in page
    assert "{{ 7 * 7 }}" in page
    assert len(re.findall(r'id="([^"]+)"', page)) == len(set(re.findall(r'id="([^"]+)"', page)))
    wanted = set(re.findall(r'href="#([^"]+)"', page))
    assert wanted <= set(re.findall(r'id="([^"]+)"', page))


def test_headings_are_in_order(small):
    page = page_of(small)
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_made_again_it_is_the_same(small, tmp_path):
    before = page_of(small)
    assert pipeline.write_report(small.path) == small.path / "report.html"
    assert page_of(small) == before
    assert pipeline.verify(small.path) == []
    assert main(["report", str(small.path), "--output", str(tmp_path / "mail.html")]) == 0
    assert (tmp_path / "mail.html").read_text(encoding="utf-8") == before
    with pytest.raises(InputError, match=r"expected a name ending in \.html"):
        pipeline.write_report(small.path, tmp_path / "report.pdf")


def test_without_the_image_set_it_has_no_images_and_says_so(tmp_path):
    run = make_run(tmp_path, noise=200)
    shutil.rmtree(tmp_path / "images.zarr")
    pipeline.write_report(run.path)
    page = page_of(run)
    assert "the image set is not where it was" in page
    assert "The image set is not where it was, so this report was made without it" in page
    assert pipeline.verify(run.path) == []


def test_a_damaged_report_is_found_and_made_again(tmp_path):
    run = make_run(tmp_path)
    before = page_of(run)
    (run.path / "report.html").write_text("nothing")
    assert [found.file for found in pipeline.verify(run.path)] == ["report.html"]
    pipeline.verify(run.path, repair=True)
    assert len(page_of(run)) == len(before)


def test_what_it_shows_is_checked(tmp_path):
    run = make_run(tmp_path)
    file = run.path / "highlights.json"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(DamagedError, match=r"highlights\.json: was changed"):
        pipeline.write_report(run.path)


def test_prototypes_that_it_shows_are_those_that_were_written(tmp_path):
    run = make_run(tmp_path)
    with (
        swapped(run.path, *(f"prototypes.zarr/{n}/c/0/0/0" for n in ("prototype", "std"))),
        pytest.raises(DamagedError, match="is not the file that was written there"),
    ):
        pipeline.write_report(run.path)
    pipeline.write_report(run.path)


def test_a_run_of_an_earlier_version_is_told_apart(tmp_path):
    run = make_run(tmp_path)
    content = pipeline.open_run(run.path).manifest
    del content["files"]["highlights.json"]
    put_manifest(run.path, content)
    with pytest.raises(StoreError, match="run its job again, to another folder"):
        pipeline.write_report(run.path)


@pytest.mark.parametrize("settings", [
    {"metrics": ["l2"]},
    {"prototypes": "median", "distances": "skip"},
    {"evaluate": ["train", "test"]},
    {"classes": ["class 1"]},
    {"classes": ["class 0", "class 2"]},
], ids=["one metric", "no distances", "two splits", "one class", "two classes"])  # fmt: skip
def test_runs_of_every_kind_have_one(tmp_path, settings):
    page = page_of(make_run(tmp_path, noise=200, **settings))
    assert page.rstrip().endswith("</html>")


def test_how_images_of_the_fitted_split_were_measured_is_said(tmp_path):
    for way, said in {True: True, False: False}.items():
        settings = {"evaluate": ["train", "test"], "leave_one_out": way}
        page = page_of(make_run(tmp_path / str(way), **settings))
        sentence = "For an image in ‘train’ the mean of its own class is that without it."
        assert (sentence in page, "job: leave one out" in page) == (said, said)


def test_images_in_colour_and_of_16_bits(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2**16, (12, 90, 70, 3)).astype(np.uint16)
    labels = (np.arange(12) % 2).astype(np.int32)
    source = from_arrays({"train": (images, labels), "test": (images, labels)}, ["a", "b"])
    store = pipeline.ingest(source, tmp_path / "images.zarr")
    settings = {"images": str(store), "output": str(tmp_path / "run"), "name": "colours"}
    assert "data:image/jpeg" in page_of(pipeline.run_job(pipeline.make_job(settings)))


def test_images_without_labels_are_no_trouble(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (12, 5, 5)).astype(np.uint8)
    labels = (np.arange(12) % 2).astype(np.int32)
    nothing = np.full(12, -1, np.int32)
    source = from_arrays({"train": (images, labels), "test": (images, nothing)}, ["a", "b"])
    store = pipeline.ingest(source, tmp_path / "images.zarr")
    settings = {"images": str(store), "output": str(tmp_path / "run"), "name": "unlabelled"}
    settings["evaluate"] = "test"  # it would not be chosen
    page = page_of(pipeline.run_job(pipeline.make_job(settings)))
    assert "None of the measured images has a label" in page


# in a browser ---------------------------------------------------------------------------------


def thousand_names():
    names = [f"class {code:04}" for code in range(1000)]
    names[:4] = HOSTILE
    return names


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return what makes the report of a run by name, once, and returns the file."""
    made = {}

    def page(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            if name == "thousand":
                run = make_run(
                    folder, 1000, (16, 16), 2, 3, thousand_names(), noise=180, distances="write"
                )
            else:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("PIXSIM_DATA", str(folder))
                    job = {"name": name, "images": name, "output": str(folder / "run")}
                    job["neighbours"] = {"k": 5}
                    run = pipeline.run_job(pipeline.make_job(job))
            made[name] = run.path / "report.html"
        return made[name]

    return page


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
@pytest.mark.parametrize("width", [pytest.param("desktop", marks=pytest.mark.slow), "phone"])
@pytest.mark.parametrize("name", [
    "digits",
    pytest.param("fashion-mnist", marks=[pytest.mark.datasets, pytest.mark.slow]),
    pytest.param("thousand", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_browser_shows_it_whole(browser, pages, screenshots, request, name, width, scheme):
    if name == "fashion-mnist":
        request.getfixturevalue("real_datasets")
    file = pages(name)
    assert file.stat().st_size <= (5 * MB if name == "thousand" else 3 * MB)
    picture = screenshots / f"{name}-{width}-{scheme}.png"
    look(browser, file, width, scheme, picture).context.close()


@pytest.mark.slow
def test_a_thousand_classes_can_be_searched_and_sorted(browser, pages):
    page = look(browser, pages("thousand"), "desktop", "light")
    page.get_by_label("Find a class").fill("CLASS 0042")
    visible = page.locator("#class-table tbody tr:visible")
    assert visible.count() == 1
    assert page.locator("#class-found").inner_text() == "1 of 1,000 classes"
    page.get_by_label("Find a class").fill("<script>")
    assert "<script>alert(1)</script>" in visible.first.inner_text()
    page.get_by_label("Find a class").fill("")
    button = page.get_by_role("button", name="l2")
    button.focus()
    page.keyboard.press("Enter")
    shares = page.locator("#class-table tbody tr td:nth-child(4)").all_inner_texts()
    values = [float(text.split()[0]) for text in shares]
    assert values == sorted(values)
    page.context.close()


def test_the_name_of_an_image_leads_to_its_row(browser, pages):
    page = look(browser, pages("digits"), "phone", "light")
    link = page.locator(".card a").first
    text = link.inner_text()
    link.focus()
    page.keyboard.press("Enter")
    assert page.locator("tr:target th").inner_text() == text
    page.context.close()


def test_without_scripts_and_on_paper_it_is_whole(browser, pages, screenshots):
    context = browser.new_context(java_script_enabled=False, color_scheme="dark")
    page = context.new_page()
    page.goto(pages("digits").as_uri())
    assert not page.locator(".search").is_visible()
    assert page.locator("#class-table tbody tr").count() == 10
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    paper = page.pdf(path=screenshots / "digits.pdf", format="A4", print_background=True)
    assert paper.startswith(b"%PDF")
    context.close()
