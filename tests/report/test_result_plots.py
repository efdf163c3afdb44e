"""Plots of a run's outcome: bars, heat maps and distributions show the numbers given."""

from __future__ import annotations

import numpy as np
import pytest
from axes_for_tests import (
    drawn,
    fresh,
    make_explanation,
    many_metrics,
    names,
    nothing_left,  # noqa: F401  (after each test)
    texts,
)
from matplotlib.colors import to_hex

from pipeline.core.errors import InputError
from pipeline.ops.predictions import summarise
from pipeline.report import plots


def bars(ax):
    """Return the length, colour and place of each bar."""
    return [
        (bar.get_width(), to_hex(bar.get_facecolor()), bar.get_y() + bar.get_height() / 2)
        for bar in ax.patches
    ]


# distances -------------------------------------------------------------------------------------


def test_distances_are_bars_from_the_nearest_with_prediction_and_label_marked():
    found = make_explanation([0.3, 0.1, 0.2], "class 0")
    ax = plots.distances(found, "l1", ax=fresh())
    assert [length for length, _, _ in bars(ax)] == [0.1, 0.2, 0.3]
    assert [colour for _, colour, _ in bars(ax)] == [plots.WRONG, plots.MUTED, plots.RIGHT]
    assert [place for *_, place in bars(ax)] == [0, 1, 2]
    assert names(ax.yaxis) == ["class 1", "class 2", "class 0"]
    assert ax.get_ylim() == (2.5, -0.5)  # the nearest at the top
    said = [text.strip() for text in texts(ax)]
    assert said == ["0.1000  predicted", "0.2000", "0.3000  label"]


def test_a_right_prediction_is_in_the_colour_of_what_is_right_and_an_unlabelled_in_neither():
    ax = plots.distances(make_explanation([0.3, 0.1], "class 1"), "l1", ax=fresh())
    assert [colour for _, colour, _ in bars(ax)] == [plots.RIGHT, plots.MUTED]
    assert texts(ax)[0].strip() == "0.1000  predicted, label"
    for label in (None, "of no class here"):
        ax = plots.distances(make_explanation([0.3, 0.1], label), "l1", ax=fresh())
        assert [colour for _, colour, _ in bars(ax)] == [plots.ACCENT, plots.MUTED]


def test_of_many_classes_the_nearest_ten_and_the_label_with_its_rank_are_drawn():
    values = np.linspace(0.9, 0.1, 1000)
    ax = plots.distances(make_explanation(values, "class 3"), "l1", ax=fresh())
    assert names(ax.yaxis) == [f"class {n}" for n in range(999, 989, -1)] + ["class 3"]
    assert [length for length, *_ in bars(ax)] == [*values[:989:-1], values[3]]
    assert texts(ax)[-1].endswith("label, rank 997")
    near = plots.distances(make_explanation(values, "class 995"), "l1", ax=fresh())
    assert len(bars(near)) == 10


def test_each_metric_has_its_distances_and_a_class_without_images_has_none():
    found = make_explanation([[0.1, 0.2], [np.nan, 0.5]], "class 0", metrics=("l1", "l2"))
    ax = plots.distances(found, "l2", ax=fresh())
    assert [length for length, *_ in bars(ax)] == [0.5]
    assert names(ax.yaxis) == ["class 1"]
    with pytest.raises(InputError, match="metric 'l3', expected one of l1, l2"):
        plots.distances(found, "l3")


def test_ties_go_to_the_first_class_as_predictions_do():
    ax = plots.distances(make_explanation([0.5, 0.2, 0.2], "class 2"), "l1", ax=fresh())
    assert names(ax.yaxis) == ["class 1", "class 2", "class 0"]


# accuracy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 10, 40])
def test_accuracies_are_bars_from_the_best_beside_chance(number):
    metrics, counts = many_metrics(number)
    shares = np.diagonal(counts) / counts.sum(axis=1)
    order = np.argsort(-shares, kind="stable")
    ax = plots.accuracy(metrics, ax=fresh())
    assert np.allclose([length for length, *_ in bars(ax)], shares[order])
    assert names(ax.yaxis) == [f"class {n}" for n in order]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    (line,) = ax.lines
    assert list(line.get_xdata()) == [1 / number] * 2
    assert texts(ax)[-1] == f"chance {1 / number:.2g}"
    first = order[0]
    assert texts(ax)[0].strip() == f"{shares[first]:.3f} of {counts[first].sum():,}"


def test_of_many_classes_the_best_and_the_worst_twenty_are_drawn_and_the_rest_counted():
    metrics, counts = many_metrics(1000)
    shares = np.diagonal(counts) / counts.sum(axis=1)
    order = np.argsort(-shares, kind="stable")
    ax = plots.accuracy(metrics, ax=fresh(6, 9))
    drawn_order = [*order[:20], *order[-20:]]
    assert np.allclose([length for length, *_ in bars(ax)], shares[drawn_order])
    assert names(ax.yaxis) == [
        *(f"class {n}" for n in order[:20]), "", *(f"class {n}" for n in order[-20:])
    ]  # fmt: skip
    assert "960 classes between these" in texts(ax)
    places = [place for *_, place in bars(ax)]
    assert places == [*range(20), *range(21, 41)]


def test_the_metric_asked_for_is_drawn_and_classes_without_images_are_counted():
    counts = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    metrics = {"l1": summarise(counts, "abc"), "l2": summarise(counts.T, "abc"), "splits": {}}
    ax = plots.accuracy(metrics, ax=fresh())
    assert [length for length, *_ in bars(ax)] == [1, 0.75]
    assert names(ax.yaxis) == ["b", "a"]
    assert ax.get_xlabel() == "accuracy by l1; 1 without images"
    ax = plots.accuracy(metrics, metric="l2", ax=fresh())
    assert np.allclose([length for length, *_ in bars(ax)], [1, 2 / 3])


def test_accuracy_of_nothing_can_be_drawn():
    ax = plots.accuracy({"l1": summarise(np.zeros((3, 3), int), "abc")}, ax=fresh())
    assert not bars(ax)
    assert ax.get_xlabel().endswith("3 without images")
    drawn(ax)


# confusion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 10, 20])
def test_confusion_is_coloured_by_shares_of_the_row_and_numbered_by_counts(number):
    metrics, counts = many_metrics(number)
    ax = plots.confusion(metrics, "l1", ax=fresh())
    shown = np.asarray(ax.images[0].get_array())
    assert np.allclose(shown, counts / counts.sum(axis=1, keepdims=True))
    assert ax.images[0].get_clim() == (0, 1)
    said = [text or "0" for text in texts(ax)]
    assert said == [f"{count}" for count in counts.ravel()]
    for text in ax.texts:
        column, row = text.get_position()
        assert (text.get_text() or "0") == str(counts[row, column])
    assert names(ax.xaxis) == names(ax.yaxis) == [f"class {n}" for n in range(number)]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "label")


def test_confusion_of_more_classes_has_names_but_no_numbers_and_of_many_neither():
    ax = plots.confusion(many_metrics(30)[0], "l1", ax=fresh())
    assert len(names(ax.xaxis)) == 30
    assert not ax.texts
    metrics, counts = many_metrics(1000)
    ax = plots.confusion(metrics, "l1")
    assert not names(ax.xaxis)
    assert not ax.texts
    assert np.asarray(ax.images[0].get_array()).shape == (1000, 1000)
    drawn(ax)
    assert ax.yaxis.label.get_window_extent().x0 >= 0  # within the picture
    assert counts.sum() == metrics["l1"]["count"]


def test_an_order_moves_rows_columns_and_names_together():
    metrics, counts = many_metrics(5)
    order = [3, 0, 4, 1, 2]
    ax = plots.confusion(metrics, "l1", order=order, ax=fresh())
    expected = (counts / counts.sum(axis=1, keepdims=True))[order][:, order]
    assert np.allclose(ax.images[0].get_array(), expected)
    assert names(ax.yaxis) == [f"class {n}" for n in order]
    for wrong in ([0, 1], [0, 0, 1, 2, 3], [1, 2, 3, 4, 5]):
        with pytest.raises(InputError, match="expected each of 0 to 4"):
            plots.confusion(metrics, "l1", order=wrong)


def test_numbers_can_be_read_on_their_cells_and_a_row_of_nothing_is_empty():
    counts = np.array([[99, 1], [0, 0]])
    ax = plots.confusion({"l1": summarise(counts, "ab")}, "l1", ax=fresh())
    colours = [text.get_color() for text in ax.texts]
    assert colours == [plots.ON_DARK, plots.ON_LIGHT, plots.ON_LIGHT, plots.ON_LIGHT]
    assert np.asarray(ax.images[0].get_array())[1].tolist() == [0, 0]


@pytest.mark.parametrize("groups", [3, 40, 120])
def test_the_order_of_confusion_puts_together_what_blurs(groups):
    size = 3
    number = groups * size
    rng = np.random.default_rng(groups)
    group = rng.permutation(np.repeat(np.arange(groups), size))
    counts = rng.integers(0, 2, (number, number)) + 60 * np.eye(number, dtype=int)
    counts[group[:, None] == group[None, :]] += 20
    order = plots.confusion_order(counts)
    assert sorted(order) == list(range(number))
    together = group[order].reshape(groups, size)
    assert (together == together[:, :1]).all()


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_few_classes_and_none_that_blur_have_an_order_too(number):
    for counts in (np.zeros((number, number), int), np.eye(number, dtype=int)):
        assert sorted(plots.confusion_order(counts)) == list(range(number))


def test_a_thousand_classes_are_put_in_order_within_a_moment():
    _, counts = many_metrics(1000)
    assert sorted(plots.confusion_order(counts)) == list(range(1000))


# distances between classes ---------------------------------------------------------------------


def test_distances_between_classes_are_drawn_as_they_are():
    distances = np.array([[0, 0.25, np.nan], [0.25, 0, 0.5], [np.nan, 0.5, 0]])
    ax = plots.class_distances(distances, ["a", "b", "c"], order=[2, 1, 0], ax=fresh())
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.array_equal(shown, distances[::-1, ::-1], equal_nan=True)
    assert texts(ax) == ["0.000", "0.500", "", "0.500", "0.000", "0.250", "", "0.250", "0.000"]
    assert names(ax.xaxis) == ["c", "b", "a"]
    drawn(ax)
    with pytest.raises(InputError, match=r"shape \(3, 3\) for 2 classes"):
        plots.class_distances(distances, ["a", "b"])


# margins, agreement, counts --------------------------------------------------------------------


def test_margins_are_shares_of_the_right_and_of_the_wrong():
    edges = np.array([0, 0.1, 0.2, 0.4])
    ax = plots.margins(edges, np.array([1, 2, 7]), np.array([3, 1, 0]), ax=fresh())
    outlines = {patch.get_label(): patch for patch in ax.patches if not patch.get_fill()}
    assert np.allclose(outlines["right"].get_data().values, [0.1, 0.2, 0.7])
    assert np.allclose(outlines["wrong"].get_data().values, [0.75, 0.25, 0])
    for name, colour in (("right", plots.RIGHT), ("wrong", plots.WRONG)):
        assert np.array_equal(outlines[name].get_data().edges, edges)
        assert to_hex(outlines[name].get_edgecolor()) == colour
    assert texts(ax) == ["right: 10 images", "wrong: 4 images"]
    assert ax.get_xlim() == (0, 0.4)


def test_margins_of_nothing_can_be_drawn_and_other_lengths_not():
    drawn(plots.margins(np.array([0, 1]), np.array([0]), np.array([0]), ax=fresh()))
    with pytest.raises(InputError, match="3 edges of 3 and 2 counts"):
        plots.margins(np.arange(3), np.zeros(3), np.zeros(2))


def test_agreement_has_a_tile_for_each_case_with_its_number_and_share():
    ax = plots.agreement(870, 30, 51, 49, ("l1", "l2"), ax=fresh())
    assert names(ax.xaxis) == ["l2 right", "l2 wrong"]
    assert names(ax.yaxis) == ["l1 right", "l1 wrong"]
    found = {(round(t.get_position()[0]), round(t.get_position()[1])): [] for t in ax.texts}
    for text in ax.texts:
        x, y = text.get_position()
        found[round(x), round(y)].append(text.get_text())
    assert found == {
        (0, 0): ["870", "87.00 %"], (1, 0): ["30", "3.00 %"],
        (0, 1): ["51", "5.10 %"], (1, 1): ["49", "4.90 %"],
    }  # fmt: skip
    strength = [patch.get_alpha() for patch in ax.patches]
    assert np.argsort(strength).tolist() == [1, 3, 2, 0]
    drawn(plots.agreement(0, 0, 0, 0, ("l1", "l2"), ax=fresh()))


@pytest.mark.parametrize("number", [2, 40])
def test_counts_have_a_bar_for_each_class_and_split(number):
    train = {f"class {n}": 100 + n for n in range(number)}
    test = {f"class {n}": n for n in reversed(range(number))}  # in any order
    ax = plots.class_counts({"train": train, "test": test}, ax=fresh())
    found = bars(ax)
    assert [length for length, *_ in found] == [*range(100, 100 + number), *range(number)]
    assert {colour for _, colour, _ in found} == {plots.RIGHT, plots.WRONG}
    places = np.array([place for *_, place in found])
    assert np.array_equal(np.round(places), [*range(number)] * 2)
    assert names(ax.yaxis) == list(train)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["train", "test"]
    assert len(ax.texts) == 2 * number


def test_counts_of_many_classes_are_lines_from_the_largest():
    train = {f"class {n}": n * n % 97 for n in range(1000)}
    ax = plots.class_counts({"train": train}, ax=fresh())
    (line,) = ax.patches
    assert line.get_data().values.tolist() == sorted(train.values(), reverse=True)
    assert ax.get_xlabel() == "1,000 classes, from the largest to the smallest"
    assert ax.get_ylabel() == "images"


def test_counts_of_other_classes_in_each_split_are_refused():
    for counts in ({}, {"train": {}}, {"train": {"a": 1}, "test": {"b": 1}}):
        with pytest.raises(InputError, match="expected the same, one at least"):
            plots.class_counts(counts)
