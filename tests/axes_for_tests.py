"""What tests of plots share: axes, what stands in them, and results made up to be drawn."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.ops.predictions import summarise
from pipeline.report.explanation import Explanation


@pytest.fixture(autouse=True)
def nothing_left():
    plt.switch_backend("agg")
    before = mpl.rcParams.copy()
    yield
    plt.close("all")
    assert mpl.rcParams == before


def fresh(width=5.0, height=4.0):
    return Figure(figsize=(width, height), layout="constrained").subplots()


def texts(ax):
    return [text.get_text() for text in ax.texts]


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def drawn(ax):
    """Draw into a picture; raises where a text is no text."""
    content = io.BytesIO()
    ax.figure.savefig(content, format="png", dpi=40)
    return content.getvalue()


def as_svg(ax):
    content = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):
        ax.figure.savefig(content, format="svg")
    return ElementTree.fromstring(content.getvalue())


def many_metrics(number, class_names=None, seed=0):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (number, number))
    counts[np.arange(number), np.arange(number)] += rng.integers(0, 50, number)
    return {"l1": summarise(counts, class_names or [f"class {n}" for n in range(number)])}, counts


def make_explanation(distances, label, class_names=None, metrics=("l1",)):
    distances = np.atleast_2d(np.asarray(distances, float))
    class_names = tuple(class_names or [f"class {n}" for n in range(distances.shape[1])])
    image = np.zeros((4, 4), np.uint8)
    predicted = {m: class_names[int(np.nanargmin(row))] for m, row in zip(metrics, distances)}  # noqa: B905
    prototypes = {name: image.astype(float) for name in class_names}
    return Explanation(
        "test", 0, image, 255, label, metrics, class_names, distances, predicted, prototypes
    )
