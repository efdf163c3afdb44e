"""The look of every plot: few colours, thin lines, and names that are text and nothing else.

Lines and text have the colours below and no other, so that a page may give each of them another
one for a dark screen. What stands on a cell of an image or a heat map has a colour of its own,
since the cell keeps its own too. Backgrounds are transparent.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text

from pipeline.core.deferred import deferred
from pipeline.core.errors import InputError
from pipeline.report.look import MAX_NAME, STOPS
from pipeline.report.look import one_line as one_line

if TYPE_CHECKING:
    import matplotlib.pyplot as plt
else:
    plt = deferred("matplotlib.pyplot")  # a page draws without it

INK = "#222222"  # what is read
MUTED = "#707070"  # axes, and what stands back
RIGHT = "#0072b2"  # what is right, and bars in general
WRONG = "#d55e00"  # what is wrong
ACCENT = "#009e73"  # a third thing
ON_LIGHT, ON_DARK = "#111111", "#fdfdfd"  # text on cells of images and heat maps

SHADES = "gray"  # of pictures, in which 0 is black
SEQUENTIAL = LinearSegmentedColormap.from_list("pixsim", STOPS)
DIVERGING = LinearSegmentedColormap.from_list("pixsim signed", [RIGHT, "#f7f7f7", WRONG])

TEXT, SMALL = 9.0, 8.0  # points
THIN = 0.8  # points
BAR, LINE_INCHES = 0.72, 0.21  # thickness of a bar, and its height with its name in inches
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}

# the variables of a page for the colours that it may change
_VARIABLES = {
    INK: "var(--ink)", MUTED: "var(--muted)", RIGHT: "var(--right)", WRONG: "var(--wrong)",
    ACCENT: "var(--accent)",
}  # fmt: skip
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def metric_of(metrics: Mapping[str, Any], metric: str | None, what: str) -> Any:
    """Return what metrics of a run say of one of them; default: of the first.

    Raises
    ------
    InputError
        Where they do not, or are none of a run.
    """
    chosen = next(iter(metrics), None) if metric is None else metric
    entry = metrics.get(str(chosen))
    if not isinstance(entry, Mapping) or what not in entry:
        known = ", ".join(map(str, metrics)) or "none"
        raise InputError(f"metrics: no '{what}' of {chosen!r} among {known}, expected Run.metrics")
    return entry[what]


def require_image(pixels: Any) -> None:
    """Raise `InputError` unless pixels are those of one image."""
    if np.ndim(pixels) not in (2, 3):
        raise InputError(
            f"an image of shape {np.shape(pixels)}, expected (y, x) or (y, x, channel)"
        )


def axes_of_size(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or axes of a new pyplot figure of this size in inches."""
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set_facecolor("none")
    ax.tick_params(length=0, labelsize=SMALL, labelcolor=INK, color=MUTED)
    for spine in ax.spines.values():
        spine.set(color=MUTED, linewidth=THIN)
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, fontsize=TEXT)
    return ax


def bare(ax: Axes) -> None:
    """Take away the frame and the ticks."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def open_frame(ax: Axes, *sides: str) -> None:
    """Leave of the frame only these sides."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in sides)


def write(ax: Axes, x: float, y: float, text: str, **settings: Any) -> Text:
    """Write a text that is shown as it is, never as mathematics."""
    chosen: dict[str, Any] = {"color": INK, "fontsize": SMALL, **settings, **PLAIN}
    return ax.text(x, y, text, **chosen)


def write_inside(
    ax: Axes, x: float, y: float, text: str, size: float, color: str = INK, va: str = "center"
) -> Text:
    """Write a text centred within the axes, which the layout need not measure.

    There may be thousands of them, and measuring each takes longer than drawing all.
    """
    return write(ax, x, y, text, color=color, fontsize=size, ha="center", va=va, in_layout=False)


def write_title(ax: Axes, text: str, width: int = 60) -> None:
    """Write a title, cut to a width in columns."""
    ax.set_title(one_line(text, width), loc="left", color=INK, fontsize=TEXT, **PLAIN)


def name_ticks(axis: Axis, names: Sequence[str], width: int = MAX_NAME) -> None:
    """Put names at 0, 1, 2, ... along an axis."""
    axis.set_ticks(range(len(names)), [one_line(name, width) for name in names])
    for tick in axis.get_major_ticks(len(names)):
        for label in (tick.label1, tick.label2):  # one on each side
            label.set(**PLAIN)


def name_bars(ax: Axes, names: Sequence[str]) -> None:
    """Put the names of bars beside them, the first at the top."""
    name_ticks(ax.yaxis, names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    open_frame(ax, "left")


def ink_on(colour: Any) -> str:
    """Return the colour of text that can be read on a colour."""
    red, green, blue = to_rgb(colour)
    return ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else ON_DARK


def add_colour_bar(ax: Axes, shown: AxesImage, label: str) -> None:
    """Put a thin colour bar beside a picture."""
    bar = ax.figure.colorbar(shown, ax=ax, fraction=0.046, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=SMALL, labelcolor=INK)
    bar.set_label(label, color=INK, fontsize=SMALL)


def chart(
    draw: Callable[[Axes], object], size: tuple[float, float], name: str, description: str
) -> Markup:
    """Draw a chart as SVG to be put into a page.

    Parameters
    ----------
    draw
        Draws into the axes that it is given.
    size
        Width and height in inches.
    name
        Of this chart on the page; no other may have it.
    description
        What it shows, for those who do not see it.
    """
    content = io.BytesIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        draw(figure.add_subplot())
        layout = figure.get_layout_engine()
        if layout is not None:
            layout.execute(figure)
            figure.set_layout_engine("none")  # else it is laid out, and drawn, twice more
        figure.savefig(content, format="svg", metadata=_METADATA, dpi=100)
    return _inline(content.getvalue().decode(), name, description)


def _inline(svg: str, name: str, description: str) -> Markup:
    """Make a document of its own a part of a page: ids, colours and fonts are the page's."""
    body = svg[svg.index("<svg") :]
    start, rest = body.split(">", 1)
    box = re.search(r'viewBox="[\d. ]+"', start)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, count=1, flags=re.DOTALL)
    rest = re.sub(r"<style[^>]*>.*?</style>", "", rest, count=1, flags=re.DOTALL)
    rest = re.sub(r"<!--.*?-->", "", rest, flags=re.DOTALL)

    def in_tag(tag: re.Match[str]) -> str:
        text = tag.group(0)
        text = re.sub(r'\bid="', f'id="{name}-', text)
        text = re.sub(r'href="#', f'href="#{name}-', text)
        text = text.replace("url(#", f"url(#{name}-")
        text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, variable)
        return text

    rest = re.sub(r"<\w[^>]*>", in_tag, rest)
    opening = Markup('<svg class="chart" role="img" aria-label="{}" {}>').format(
        description,
        Markup(box.group(0) if box else ""),  # noqa: S704 - digits
    )
    return opening + Markup(rest)  # noqa: S704 - matplotlib escapes every text
