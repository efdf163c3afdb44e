"""Pages in a browser; audits of small image sets with findings planted, and their pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

import pipeline
from pipeline.jobs.audit import run_audit
from pipeline.sources.arrays import from_arrays

TALLEST = 6_000  # pixels of a screenshot
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}

# every element that has text of its own: its colour against what lies behind it
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => {
      v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.99) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const poor = new Map();
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || element.closest("svg") || element.closest("script, style, [hidden]")) continue;
    const front = light(parse(getComputedStyle(element).color).slice(0, 3));
    const back = light(behind(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) poor.set(element.tagName + "." + element.className, ratio);
  }
  return [...poor];
}"""

LAYOUT = """() => ({
  wide: document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth,
  broken: [...document.images].filter((i) => !(i.complete && i.naturalWidth > 0)).length,
  images: document.images.length,
  silent: [...document.images].filter((i) => !i.alt.trim()).length,
  charts: [...document.querySelectorAll("svg")].filter((s) => !s.getAttribute("aria-label")).length,
  landmarks: ["main", "nav[aria-label]", "header", "footer"]
    .filter((name) => document.querySelectorAll(name).length !== 1),
  unreachable: [...document.querySelectorAll("*")].filter((e) =>
    e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "auto" && e.tabIndex < 0
  ).length,
  injected: document.querySelectorAll("img[src=x]").length,
})"""


def look(browser, file, width, scheme, picture=None):
    """Open a page, check that nothing is wrong with it, and return it; keep a picture of it."""
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    context = browser.new_context(viewport=size, color_scheme=scheme)
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.on("request", lambda request: request.url.startswith(("file:", "data:"))
            or troubles.append(request.url))  # fmt: skip
    page.goto(file.as_uri())
    found = page.evaluate(LAYOUT)
    assert found.pop("images") > 10
    assert set(map(str, found.values())) == {"0", "[]"}, found
    assert page.evaluate(CONTRAST) == []
    if picture is not None:
        height = min(TALLEST, page.evaluate("document.scrollingElement.scrollHeight"))
        clip = {"x": 0, "y": 0, "width": size["width"], "height": height}
        page.screenshot(path=picture, full_page=True, clip=clip)
    assert troubles == []
    return page


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }} & 'more'"]


class Page(HTMLParser):
    """The sections of a page: their headings, cells, pictures, texts of list items."""

    def __init__(self, text):
        super().__init__()
        self.text, self.section, self.stack = text, "", []
        self.headings, self.rows, self.items, self.images, self.paragraphs = {}, {}, {}, {}, {}
        self.ids, self.links, self.loaded, self.answer, self.facts = [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.ids += [known["id"]] if "id" in known and tag not in ("clipPath", "path", "g") else []
        self.links += [known["href"]] if tag == "a" else []
        self.loaded += [known[name] for name in ("src", "srcset", "data") if name in known]
        assert tag not in ("iframe", "object", "embed", "form", "base")
        assert not any(name.startswith("on") for name in known)
        if tag == "section":
            self.section = known["id"]
        if tag == "img":
            self.images.setdefault(self.section, []).append(known["alt"])
            return
        if tag in ("meta", "link", "br", "input"):
            return
        kind = known.get("class", "")
        self.stack.append((tag, kind))
        for name, store, tags in (
            ("rows", self.rows, ("tr",)), ("items", self.items, ("li",)),
            ("headings", self.headings, ("h3",)), ("paragraphs", self.paragraphs, ("p", "pre")),
        ):  # fmt: skip
            if tag in tags and (name != "items" or self.depth("li") == 1):
                store.setdefault(self.section, []).append([] if name == "rows" else "")
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")
        if tag in ("dt", "dd"):
            self.facts.append("")

    def depth(self, tag):
        return sum(name == tag for name, _ in self.stack)

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data):
        text = re.sub(r"\s+", " ", data)
        open_tags = {tag for tag, _ in self.stack}
        if open_tags & {"td", "th"}:
            self.rows[self.section][-1][-1] += text
        for store, names in (
            (self.items, {"li"}), (self.headings, {"h3"}), (self.paragraphs, {"p", "pre"}),
        ):  # fmt: skip
            if open_tags & names and self.section in store:
                store[self.section][-1] += text
        if ("p", "answer") in self.stack:
            self.answer += text
        if open_tags & {"dt", "dd"}:
            self.facts[-1] += text


def make_arrays(seed=0, train=90, test=40, shape=(9, 8), dtype=np.uint8, classes=3, noise=40):
    """Make images of classes, a pattern each, in which nothing is twice."""
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    patterns = rng.uniform(0.2, 0.8, (classes, *shape))
    arrays = {}
    for split, count in {"train": train, "test": test}.items():
        if count:
            labels = (np.arange(count) % classes).astype(np.int32)
            images = patterns[labels] + rng.uniform(-noise, noise, (count, *shape)) / 255
            arrays[split] = np.round(np.clip(images, 0, 1) * largest).astype(dtype), labels
    return arrays


def with_findings(seed=0, **settings):
    """Plant copies, near ones, a mirrored one, a wrong label and an outlier."""
    arrays = make_arrays(seed, **settings)
    (train, labels), (test, test_labels) = arrays["train"], arrays["test"]
    test[3], test_labels[3] = train[4], (labels[4] + 1) % 3  # a leak, with another label
    near = train[7].copy()
    near[0] = near[0] // 8 * 7
    test[5], test_labels[5] = near, labels[7]  # a leak, not quite the same
    test[6], test_labels[6] = train[10][:, ::-1], labels[10]  # a mirrored one
    for at in range(20, 36):
        train[at], labels[at] = train[19], labels[19]  # a group of 17
    labels[60] = (labels[60] + 1) % 3  # named wrongly
    train[70] = np.iinfo(train.dtype).max - train[70] // 3  # like nothing else
    return arrays


def audit_of(folder, arrays, names=HOSTILE, **settings):
    store = pipeline.ingest(from_arrays(arrays, names), folder / "images.zarr", shard_samples=32)
    known = {"name": "made", "images": str(store), "output": str(folder / "audit"), **settings}
    return run_audit(known)
