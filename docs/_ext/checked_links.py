"""After a build: every link inside the site leads somewhere; those that leave it are listed.

Nothing is fetched. What leads out of the site stands in `_build/external-links.txt`, to be looked
at by whoever likes; what a page loads from elsewhere is an error, since a page must show without a
network.
"""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
_NOT_LOADED = {"canonical", "index", "search", "next", "prev", "copyright"}  # of <link rel=...>


class _Page(HTMLParser):
    """The ids of a page, what it links to, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag has to say."""
        given = dict(attrs)
        self.ids |= {value for value in (given.get("id"), given.get("name")) if value}
        if tag == "a" and given.get("href"):
            self.links.add(str(given["href"]))
        loaded = given.get(_LOADS.get(tag, ""))
        if loaded and not set((given.get("rel") or "").split()) & _NOT_LOADED:
            self.loads.add(loaded)


def read_pages(folder: Path) -> dict[Path, _Page]:
    """Read every page of a site."""
    pages = {}
    for file in sorted(folder.rglob("*.html")):
        page = _Page()
        page.feed(file.read_text(encoding="utf-8"))
        pages[file] = page
    return pages


def broken_links(pages: dict[Path, _Page]) -> tuple[list[str], list[str]]:
    """Return the links that lead nowhere, and the addresses outside the site."""
    wrong, outside = [], set()
    for file, page in pages.items():
        for target in page.links | page.loads:
            parts = urlsplit(target)
            if parts.scheme in ("data", "mailto", "javascript"):
                continue
            if parts.scheme or parts.netloc:
                outside.add(target)
                if target in page.loads:
                    wrong.append(f"{file.name} loads {target}")
                continue
            aim = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            aim = aim / "index.html" if aim.is_dir() else aim
            known = pages.get(aim)
            if not aim.exists():
                wrong.append(f"{file.name} links to {target}: no such file")
            elif parts.fragment and known and unquote(parts.fragment) not in known.ids:
                wrong.append(f"{file.name} links to {target}: no such place on that page")
    return wrong, sorted(outside)


def check(app: Any, exception: Exception | None) -> None:
    """Check the site that was built."""
    if exception is not None or app.builder.format != "html":
        return
    pages = read_pages(Path(app.outdir).resolve())
    wrong, outside = broken_links(pages)
    (Path(app.outdir).parent / "external-links.txt").write_text("\n".join([*outside, ""]))
    if wrong:
        from sphinx.errors import ExtensionError

        raise ExtensionError("links that lead nowhere:\n  " + "\n  ".join(sorted(wrong)))


def setup(app: Any) -> dict[str, Any]:
    """Check links when a build is done."""
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
