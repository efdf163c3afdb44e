"""The page of an audit: what it says is what the audit found, in one small file."""

from __future__ import annotations

import itertools
import re
import shutil

import numpy as np
import pytest
from pages_for_tests import HOSTILE, Page, audit_of, look, make_arrays, with_findings

from pipeline.core.errors import DamagedError
from pipeline.report import audit_rows
from pipeline.report.audit_content import answer
from pipeline.report.audit_page import ShownImages, render_audit
from pipeline.report.opened_audit import open_audit
from pipeline.report.shown_samples import SampleReader
from pipeline.storage import audit_files, tables

MB = 10**6


@pytest.fixture(autouse=True, scope="module")
def drawn_reports():
    """Here they are drawn."""


def page_of(audit):
    return Page((audit.path / "audit.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return audit_of(tmp_path_factory.mktemp("usual"), with_findings(), variants=["mirror"])


# what it says -----------------------------------------------------------------------------------


def test_the_manifest_vouches_for_it_and_made_again_it_is_the_same(usual):
    assert "audit.html" in usual.manifest["files"]
    text = (usual.path / "audit.html").read_text(encoding="utf-8")
    assert render_audit(open_audit(usual.path)) == text


def test_the_worst_is_said_first_and_counts_are_those_of_the_audit(usual):
    page, summary = page_of(usual), usual.summary
    leaks = summary["between"]["test in train"]["images"]
    assert leaks >= 3
    share = f"{100 * leaks / 40:.1f} %"
    assert page.answer == (
        f"{leaks} of 40 images of ‘test’ ({share}) are the same, or nearly the same, as images of "
        "‘train’."
    )
    copies = summary["copies"]
    expected = [
        copies["images"], copies["pairs"], copies["copies_to_remove"],
        summary["labels"]["images"], summary["outliers"]["images"], 0,
    ]  # fmt: skip
    assert page.facts[1::2] == [f"{count:,}" for count in expected]
    assert len({*page.facts[::2]}) == 6
    assert f"{copies['images']} images are in {copies['pairs']} pairs" in page.text
    assert f"join into {copies['groups']} groups" in page.text


def test_sections_are_in_order_and_every_link_leads_to_one(usual):
    page = page_of(usual)
    sections = re.findall(r'<section id="(\w+)"', page.text)
    assert sections == [
        "leaks", "copies", "groups", "labels", "outliers", "thresholds", "clean", "how",
    ]  # fmt: skip
    assert page.links == ["#main", *(f"#{name}" for name in sections)]
    assert len(page.ids) == len({*page.ids})
    levels = [int(level) for level in re.findall(r"<h(\d)", page.text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize(("section", "leaks"), [("leaks", True), ("copies", False)])
def test_pairs_stand_in_the_order_of_their_scores(usual, section, leaks):
    page, table = page_of(usual), usual.table("pairs")
    table = table[(table["split"] != table["other_split"]) == leaks]
    most = audit_rows.MOST_LEAKS if leaks else audit_rows.MOST_COPIES
    found = table[table["finding"]]
    below = table[~table["finding"] & (table["score"] > 0)]
    items = page.items[section]
    assert len(items) == min(len(found), most) + min(len(below), audit_rows.BELOW)
    shown = [*found.head(most).itertuples(), *below.head(audit_rows.BELOW).itertuples()]
    for item, row in zip(items, shown, strict=True):
        assert f"{row.split} {row.sample}, " in item
        assert f"{row.other_split} {row.other_sample}, " in item
        assert row.source in item
        assert row.other_source in item
        if row.kind == "exact":
            assert "the same, pixel by pixel" in item
        else:
            assert f"distance {row.distance:.4f}, score {row.score:.3f}" in item
        assert ("one is mirrored" in item) == row.mirrored
        assert ("labels differ" in item) == (row.label != row.other_label)
    alts = page.images[section]
    assert len(alts) == 3 * len(items)
    assert alts[2::3] == ["difference of these two images"] * len(items)
    (mine, *_) = [row for row in page.rows[section][1:] if leaks or row[0] == "train"]
    known = usual.summary["between"]["test in train" if leaks else "train in train"]
    assert mine[2].startswith(f"{known['images']} of ")
    assert mine[4] == f"{known['pairs']:,}"


def test_what_was_planted_is_shown(usual):
    page = page_of(usual)
    leaks = page.items["leaks"]
    assert any("test 3, " in item and "labels differ" in item for item in leaks)
    assert any("test 5, " in item and "train 7, " in item for item in leaks)
    assert any("test 6, " in item and "one is mirrored" in item for item in leaks)
    assert any("train 60 " in item for item in page.items["labels"])
    assert any("train 70, " in item for item in page.items["outliers"])


def test_more_pairs_than_are_shown_are_counted(usual):
    between = usual.summary["between"]
    count = sum(between[name]["pairs"] for name in ("test in test", "train in train"))
    assert count > audit_rows.MOST_COPIES
    heading = page_of(usual).headings["copies"][0]
    assert heading == f"The surest pairs – 12 of {count} pairs; all are in pairs.parquet"


def test_groups_are_those_with_several_labels_and_then_the_largest(usual):
    page, table = page_of(usual), usual.table("groups")
    conflict = table[table["label_conflict"]]["group"].nunique()
    assert conflict >= 1
    assert page.headings["groups"][0].startswith("Groups with different labels")
    assert "The largest groups of one label" in page.headings["groups"]
    said = [text for text in page.paragraphs["groups"] if "distances" in text]
    assert len(said) == table["group"].nunique()
    sizes = [int(text.split()[0]) for text in said]
    for part in (sizes[:conflict], sizes[conflict:]):
        assert part == sorted(part, reverse=True)
    largest = int(table["size"].max())
    assert largest >= 17
    assert f"and {largest - 12} more" in page.items["groups"]
    assert page.text.count('class="member kept"') == table["group"].nunique()


def test_of_each_label_of_a_group_some_are_shown():
    labels = np.array([0] * 40 + [1, 2], np.int64)
    columns = {
        "group": np.zeros(42, np.int64), "label": labels, "representative": np.arange(42) == 30,
    }  # fmt: skip
    rows, counts = audit_rows._members(columns, 0)
    assert rows[0] == 30
    assert {40, 41} <= {*rows[:4].tolist()}
    assert len(rows) == audit_rows.MEMBERS
    assert counts == {0: 40, 1: 1, 2: 1}


def test_those_that_vote_against_a_label_are_the_nearest_with_the_suggested_one(usual):
    table = usual.table("labels").rename(columns={"suggested": "code"})
    row = table[(table["split"] == "train") & (table["sample"] == 60)].iloc[0]
    wanted = [{"split": "train", "sample": 60, "suggested": int(row["code"])}]
    votes = audit_rows.read_votes(usual.path, usual.manifest, usual.summary["splits"], "l1", wanted)
    near = votes["train", 60]
    assert len(near) == audit_rows.NEAREST
    assert near[0].distance == row["suggested_distance"]
    assert [n.distance for n in near] == sorted(n.distance for n in near)
    assert {n.label for n in near} == {int(row["code"])}
    page = page_of(usual)
    (item,) = [item for item in page.items["labels"] if re.search(r"score [\d.]+ train 60 ", item)]
    for each in near:
        assert f"{each.distance:.4f}{each.key[0]} {each.key[1]}" in item.replace(" \n", "")
    assert f"votes {row['votes']} against {row['suggested_votes']}" in item


def test_what_a_cleaned_set_would_hold(usual):
    page, summary = page_of(usual), usual.summary
    rows = {row[0]: row[1:] for row in page.rows["clean"][1:]}
    table = usual.table("keep")
    for name, count in summary["splits"].items():
        mine = table[table["split"] == name]
        assert rows[name][0] == f"{count:,}"
        assert rows[name][1] == str(int(mine["keep"].sum()))
        for reason, text in zip(("leak", "copy", "label conflict", "unreadable"), rows[name][3:],
                                strict=True):  # fmt: skip
            assert text == str(int((mine["reason"] == reason).sum()))
    assert f"pixsim run JOB.yml --without {usual.path}" in page.paragraphs["clean"]


def test_the_charts_say_what_they_show(usual):
    text, between = page_of(usual).text, usual.summary["between"]
    assert text.count('<svg class="chart"') == len(between) + 1
    for known in between.values():
        assert f"The threshold of {known['threshold']:.3f} was chosen from these scores" in text
    assert "Nearest images in ‘train’" in text


# what it is -------------------------------------------------------------------------------------


def test_it_loads_nothing_and_names_are_text(usual):
    page = page_of(usual)
    assert all(address.startswith("data:image/") for address in page.loaded)
    bare = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page.text)
    assert not re.search(r"(https?:)?//[a-z]", bare)
    assert "<script" not in page.text
    assert "@import" not in page.text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page.text)
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert "&lt;script&gt;alert(1)" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "<img src=x" not in page.text


def test_hostile_names_of_splits_and_files_are_text(tmp_path):
    arrays = with_findings()
    hostile = "<b>test<b> in train"
    arrays[hostile] = arrays.pop("test")
    page = page_of(audit_of(tmp_path, arrays, name="<i>name</i>"))
    assert "<b>test" not in page.text
    assert "<i>name" not in page.text
    assert f"‘{hostile}’" in page.answer


def test_nothing_found_is_said(tmp_path):
    arrays = make_arrays(train=30, test=12, noise=25)
    page = page_of(audit_of(tmp_path, arrays, near=0.99, labels=1.0, outliers=1.0))
    assert page.answer == (
        "Nothing was found: no copy among 42 images, no wrong label, no outlier."
    )
    assert page.facts[1::2] == ["0"] * 6
    assert "No pair reaches the threshold." in page.paragraphs["leaks"]
    assert "There are no groups, as there are no pairs." in page.paragraphs["groups"]
    assert page.headings["leaks"] == [
        "Just below the threshold – the next pairs, to judge the threshold by; they do not count"
    ]
    assert "0.990 was given" in page.text


def test_of_one_split_nothing_leaks(tmp_path):
    arrays = with_findings()
    del arrays["test"]
    page = page_of(audit_of(tmp_path, arrays))
    assert "leaks" not in page.ids
    assert "#leaks" not in page.links
    assert page.answer.endswith("the same, or nearly the same, as another one of the same split.")
    assert page.items["copies"]
    assert page.text.count('<svg class="chart"') == 1


def test_without_labels_there_are_no_suspects(tmp_path):
    arrays = {s: (i, np.full(len(i), -1, np.int32)) for s, (i, _) in with_findings().items()}
    page = page_of(audit_of(tmp_path, arrays, ["a"]))
    assert page.paragraphs["labels"] == ["The images have no labels."]
    assert any("no label" in item for item in page.items["leaks"])
    assert not any("labels differ" in item for item in page.items["leaks"])


@pytest.mark.parametrize(("shape", "dtype"), [
    ((1, 1), np.uint8), ((1, 200), np.uint8), ((70, 90, 3), np.uint16), ((6, 5), np.uint16),
    ((5, 6, 3), np.uint8), ((4, 4, 4), np.uint8), ((90, 3, 1), np.uint8),
], ids=str)  # fmt: skip
def test_images_of_every_kind_are_shown(tmp_path, shape, dtype):
    arrays = with_findings(shape=shape, dtype=dtype, noise=60)
    page = page_of(audit_of(tmp_path, arrays, ["a", "b", "c"]))
    assert page.items["leaks"]
    assert "no image" not in page.text
    assert page.text.rstrip().endswith("</html>")


def test_samples_that_cannot_be_read_are_counted(usual):
    summary = dict(usual.summary) | {"left_out": {"unreadable": 2}}
    summary["between"] = {name: known | {"images": 0} for name, known in summary["between"].items()}
    none = {"images": 0}
    summary |= {"copies": none, "labels": none, "outliers": none}
    assert answer(summary) == "2 images could not be read; nothing else was found."
    summary["outliers"] = {"images": 1}
    assert answer(summary) == "1 of 130 images (0.8 %) is like no other image."
    summary["labels"] = {"images": 2}
    assert answer(summary) == "2 of 130 images (1.5 %) have a label that does not fit."


def test_unreadable_samples_are_counted_in_their_split(tmp_path):
    sample = np.array([0, -1, 1, -1], np.int64)
    columns = {
        "split": tables.dictionary(np.array([0, 0, 0, 1]), ["train", "test"]),
        "sample": tables.nullable(sample, sample < 0),
    }
    tables.write_part(tmp_path / audit_files.table_file("keep"), columns, {})
    assert audit_rows.unreadable_by_split(tmp_path) == {"train": 1, "test": 1}


# what may go wrong ------------------------------------------------------------------------------


def test_without_the_image_set_it_has_no_pictures_and_says_so(tmp_path):
    audit = audit_of(tmp_path, with_findings())
    shutil.rmtree(tmp_path / "images.zarr")
    page = Page(render_audit(open_audit(audit.path)))
    assert "the image set is not where it was" in page.text
    assert page.images == {}
    assert page.items["leaks"]


def test_what_it_shows_is_checked(tmp_path):
    audit = audit_of(tmp_path, with_findings())
    file = audit.path / "audit.json"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(DamagedError, match=r"audit\.json: was changed"):
        render_audit(open_audit(audit.path))


def test_a_page_that_cannot_be_made_loses_no_audit(tmp_path, monkeypatch):
    def fail(audit, content=None):
        raise ZeroDivisionError("no page")

    monkeypatch.setattr("pipeline.report.audit_page.render_audit", fail)
    audit = audit_of(tmp_path, with_findings())
    assert "audit.html" not in audit.manifest["files"]
    assert not (audit.path / "audit.html").exists()
    assert audit.summary["copies"]["pairs"]


def test_few_images_are_held_at_once(tmp_path, monkeypatch):
    audit = audit_of(tmp_path, with_findings())
    read, original = [], SampleReader.images

    def noted(self, wanted):
        read.append(len(wanted))
        return original(self, wanted)

    before = render_audit(open_audit(audit.path))
    monkeypatch.setattr(SampleReader, "images", noted)
    monkeypatch.setattr("pipeline.report.audit_page._READ_BYTES", 5 * 72)
    assert render_audit(open_audit(audit.path)) == before
    assert max(read) == 5
    assert ShownImages(None, "gone").picture(("train", 0)) is None


# how large it is --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    arrays = make_arrays(train=3000, test=1500, classes=1000, shape=(16, 16, 3))
    train, labels = arrays["train"]
    train[2000:] = train[:1000]
    labels[2500:] = (labels[500:1000] + 1) % 1000
    arrays["test"][0][:700] = train[1000:1700]
    names = [*HOSTILE, *(f"class {code:04}" for code in range(997))]
    return audit_of(tmp_path_factory.mktemp("thousand"), arrays, names)


@pytest.mark.slow
def test_a_thousand_classes_and_findings_make_a_small_page(thousand):
    page = page_of(thousand)
    assert thousand.summary["copies"]["pairs"] > 1500
    assert len(page.text) < 3 * MB
    shown = sum(map(len, page.images.values()))
    assert 200 < shown < 700


# in a browser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", ["desktop", "phone"])
@pytest.mark.parametrize("name", ["usual", pytest.param("thousand", marks=pytest.mark.slow)])
def test_a_browser_shows_it_whole(browser, screenshots, request, name, width, scheme):
    file = request.getfixturevalue(name).path / "audit.html"
    picture = screenshots / f"audit-{name}-{width}-{scheme}.png"
    look(browser, file, width, scheme, picture).context.close()
