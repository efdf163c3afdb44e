"""Tables of pixels: every way in which they are written gives the same images and labels."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files_for_tests import put

import pipeline
from pipeline.config.job_settings import make_images
from pipeline.core.blocks import UNREADABLE
from pipeline.core.errors import ConfigError, LabelError, PixsimError, ShapeError, SourceError
from pipeline.sources.array_files import open_idx
from pipeline.sources.notes import Notes
from pipeline.sources.pixel_tables import PixelReader
from pipeline.sources.registry import find_kind, open_source, release

COUNT, SIDE = 7, 6
RNG = np.random.default_rng(3)
PIXELS = RNG.integers(0, 256, (COUNT, SIDE * SIDE))
LABELS = ["5", "0", "4", "1", "5", "0", "4"]
NAMES = [f"pixel{n}" for n in range(SIDE * SIDE)]
CODES = [3, 0, 2, 1, 3, 0, 2]


def table(header, rows, delimiter=",", end="\n", quoting=csv.QUOTE_MINIMAL):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([*([header] if header else []), *rows])
    return stream.getvalue().encode()


def labelled(pixels=PIXELS, labels=LABELS):
    return [[label, *row] for label, row in zip(labels, pixels.tolist(), strict=True)]


def read(source, step=3, **settings):
    """Return the images and labels of each split, read in steps, and what was remarked."""
    opened = open_source({"source": str(source), **settings})
    try:
        found = {}
        for split, info in opened.splits().items():
            starts = range(0, info.count, step)
            blocks = [opened.read(split, s, min(s + step, info.count)) for s in starts]
            assert all(block.problems == {} for block in blocks)
            found[split] = (
                np.concatenate([block.images for block in blocks]),
                np.concatenate([block.labels for block in blocks]).tolist(),
            )
        return found, opened.class_names, opened.remarks
    finally:
        release(opened)


POSITIONS = [f"{y}x{x}" for y in range(1, SIDE + 1) for x in range(1, SIDE + 1)]
JOINED = [[label, " ".join(map(str, row))] for label, *row in labelled()]
FORMS = {
    "Kaggle": ("a.csv", table(["label", *NAMES], labelled())),
    "positions": ("a.csv", table(["label", *POSITIONS], labelled())),
    "numbers": ("a.csv", table(["class", *map(str, range(SIDE * SIDE))], labelled())),
    "label last": ("a.csv", table([*NAMES, "Label"], [[*r, x] for x, *r in labelled()])),
    "ids": ("a.csv", table(["ImageId", "label", *NAMES],
                           [[n, *row] for n, row in enumerate(labelled())])),
    "no header": ("a.csv", table(None, labelled())),
    "gzip": ("a.csv.gz", gzip.compress(table(None, labelled()))),
    "tabs": ("a.tsv", table(["label", *NAMES], labelled(), "\t")),
    "semicolons": ("a.csv", table(["label", *NAMES], labelled(), ";", "\r\n")),
    "blanks": ("a.txt", table(None, labelled(), " ")),
    "old Mac": ("a.csv", table(["label", *NAMES], labelled(), end="\r")),
    "mark": ("a.csv", "\ufeff".encode() + table(["label", *NAMES], labelled())),
    "comment": ("a.csv", b"# mine\n\n" + table(["label", *NAMES], labelled()) + b"\n"),
    "quotes": ("a.csv", table(["label", *NAMES], labelled(), quoting=csv.QUOTE_ALL)),
    "decimals": ("a.csv", table(["label", *NAMES], labelled(PIXELS.astype(float)))),
    "one column": ("a.csv", table(["emotion", "pixels"], JOINED)),
    "one column first": ("a.csv", table(["pixels", "emotion"], [row[::-1] for row in JOINED])),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_images(tmp_path, name, content):
    path = put(tmp_path / name, content)
    assert find_kind(make_images(str(path))) == "pixels"
    found, names, remarks = read(path)
    assert (names, list(found)) == (("0", "1", "4", "5"), ["train"])
    np.testing.assert_array_equal(found["train"][0], PIXELS.reshape(COUNT, SIDE, SIDE))
    assert found["train"][1] == CODES
    assert "36 values in a row are taken as 6 x 6 pixels" in remarks[0]


@given(
    st.integers(1, 30),
    st.sampled_from([(4, 4), (2, 9), (4, 4, 3), (3, 4, 5), (5, 4, 1)]),
    st.integers(1, 9),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
)
def test_any_shape_and_step_gives_what_numpy_reads(
    tmp_path_factory, count, shape, step, delimiter, header
):
    folder = tmp_path_factory.mktemp("any")
    size = int(np.prod(shape))
    pixels = np.random.default_rng(count).integers(0, 256, (count, size))
    names = ["label", *(f"p{n}" for n in range(size))] if header else None
    rows = labelled(pixels, [n % 3 for n in range(count)])
    path = put(folder / "a.csv", table(names, rows, delimiter))
    expected = np.loadtxt(path, np.int64, delimiter=delimiter, skiprows=int(header), ndmin=2)
    found, _, _ = read(path, step, shape=list(shape), kind="pixels")
    images = expected[:, 1:].reshape(count, *shape)
    images = np.moveaxis(images, 1, -1) if shape == (3, 4, 5) else images
    images = images[..., 0] if shape == (5, 4, 1) else images
    np.testing.assert_array_equal(found["train"][0], images)
    assert found["train"][1] == expected[:, 0].tolist()


def test_a_table_without_labels_beside_one_with_them_is_unlabelled(tmp_path):
    put(tmp_path / "train.csv", table(["label", *NAMES], labelled()))
    put(tmp_path / "test.csv", table(NAMES, PIXELS[:3].tolist()))
    put(tmp_path / "sample_submission.csv", b"ImageId,Label\n1,0\n2,0\n")
    found, names, remarks = read(tmp_path)
    assert {split: labels for split, (_, labels) in found.items()} == {
        "train": CODES, "test": [-1, -1, -1],
    }  # fmt: skip
    assert len(names) == 4
    assert remarks[-1] == "left out: sample_submission.csv"
    found, names, _ = read(tmp_path / "test.csv")
    assert (found["test"][1], names) == ([-1, -1, -1], ())
    found, _, _ = read(put(tmp_path / "bare.csv", table(None, PIXELS.tolist())))
    np.testing.assert_array_equal(found["train"][0], PIXELS.reshape(COUNT, SIDE, SIDE))


def test_splits_and_classes_are_those_of_any_table(tmp_path):
    usage = ["Training"] * 4 + ["PublicTest"] * 3
    rows = [[*row, part] for row, part in zip(JOINED, usage, strict=True)]
    path = put(tmp_path / "fer2013.csv", table(["emotion", "pixels", "Usage"], rows))
    found, _, remarks = read(path)
    assert {split: labels for split, (_, labels) in found.items()} == {
        "Training": CODES[:4], "PublicTest": CODES[4:],
    }  # fmt: skip
    np.testing.assert_array_equal(found["PublicTest"][0].reshape(3, -1), PIXELS[4:])
    assert remarks[-1] == "2 splits, 4 classes from column 'emotion'"
    ones = [[int(n % 2), int(1 - n % 2), *row] for n, row in enumerate(PIXELS.tolist())]
    found, names, _ = read(put(tmp_path / "hot.csv", table(["cat", "dog", *NAMES], ones)))
    assert (names, found["train"][1]) == (("cat", "dog"), [1, 0, 1, 0, 1, 0, 1])
    both = table(["cat", "dog", *NAMES], [[1, 1, *PIXELS[0]]])
    with pytest.raises(LabelError, match="labels of several classes for an image"):
        read(put(tmp_path / "hot.csv", both))


def test_numbers_beside_names_of_files_are_classes(tmp_path):
    header = ["image", *map(str, range(20))]
    path = put(tmp_path / "a.csv", table(header, [["1.png", *np.eye(20, dtype=int)[3]]]))
    assert find_kind(make_images(str(path))) == "list"
    path = put(tmp_path / "a.csv", table(["id", *NAMES], [[7, *PIXELS[0]]]))
    assert find_kind(make_images(str(path))) == "pixels"


def test_values_that_are_no_pixels_make_bad_samples(tmp_path):
    rows = labelled()
    for at, value in ((1, "256"), (3, "0.5"), (4, ""), (5, "-1")):
        rows[at][9] = value
    opened = open_source(str(put(tmp_path / "a.csv", table(["label", *NAMES], rows))))
    block = opened.read("train", 0, COUNT)
    assert {n: p.detail.partition(",")[0] for n, p in block.problems.items()} == {
        1: "pixel 8 is '256'", 3: "pixel 8 is '0.5'", 4: "pixel 8 is ''", 5: "pixel 8 is '-1'",
    }  # fmt: skip
    assert {p.status for p in block.problems.values()} == {UNREADABLE}
    assert block.labels.tolist() == [3, -1, 2, -1, -1, -1, 2]
    assert block.origins[1] == "a.csv[1]"
    release(opened)


COLOURS = table([f"pixel{n:04}" for n in range(75)] + ["label"], [[*range(75), 1]])


@pytest.mark.parametrize(
    ("content", "settings", "error", "message"),
    [
        (COLOURS, {}, ShapeError, r"75 pixels in a row are not a square; .*shape: \[5, 5, 3\]"),
        (COLOURS, {"shape": [5, 5]}, ShapeError, "are not 5 x 5, grey or with 3 colours"),
        (table(None, [[*range(50, 20, -1)]]), {}, ShapeError, "30 pixels .* not a square"),
        (table(["label", *NAMES], [[1, *range(9)]]), {}, PixsimError, "line 2 has 10 fields"),
        (b"path,label\n1.png,2\n", {"kind": "pixels"}, SourceError, "has no columns of pixels"),
        (table(["label", *NAMES], labelled()).decode().encode("utf-16"), {}, SourceError,
         "is utf-16, expected UTF-8"),
        (table(["a", "b", *NAMES], [[1, 2, *range(36)]]), {}, ConfigError, "columns: {label: a}"),
        (table(["label", *NAMES], []), {}, SourceError, "holds no samples"),
        (table(["label", *NAMES], labelled(PIXELS / 255)), {}, SourceError, r"numpy\.savez"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_to_do(tmp_path, content, settings, error, message):
    with pytest.raises(error, match=message):
        read(put(tmp_path / "a.csv", content), **settings)


@pytest.mark.parametrize("shape", [[5, 5, 3], [3, 5, 5]])
def test_the_shapes_that_an_error_names_are_those_of_colours(tmp_path, shape):
    found, _, _ = read(put(tmp_path / "a.csv", COLOURS), shape=shape)
    expected = np.arange(75).reshape(shape)
    expected = np.moveaxis(expected, 0, -1) if shape[0] == 3 else expected
    np.testing.assert_array_equal(found["train"][0][0], expected)


def test_a_long_table_takes_no_more_memory_than_its_batch(tmp_path):
    rows = table(["label", *(f"pixel{n}" for n in range(400))], [[7, *[255] * 400]] * 3000)
    reader = PixelReader({None: [put(tmp_path / "a.csv", rows)]})
    tracemalloc.start()
    assert sum(part.num_rows for _, part in reader.batches(Notes())) == 3000
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 6e6  # the fields of all rows would be ten times that


def test_a_table_that_changes_after_it_was_listed_is_noticed(tmp_path):
    path = put(tmp_path / "a.csv", table(["label", *NAMES], labelled()))
    opened = open_source(str(path))
    put(path, table(["label", *NAMES], labelled()[::-1]) + b"\n")
    with pytest.raises(SourceError, match=r"a\.csv: is another file"):
        opened.read("train", 0, 2)
    release(opened)


@pytest.mark.datasets
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_part_of_mnist_has_the_digest_of_its_arrays(real_datasets, tmp_path, suffix):
    folder = real_datasets / "mnist"
    images = open_idx(folder / "t10k-images-idx3-ubyte.gz").read(0, 300)
    labels = open_idx(folder / "t10k-labels-idx1-ubyte.gz").read(0, 300)
    content = table(None, labelled(images.reshape(300, -1), labels.tolist()))
    packed = gzip.compress(content, 1) if suffix == "csv.gz" else content
    path = put(tmp_path / f"mnist_test.{suffix}", packed)
    expected = pipeline.ingest(
        pipeline.from_arrays({"test": (images, labels)}), tmp_path / "arrays.zarr"
    )
    stores = [pipeline.ingest(str(path), tmp_path / f"{n}.zarr", n) for n in (64, 300)]
    digests = [pipeline.digest(store)["images"] for store in (expected, *stores)]
    assert digests == digests[:1] * 3
