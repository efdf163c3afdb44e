"""The nearest images of an explained one: those that a job finds, and those found by hand."""

from __future__ import annotations

import numpy as np
import pytest
from jobs_for_tests import NAMES, make_images, nearest_by_hand, run

import pipeline
from pipeline.cli import main
from pipeline.core.errors import InputError
from pipeline.report.explanation_picture import IMAGES, explanation_figure
from pipeline.report.plot_style import RIGHT, WRONG


def few_greys(seed=0, shape=(3, 2), **counts):
    """Make images of so few greys that many are equally far; some are without label."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in (counts or {"train": 150, "test": 70}).items():
        labels = rng.integers(-1, len(NAMES), count).astype(np.int32)
        arrays[split] = rng.integers(0, 3, (count, *shape)).astype(np.uint8) * 100, labels
    return arrays


def explained(found, metric):
    return [(n.split, n.sample, n.label_name, n.distance) for n in found.neighbours[metric]]


def by_hand(arrays, key, among, metric, codes=(0, 1, 2, 3)):
    rows = nearest_by_hand(arrays, key, among, metric, codes)
    return [(split, sample, NAMES[label], distance) for split, sample, label, distance in rows]


def same(found, expected):
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected], rel=1e-12)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Run a job on three of four classes that searches two splits; return images, and the run."""
    folder, arrays = tmp_path_factory.mktemp("searched"), few_greys()
    images = make_images(folder / "images.zarr", arrays, shard=32)
    neighbours = {"k": 6, "among": ["test", "train"]}
    settings = {"classes": NAMES[1:], "evaluate": ["train", "test"], "report": False}
    return arrays, run(images, folder / "run", neighbours=neighbours, **settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Run a job without neighbours; return images, and the run."""
    folder, arrays = tmp_path_factory.mktemp("plain"), few_greys(1)
    images = make_images(folder / "images.zarr", arrays)
    return arrays, run(images, folder / "run", report=False)


@pytest.mark.parametrize("split", ["train", "test"])
def test_they_are_those_of_the_tables_and_those_found_by_hand(searched, split):
    arrays, made = searched
    tables = made.neighbours.compute()
    labels = arrays[split][1]
    for sample in np.flatnonzero(labels != 0)[:12].tolist():  # those that were measured
        found = pipeline.explain(made.path, split, sample, neighbours=6)
        assert list(found.neighbours) == ["l1", "l2"]
        for metric in found.neighbours:
            rows = explained(found, metric)
            mine = tables[(tables["split"] == split) & (tables["sample"] == sample)]
            mine = mine[mine["metric"] == metric].sort_values("rank")
            names = [NAMES[code] for code in mine["neighbour_label"]]
            columns = mine["neighbour_split"], mine["neighbour"], names, mine["distance"]
            assert rows == list(zip(*columns, strict=True))
            hand = by_hand(arrays, (split, sample), ["test", "train"], metric, {1, 2, 3})
            same(rows, hand[:6])


def test_of_an_image_that_the_run_did_not_measure_they_are_found_too(searched):
    arrays, made = searched
    sample = int(np.flatnonzero(arrays["test"][1] == 0)[0])
    found = pipeline.explain(made.path, "test", sample, neighbours=4)
    assert found.label_name == NAMES[0]
    hand = by_hand(arrays, ("test", sample), ["test", "train"], "l2", {1, 2, 3})
    same(explained(found, "l2"), hand[:4])


@pytest.mark.parametrize(("split", "sample"), [("test", 3), ("train", 0), ("train", 149)])
def test_without_neighbours_in_the_run_its_prototypes_images_are_searched(plain, split, sample):
    arrays, made = plain
    found = pipeline.explain(made.path, split, sample, neighbours=5)
    for metric in ("l1", "l2"):
        same(explained(found, metric), by_hand(arrays, (split, sample), ["train"], metric)[:5])
    for near in found.neighbours["l1"]:
        assert np.array_equal(near.image, arrays["train"][0][near.sample])


def test_the_same_image_a_second_time_is_a_neighbour_at_distance_zero(tmp_path):
    arrays = few_greys(2, train=20, test=5)
    arrays["train"][0][7] = arrays["train"][0][4]
    arrays["train"][1][[4, 7]] = 0
    made = run(make_images(tmp_path / "images.zarr", arrays), tmp_path / "run", report=False)
    nearest = pipeline.explain(made.path, "train", 7, neighbours=1).neighbours["l1"][0]
    assert nearest.distance == 0
    assert (nearest.split, nearest.sample) != ("train", 7)


def test_of_fewer_images_than_asked_for_all_are_there(plain):
    arrays, made = plain
    found = pipeline.explain(made.path, "train", 5, neighbours=10**9)
    labelled = int((arrays["train"][1] >= 0).sum()) - int(arrays["train"][1][5] >= 0)
    assert {len(images) for images in found.neighbours.values()} == {labelled}
    same(explained(found, "l1"), by_hand(arrays, ("train", 5), ["train"], "l1"))


def test_where_there_is_no_other_image_there_are_none_and_the_command_says_so(tmp_path, capsys):
    one = np.arange(6, dtype=np.uint8).reshape(1, 3, 2), np.zeros(1, np.int32)
    images = make_images(tmp_path / "images.zarr", {"train": one, "test": one}, names=NAMES[:1])
    made = run(images, tmp_path / "run", report=False)
    found = pipeline.explain(made.path, "train", 0, neighbours=3)
    assert found.neighbours == {"l1": (), "l2": ()}
    words = ["explain", str(made.path), "--split", "train", "--sample", "0", "--neighbours", "3"]
    assert main([*words, "--picture", str(tmp_path / "a.png")]) == 0
    assert "there is no other image of the run's classes" in capsys.readouterr().out


def test_none_are_found_unless_asked_for_and_less_than_none_is_refused(plain, monkeypatch):
    _, made = plain
    with pytest.raises(InputError, match=r"neighbours is -2, expected .* 0 or more; leave it out"):
        pipeline.explain(made.path, "test", 0, neighbours=-2)
    monkeypatch.setattr("pipeline.report.explanation.search", None)
    assert pipeline.explain(made.path, "test", 0).neighbours == {}
    assert pipeline.explain(made.path, "test", 0, neighbours=0).neighbours == {}


def captions(figure):
    """Return the pictures and the texts below them of the row of nearest images."""
    _, nearest, _, _ = figure.subfigs
    drawn = [ax for ax in nearest.axes if ax.images]
    return drawn, [ax.get_xlabel() for ax in drawn]


def test_the_picture_has_a_row_of_the_nearest_by_the_first_metric(plain):
    arrays, made = plain
    sample = int(np.flatnonzero(arrays["test"][1] == 1)[0])
    found = pipeline.explain(made.path, "test", sample, neighbours=12)
    drawn, texts = captions(explanation_figure(found))
    near = found.neighbours["l1"]
    assert texts == [f"{n.label_name}\n{n.distance:.4f}" for n in near]
    for ax, one in zip(drawn, near, strict=True):
        assert np.array_equal(np.asarray(ax.images[0].get_array()), 255 - one.image)
    colours = [ax.xaxis.label.get_color() for ax in drawn]
    assert colours == [RIGHT if one.label_name == NAMES[1] else WRONG for one in near]
    assert len(set(colours)) == 2
    assert len(explanation_figure(pipeline.explain(made.path, "test", sample)).subfigs) == 3


def test_of_very_many_the_picture_has_the_first(plain):
    _, made = plain
    found = pipeline.explain(made.path, "test", 2, neighbours=IMAGES + 5)
    drawn, _ = captions(explanation_figure(found))
    assert len(drawn) == IMAGES


def test_an_image_of_a_class_that_the_run_is_not_about_is_said_to_be_one(searched, capsys):
    arrays, made = searched
    for code, said in ((0, True), (1, False), (-1, False)):
        sample = str(int(np.flatnonzero(arrays["test"][1] == code)[0]))
        assert main(["explain", str(made.path), "--split", "test", "--sample", sample]) == 0
        line = f"that is none of the run's classes ({', '.join(NAMES[1:])})"
        assert (line in capsys.readouterr().out) is said
        found = pipeline.explain(made.path, "test", int(sample))
        titled = explanation_figure(found).get_suptitle()
        assert titled.endswith("none of the run's classes") is said is found.is_outside
