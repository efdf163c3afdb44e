"""IDX files as sets of a catalog: sizes that no disk could hold, and checksums that differ."""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from hostile.cases import BOMB_BYTES, NAMES, Case, zeros_gzipped
from hostile.making import patched, picture


def idx(*sizes: int, content: bytes = b"", kind: int = 8) -> bytes:
    return struct.pack(f">2x2B{len(sizes)}I", kind, len(sizes), *sizes) + content


def idx_sets() -> Iterator[tuple[str, bytes, bytes, int | None, str]]:
    """Yield names of sets, images and labels, how many are stored, and the error."""
    pixels, codes = picture(8, 35, 1).tobytes(), bytes((0, 1) * 4)
    images, labels = idx(8, 5, 7, content=pixels), idx(8, content=codes)
    yield "idx-whole", images, labels, 8, ""
    yield "idx-packed", gzip.compress(images), labels, 8, ""
    most = 2**32 - 1
    for name, changed in {
        "cut": images[:-1],
        "cut-header": images[:9],
        "nothing": b"",
        "text": b"no images" * 9,
        "most": idx(most, most, most),
        "most-packed": gzip.compress(idx(most, most, most)),
        "most-images": idx(most, 1, 1),
        "four": idx(8, most, most, 4),
        "no-rows": idx(8, 0, 7),
        "dimensions": idx(*[1] * 255),
        "floats": idx(8, 5, 7, content=pixels * 4, kind=0x0D),
        "other": idx(9, 5, 7, content=pixels + bytes(35)),
        "no-images": idx(0, 5, 7),
        "cut-packed": gzip.compress(images)[:-20],
        "flipped": patched(images, 99, bytes((images[99] ^ 1,))),
        "flipped-packed": gzip.compress(patched(images, 99, bytes((images[99] ^ 1,)))),
    }.items():
        yield f"idx-{name}", changed, labels, None, "."
    yield "idx-most-both", idx(most, most, most), idx(most, content=codes), None, "header announces"
    yield "idx-many", idx(most, 1, 1), idx(most, content=codes), None, "header announces"
    wrong = idx(8, content=bytes([0] * 7 + [9]))
    yield "idx-labels", images, wrong, None, "labels: sample 7 has label 9, expected 0 to 1"
    yield "idx-bomb", gzip.compress(images) + zeros_gzipped(BOMB_BYTES), labels, 8, ""


def idx_cases(root: Path) -> Iterator[Case]:
    """Write sets of the catalog below `root`, and `catalog.yml`."""
    catalog = {}
    for name, images, labels, stored, error in idx_sets():
        folder = root / name
        folder.mkdir()
        packed = images.startswith(b"\x1f\x8b")
        (folder / ("images.gz" if packed else "images")).write_bytes(images)
        (folder / "labels").write_bytes(labels)
        catalog[name] = {
            "title": name, "kind": "idx", "licence": "none", "source": "nobody", "image": [5, 7],
            "class_names": NAMES, "splits": {"train": {"images": "images", "labels": "labels"}},
        }  # fmt: skip
        if "flipped" in name:
            whole = idx(8, 5, 7, content=picture(8, 35, 1).tobytes())
            catalog[name]["checksums"] = {"images": f"sha256:{hashlib.sha256(whole).hexdigest()}"}
        yield Case(name, name, stored, error=None if stored else error)
    (root / "catalog.yml").write_text(json.dumps(catalog))
