"""A page in a browser: nothing is wrong with its layout, its colours, and what it loads."""

from __future__ import annotations

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
