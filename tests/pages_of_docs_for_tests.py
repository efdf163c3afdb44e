"""The README and the pages of the documentation, and the blocks of code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# what `make docs` makes is none of the pages that people write
MADE = {"_build", "_generated", "api"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        page
        for page in DOCS.rglob("*.md")
        if not MADE & {*page.relative_to(DOCS).parts}
    ),
]  # fmt: skip
_BLOCK = re.compile(
    r"(?:^% (run|write [\w.-]+)\n)?^```(?:\{code-block\} )?(\w+)\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return what is to be done with each block of a page (`run`, `write NAME`), language, text."""
    return [(found[1] or "", found[2], found[3]) for found in _BLOCK.finditer(page.read_text())]


def block(page: Path, language: str, containing: str) -> str:
    """Return the one block of a page in a language that holds some text."""
    (text,) = [
        text for _, spoken, text in blocks(page) if spoken == language and containing in text
    ]
    return text


def section(page: Path, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    found = re.search(
        rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", page.read_text(), re.M | re.S
    )
    assert found, f"{page.name} has no heading {heading!r}"
    return found[2]
