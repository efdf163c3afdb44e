"""Parquet files and CSV lists: broken ones, strange cells, and paths that lead elsewhere."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hostile.cases import LARGE, LOST, NAMES, NO_LABEL, Case, Made, small, written
from hostile.making import patched


def parquet(images: list[Any], labels: Any, **options: Any) -> bytes:
    """Return a file as Hugging Face writes it; `images` are bytes, or what the column holds."""
    cells = [{"bytes": i, "path": None} if isinstance(i, bytes) else i for i in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"label": {"_type": "ClassLabel", "names": NAMES}}
    notes = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"image": pa.array(cells, kind), "label": pa.array(labels)})
    return parquet_of(table.replace_schema_metadata(notes), **options)


def parquet_of(table: Any, **options: Any) -> bytes:
    target = pa.BufferOutputStream()
    pq.write_table(table, target, write_page_checksum=True, **options)
    return target.getvalue().to_pybytes()


def parquets() -> Iterator[Made]:
    """Yield names of files, their bytes, how many samples are stored, and what of the rest."""
    images = [small(n) for n in range(8)]
    whole = parquet(images, [n % 2 for n in range(8)])
    yield "whole.parquet", whole, 8, {}
    yield "nothing.parquet", b"", None, "cannot be read as Parquet"
    yield "text.parquet", b"no table" * 99, None, "cannot be read as Parquet"
    yield "magic.parquet", b"PAR1" + bytes(99) + b"PAR1", None, "cannot be read as Parquet"
    footer = b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1"
    yield "footer-size.parquet", footer, None, "cannot be read as Parquet"
    for part in (0.1, 0.5, 0.9, 0.999):
        yield (
            f"cut-{part}.parquet",
            whole[: int(part * len(whole))],
            None,
            "cannot be read as Parquet",
        )
    yield "no-columns.parquet", parquet_of(pa.table({"a": [1]})), None, "has no column"
    yield "no-rows.parquet", parquet([], pa.array([], pa.int64())), None, "no samples"
    wrong = parquet([*images[:6], small(8), small(9)], [0, 1, 0, 1, 0, 1, 2, -2])
    yield "labels.parquet", wrong, 6, {NO_LABEL: 2}
    large = parquet(images, [0, 1, 2**62, -(2**63), 0, 1, 0, 1])
    yield "large-labels.parquet", large, 6, {NO_LABEL: 2}
    yield "halves.parquet", parquet(images, [0.5] * 8), None, "expected a whole number"
    yield "lists.parquet", parquet(images, [[0]] * 8), 8, {}
    yield "boxes.parquet", parquet(images, [[3, 4, 9, 9]] * 8), None, "has 4 columns"
    odd = [None, {"bytes": None, "path": None}, {"bytes": None, "path": "../../../../etc/passwd"}]
    odd += [{"bytes": None, "path": path} for path in ("/etc/passwd", "file:///etc/passwd")]
    odd += [{"bytes": None, "path": path} for path in ("a\0b", "x" * 9_999, ".", "nowhere.png")]
    odd += [{"bytes": None, "path": path} for path in ("http://127.0.0.1:9/x.png", "http://[::1")]
    odd += [b"", b"\x1b[2J"]
    labels = [0] * (len(odd) + 1)
    yield "odd.parquet", parquet([*odd, small()], labels), 1, {LOST: len(odd)}
    numbers = pa.table({"image": pa.array([[1, 2]]), "label": [0]})
    yield "numbers.parquet", parquet_of(numbers), None, "list|has no column|expected"
    zeros = parquet([small(), bytes(2**25)], [0, 1], compression="zstd", row_group_size=1)
    yield "bomb.parquet", zeros, 1, {LARGE: 1}
    # one page of 32 MiB that stands for 16 images
    places = pa.array([0] * 16, pa.int32())
    same = pa.DictionaryArray.from_arrays(places, pa.array([bytes(2**25)]))
    table = pa.table({"image": same, "label": [0] * 16})
    packed = parquet_of(table, compression="zstd", store_schema=False)
    yield "same-bomb.parquet", packed, None, "none of the first"


def flipped_parquets() -> Iterator[tuple[str, bytes]]:
    """Yield files of which one bit is another: of the pages, and of what describes them."""
    images = [small(n) for n in range(8)]
    whole = parquet(images, [n % 2 for n in range(8)])
    described = len(whole) - 8 - struct.unpack("<I", whole[-8:-4])[0]
    for start, stop, name in ((4, described, "page"), (described, len(whole), "footer")):
        for number, place in enumerate(np.linspace(start, stop - 1, 30).astype(int).tolist()):
            flip = bytes((whole[place] ^ 1 << number % 8,))
            yield f"flipped-{name}-{place}.parquet", patched(whole, place, flip)


def parquet_cases(root: Path) -> Iterator[Case]:
    small_files = {"max_bytes": 2**20}
    yield from written(root, parquets(), {"bomb.parquet": small_files})
    for name, data in flipped_parquets():
        (root / name).write_bytes(data)
        yield Case(name, str(root / name), like="whole.parquet" if "page" in name else None)


# Lists -------------------------------------------------------------------------------------------

STRANGE_PATHS = (
    b"../../../../../../etc/passwd", b"/etc/passwd", b"file:///etc/passwd", b"local://etc/passwd",
    b"simplecache::file:///etc/passwd", b"ftp://127.0.0.1/x.png", b"images/0.png\0.txt", b"images",
    b"x" * 5_000, b"\x1b[2J\x1b]0;owned\x07", b"\xff\xfe.png", b"12", b'""', b"/dev/zero",
)  # fmt: skip


def lists() -> Iterator[Made]:
    """Yield names of CSV tables, their bytes, how many samples are stored, and what of the rest."""
    good = b"path,label\nimages/0.png,cat\nimages/1.png,dog\n"
    yield "whole.csv", good, 2, {}
    yield "bom.csv", b"\xef\xbb\xbf" + good, 2, {}
    yield "crlf.csv", good.replace(b"\n", b"\r\n"), 2, {}
    bad = [path + b",cat\n" for path in STRANGE_PATHS]
    yield "paths.csv", good + b"".join(bad), 2, {LOST: len(bad)}
    yield "long-line.csv", good + b"x" * 10**8 + b",cat\n", None, "no proper CSV table"
    yield "long-header.csv", b"x" * 10**7, None, "first line of"
    yield "quotes.csv", good + b'"images/2.png,cat\n' * 9, None, ""
    yield "wide.csv", good + b"a,b,c,d\n", None, "no proper CSV table"
    yield "narrow.csv", good + b"a\n", None, "no proper CSV table"
    header = b"label," + b",".join(b"pixel%d" % n for n in range(64)) + b"\n"
    dark = b",0" * 63
    wrong = (b",256", b",-1", b",nan", b",1e99", b",", b",\xff", b",'1'", b",0x1", b"," + b"9" * 99)
    rows = b"".join(b"cat" + dark + value + b"\n" for value in (b",0", b",255", *wrong))
    yield "pixels.csv", header + rows, 2, {LOST: len(wrong)}
    yield "pixels-wide.csv", header + rows + b"cat" + dark * 9 + b"\n", None, "no proper CSV table"
    yield "pixels-quote.csv", header + b'cat,"' + dark + b"\n" + rows, None, "no proper CSV table"
    yield "no-rows.csv", b"path,label\n", None, "no samples"
    yield "nothing.csv", b"", None, "is empty"
    yield "line-ends.csv", b"\n\n\n", None, "is empty"
    yield "binary.csv", bytes(range(256)) * 9, None, "NUL bytes"
    yield "numbers.csv", b"path,label\n7,2\n9,4\n", None, "none of the first"
    yield "two-paths.csv", good.replace(b"label", b"path"), None, "has 2 columns"
    yield "two-labels.csv", b"path,label,label\nimages/0.png,cat,dog\n", None, "has 2 columns"
    yield "labels-bytes.csv", good + b"images/2.png,\xff\xfe\n", None, "no UTF-8"


def list_cases(root: Path) -> Iterator[Case]:
    (root / "images").mkdir()
    for number in range(4):
        (root / "images" / f"{number}.png").write_bytes(small(number))
    yield from written(root, lists())
