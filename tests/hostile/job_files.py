"""Job files: hostile YAML, and honest ones whose images and classes are named strangely."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from hostile.cases import Case, goods
from hostile.numpy_files import arrays, zip_of


def job_cases(root: Path) -> Iterator[Case]:
    """Write job files whose images are hostile, or honest and named strangely."""
    folder = root / "set"
    for path, data in goods(4).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (root / "codes.npz").write_bytes(zip_of(arrays()))
    html = ["<script>alert(1)</script>", "\x1b[2J\n'\"&"]
    images = {"source": str(root / "codes.npz")}
    many = [f"class {number}" for number in range(10_000)]
    for name, stored, error, content in (
        ("html", 8, None, {**images, "class_names": html}),
        ("many", 8, None, {**images, "class_names": many}),
        ("twice", None, "two classes named|twice|distinct", {**images, "class_names": ["a", "a"]}),
        ("one", None, "label", {**images, "class_names": ["a"]}),
        (
            "folder",
            None,
            "cannot be used|can be used",
            {"source": str(folder), "class_names": html},
        ),
        ("nowhere", None, "nothing matches", {"source": "\x1b[2J<b>"}),
        ("pattern", None, "more than", {"source": "x{0..1000000}"}),
        ("deep-pattern", None, "braces", {"source": "{" * 5_000 + "}" * 5_000}),
        ("url", None, ".", {"source": "nothing://\x1b[2J"}),
        ("both", None, "not both", {**images, "splits": {"a": "b"}}),
        ("split", None, "split", {"splits": {"../x": str(folder / "train")}}),
        ("key", None, "\\bimports?\\b|unknown|expected", {**images, "imports": "os"}),
        ("store", None, ".", {**images, "resize": [2**31, 1]}),
    ):
        path = root / f"job-{name}.yml"
        job = {"images": content}
        path.write_text(json.dumps(job))
        yield Case(path.name, str(path), stored, error=error)
    for name, text in {
        "tag": "images: !!python/object/apply:os.system [exit]",
        "laughs": "a: &a [x, x]\n" + "".join(
            f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
            for a, b in zip("abcdefghi", "bcdefghij", strict=True)
        ) + "images: *j\n",
        "deep": "images: " + "[" * 1_000,
        "nothing": "",
        "bytes": "images: \x00",
    }.items():  # fmt: skip
        path = root / f"yaml-{name}.yml"
        path.write_text(text)
        yield Case(path.name, str(path), error=".")
