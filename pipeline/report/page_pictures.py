"""The pictures of a report: charts as SVG that takes the colours of the page, images as data."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from pipeline.report.plot_style import ACCENT, INK, MUTED, RIGHT, WRONG

THUMBNAIL = 64  # pixels of the longer side, at most
_SMALL = 40  # pixels of a side up to which a coloured image is kept as it is
_VARIABLES = {
    INK: "var(--ink)", MUTED: "var(--muted)", RIGHT: "var(--right)", WRONG: "var(--wrong)",
    ACCENT: "var(--accent)",
}  # fmt: skip
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


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


def to_bytes(image: npt.NDArray[Any], full_scale: float) -> npt.NDArray[np.uint8]:
    """Return an image as [y, x] or [y, x, 3] bytes."""
    share = np.clip(np.nan_to_num(np.asarray(image, np.float64)) / full_scale, 0, 1)
    if share.ndim == 3 and share.shape[2] != 3:
        share = share[..., :3].mean(axis=2)
    return np.round(share * 255).astype(np.uint8)


def thumbnail(image: npt.NDArray[Any], full_scale: float) -> str:
    """Return an image, [y, x] or [y, x, channel], as the address of a small picture."""
    picture = Image.fromarray(to_bytes(image, full_scale))
    if max(picture.size) > THUMBNAIL:
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return as_data(picture)


def strip(images: Sequence[npt.NDArray[Any]], full_scale: float) -> tuple[str, int, int]:
    """Return images side by side as the address of one picture, and its width and height."""
    small = []
    for image in images:
        picture = Image.fromarray(to_bytes(image, full_scale))
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        small.append(picture)
    width, height = small[0].size
    gap = max(1, width // 14)
    whole = Image.new(small[0].mode + "A", (len(small) * (width + gap) - gap, height))
    for place, picture in enumerate(small):
        whole.paste(picture, (place * (width + gap), 0))
    return as_data(whole), whole.width, whole.height


def as_data(picture: Image.Image) -> str:
    """Return a picture as a data URI: PNG, or JPEG where it is coloured and not tiny."""
    content = io.BytesIO()
    if picture.mode == "RGB" and max(picture.size) > _SMALL:
        picture.save(content, "JPEG", quality=85)
        kind = "jpeg"
    else:
        picture.save(content, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
