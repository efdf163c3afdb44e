"""The nearest images on the page: how much better they are, and those of each sample shown."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from jobs_for_tests import NAMES, make_arrays, make_images, nearest_by_hand, run

import pipeline
from pipeline.core.errors import DamagedError
from pipeline.jobs import search_plan
from pipeline.report.nearest_images import points
from pipeline.report.shown_samples import read_neighbours
from pipeline.storage import tables

HOSTILE = ["<b>ash</b>", '"><img src=x>', "{{ 7 * 7 }} & more", "cedar " * 30]


@pytest.fixture(autouse=True, scope="module")
def drawn_reports():
    """Here they are drawn."""


class Page(HTMLParser):
    """The rows of the tables of the section, and the cards with their nearest images."""

    def __init__(self, text):
        super().__init__()
        self.section, self.rows, self.cards, self.inside, self.in_cell = "", [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        if tag == "section":
            self.section = known["id"]
        if tag == "tr" and self.section == "nearest":
            self.rows.append([])
        if tag in ("th", "td") and self.section == "nearest":
            self.rows[-1].append("")
            self.in_cell = True
        if known.get("class") == "card":
            self.cards.append({"key": "", "near": [], "section": self.section})
        if tag == "ol" and known.get("class") == "near":
            assert known["aria-label"]
            self.inside = ["near"]
        if tag == "li" and self.inside:
            self.cards[-1]["near"].append({"kind": known["class"], "texts": [], "alt": None})
        if tag == "img" and self.inside:
            self.cards[-1]["near"][-1]["alt"] = known["alt"]
        if tag == "a" and self.section == "samples" and known["href"] != "#table":
            self.inside = ["key"]

    def handle_endtag(self, tag):
        if tag in ("ol", "a"):
            self.inside = []
        if tag in ("th", "td"):
            self.in_cell = False

    def handle_data(self, data):
        if self.section == "nearest" and self.in_cell:
            self.rows[-1][-1] += data.strip()
        if self.inside == ["key"]:
            self.cards[-1]["key"] += data
        elif self.inside and data.strip():
            self.cards[-1]["near"][-1]["texts"].append(data.strip())


def text_of(made):
    return (made.path / "report.html").read_text(encoding="utf-8")


def page_of(made):
    return Page(text_of(made))


def blurred(seed=3, **counts):
    """Make images of classes that overlap, so that some are taken for others by any means."""
    arrays, rng = make_arrays(seed, **counts), np.random.default_rng(seed)
    for split, (images, labels) in arrays.items():
        noise = rng.integers(0, 256, images.shape)
        arrays[split] = ((images + 3 * noise) // 4).astype(np.uint8), labels
    return arrays


def make_run(folder, names=NAMES, arrays=None, **settings):
    arrays = arrays or blurred()
    images = make_images(folder / "images.zarr", arrays, names=names)
    return arrays, run(images, folder / "run", **{"neighbours": {"k": 5}, **settings})


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Return the images of a run with neighbours that searched in several parts, and the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_plan, "_LEAST_QUERIES", 10)
        return make_run(tmp_path_factory.mktemp("usual"))


def share(value):
    return "–" if value is None else f"{100 * value:.1f} %"


# how much better they are -----------------------------------------------------------------------


def test_the_votes_stand_beside_the_prototypes(usual):
    _, made = usual
    metrics, rows = made.metrics, page_of(made).rows
    expected = [["by", "l1", "l2"]]
    expected.append(["nearest prototype", *(share(metrics[m]["accuracy"]) for m in ("l1", "l2"))])
    names = {"1": "nearest image", "3": "votes of the 3 nearest", "5": "votes of the 5 nearest"}
    for votes, name in names.items():
        known = [metrics["neighbours"][m][votes]["accuracy"] for m in ("l1", "l2")]
        expected.append([name, *map(share, known)])
    assert rows[:5] == expected


def test_each_class_has_what_it_gains_by_the_best_votes(usual):
    _, made = usual
    metrics = made.metrics
    main = max(("l1", "l2"), key=lambda m: metrics[m]["accuracy"])
    known = metrics["neighbours"][main]
    best = max(known, key=lambda votes: known[votes]["accuracy"])
    rows = page_of(made).rows[5:]
    head, *classes = rows
    by = "nearest image" if best == "1" else f"votes of the {best} nearest"
    assert head[2:] == [f"nearest prototype ({main})", f"{by} ({main})", "gain, percentage points"]
    assert {row[0] for row in classes} == {*NAMES}
    for name, count, prototype, votes, gain in classes:
        before, after = (m["per_class"][name]["accuracy"] for m in (metrics[main], known[best]))
        assert (prototype, votes) == (share(before), share(after))
        assert count == str(metrics[main]["per_class"][name]["count"])
        assert float(gain.replace("−", "-")) == pytest.approx(100 * (after - before), abs=0.051)
    gain = 100 * (known[best]["accuracy"] - metrics[main]["accuracy"])
    kind = "loss" if gain < 0 else "gain"
    assert f"a {kind} of {abs(gain):.1f} percentage points" in text_of(made)


@pytest.mark.parametrize(("gain", "text"), [
    (None, "–"), (0.0, "0.0"), (-0.04, "0.0"), (0.04, "0.0"), (1.26, "+1.3"), (-12.34, "−12.3"),
])  # fmt: skip
def test_a_gain_has_its_sign(gain, text):
    assert points(gain) == text


def test_other_metrics_than_those_of_the_job_stand_where_they_are_known(tmp_path):
    _, made = make_run(tmp_path, metrics=["l1"], neighbours={"k": 1, "metrics": ["l2"]})
    metrics, page = made.metrics, page_of(made)
    assert page.rows[:3] == [
        ["by", "l1", "l2"],
        ["nearest prototype", share(metrics["l1"]["accuracy"]), "–"],
        ["nearest image", "–", share(metrics["neighbours"]["l2"]["1"]["accuracy"])],
    ]
    assert page.rows[3][2:4] == ["nearest prototype (l1)", "nearest image (l2)"]
    assert "By the votes of the k nearest means" not in text_of(made)


def test_images_without_labels_have_no_accuracy_and_no_gain(tmp_path):
    arrays = blurred()
    arrays["test"][1][:] = -1
    _, made = make_run(tmp_path, arrays=arrays, evaluate="test")
    page = page_of(made)
    assert {cell for row in page.rows[1:4] for cell in row[1:]} == {"–"}
    assert {row[-1] for row in page.rows[6:]} == {"–"}
    assert "percentage points:" not in text_of(made)


def test_a_run_without_neighbours_has_nothing_of_this(tmp_path):
    _, made = make_run(tmp_path, neighbours=None)
    text = re.sub(r"<style>.*?</style>", "", text_of(made), flags=re.DOTALL)
    assert "nearest images" not in text.lower()
    assert 'class="near"' not in text
    assert page_of(made).cards


# those of each sample ---------------------------------------------------------------------------


def check_cards(arrays, made, among, metric, codes, most=3):
    """Compare the nearest images of each card with those found by hand; return the cards."""
    cards = [card for card in page_of(made).cards if card["section"] == "samples"]
    assert cards
    for card in cards:
        split, sample = card["key"].split()
        label = arrays[split][1][int(sample)]
        hand = nearest_by_hand(arrays, (split, int(sample)), among, metric, codes)[:most]
        assert [near["texts"] for near in card["near"]] == [
            [NAMES[code], f"{distance:.4f}", f"{where} {at}"] for where, at, code, distance in hand
        ]
        kinds = ["right" if code == label else "wrong" for _, _, code, _ in hand]
        assert [near["kind"] for near in card["near"]] == kinds
    return cards


def has_pictures(card):
    """Tell whether each of the nearest images of a card has a picture that says which it is."""
    for near in card["near"]:
        name, _, where = near["texts"]
        split, sample = where.split()
        assert near["alt"] in (None, f"{split} image {sample}, labelled {name}")
    return all(near["alt"] for near in card["near"])


def test_each_card_has_the_three_nearest_images(usual):
    arrays, made = usual
    main = max(("l1", "l2"), key=lambda m: made.metrics[m]["accuracy"])
    cards = check_cards(arrays, made, ["train"], main, {0, 1, 2, 3})
    assert len(cards) > 20
    assert all(map(has_pictures, cards))
    assert {near["kind"] for card in cards for near in card["near"]} == {"right", "wrong"}


@pytest.mark.parametrize(("settings", "metric", "most"), [
    ({"classes": ["birch", "dogwood"], "metrics": ["l2"]}, "l2", 3),
    ({"evaluate": ["train", "test"], "metrics": "l1",
      "neighbours": {"k": 4, "among": ["test", "train"]}}, "l1", 3),
    ({"evaluate": ["test", "train"], "metrics": ["l2"],
      "neighbours": {"k": 2, "metrics": ["l2", "l1"]}}, "l2", 2),
    ({"metrics": ["l2"], "neighbours": {"k": 3, "metrics": "l1"}, "distances": "skip"}, "l1", 3),
], ids=["two classes", "two splits", "only two", "another metric"])  # fmt: skip
def test_cards_of_runs_of_every_kind_have_theirs(tmp_path, monkeypatch, settings, metric, most):
    monkeypatch.setattr(search_plan, "_LEAST_QUERIES", 20)
    arrays, made = make_run(tmp_path, **settings)
    among = settings.get("neighbours", {}).get("among", ["train"])
    codes = [NAMES.index(name) for name in settings.get("classes", NAMES)]
    check_cards(arrays, made, among, metric, codes, most)


def test_where_there_are_fewer_than_three_those_there_are_stand(tmp_path):
    arrays = blurred(5, train=2, test=30, classes=2)
    arrays["train"][1][:] = [0, 1]
    names = NAMES[:2]
    _, made = make_run(tmp_path, names, arrays, metrics=["l1"])
    cards = check_cards(arrays, made, ["train"], "l1", {0, 1})
    assert {len(card["near"]) for card in cards} == {2}


def test_without_the_image_set_names_and_distances_are_there_without_pictures(tmp_path):
    arrays, made = make_run(tmp_path, metrics=["l2"])
    shutil.rmtree(tmp_path / "images.zarr")
    pipeline.write_report(made.path)
    cards = check_cards(arrays, made, ["train"], "l2", {0, 1, 2, 3})
    assert not any(map(has_pictures, cards))


def test_names_of_classes_are_text(tmp_path):
    _, made = make_run(tmp_path, HOSTILE)
    text = text_of(made)
    assert "<b>ash" not in text
    assert "<img src=x" not in text
    assert any(near["texts"][0] == "<b>ash</b>" for c in page_of(made).cards for near in c["near"])


def test_only_tables_that_have_a_wanted_sample_are_read(usual, monkeypatch):
    arrays, made = usual
    partitions = made.manifest["neighbours"]["partitions"]
    assert len(partitions) > 3
    read, original = [], tables.read_part

    def noted(path, *columns):
        read.append(path.name)
        return original(path, *columns)

    monkeypatch.setattr(tables, "read_part", noted)
    samples = [partitions[1]["stop"] - 1, partitions[3]["start"], partitions[1]["start"]]
    wanted = [(0, ("test", sample)) for sample in samples]
    found = read_neighbours(made.path, made.manifest, wanted, "l2", 5)
    assert read == [tables.part_name(1), tables.part_name(3)]
    for sample in samples:
        hand = nearest_by_hand(arrays, ("test", sample), ["train"], "l2", {0, 1, 2, 3})[:5]
        near = found["test", sample]
        assert [(*n.key, n.label) for n in near] == [row[:3] for row in hand]
    assert read_neighbours(made.path, {"partitions": []}, wanted, "l2", 5) == {}


def test_what_was_changed_or_is_not_there_is_noticed(tmp_path):
    _, made = make_run(tmp_path)
    with pytest.raises(DamagedError, match="has no neighbours of sample 1000 of 'test'"):
        read_neighbours(made.path, made.manifest, [(0, ("test", 1000))], "l1", 3)
    (part,) = (made.path / "neighbours").iterdir()
    content = bytearray(part.read_bytes())
    content[100:2000] = bytes(byte ^ 1 for byte in content[100:2000])
    part.write_bytes(content)
    with pytest.raises(DamagedError, match=r"part-000000\.parquet: cannot be read"):
        pipeline.write_report(made.path)
