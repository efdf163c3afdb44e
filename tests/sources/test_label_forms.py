"""Labels in every form through every reader: the same classes and codes, or the same error."""

from __future__ import annotations

import importlib.util
import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from PIL import Image

from pipeline.core.errors import InputError, LabelError, ShapeError, SourceError
from pipeline.sources.arrays import from_arrays
from pipeline.sources.labels import (
    Survey,
    canonical,
    class_names_of,
    code_of,
    label_text,
    whole_number,
)
from pipeline.sources.registry import open_source, release

# of texts in Zarr
pytestmark = pytest.mark.filterwarnings("ignore:The data type", "ignore:Consolidated metadata")
COUNT = 4
IMAGES = np.arange(COUNT * 6, dtype=np.uint8).reshape(COUNT, 3, 2)
NAN = float("nan")


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def rows(labels):
    """The labels of single samples as Python values; None for none."""
    values = [row.tolist() if isinstance(row, np.ndarray) else row for row in np.asarray(labels)]
    plain = [v.item() if isinstance(v, np.generic) else v for v in values]
    return [None if isinstance(v, float) and v != v else v for v in plain]


def texts(labels):
    """The labels as people write them to tables of text."""
    spelled = {None: "", True: "true", False: "false"}
    found = []
    for value in rows(labels):
        if isinstance(value, list) and len(value) == 1:
            (value,) = value
        known = isinstance(value, bool) or value is None
        text = value.decode() if isinstance(value, bytes) else str(value)
        found.append(spelled[value] if known else text)
    return found


# readers ---------------------------------------------------------------------------------------


def as_arrays(folder, labels, **options):
    return from_arrays({"train": (IMAGES, labels)}, **options)


def as_npz(folder, labels, **options):
    np.savez(folder / "a.npz", x_train=IMAGES, y_train=labels)
    return open_source({"source": str(folder / "a.npz"), **options})


def as_npy(folder, labels, **options):
    np.save(folder / "X_train.npy", IMAGES)
    np.save(folder / "y_train.npy", labels)
    return open_source({"source": str(folder), **options})


def data_set(labels):
    labels = np.asarray(labels)
    dims = ("sample", "column", "more")[: labels.ndim]
    return xr.Dataset({"image": (("sample", "y", "x"), IMAGES), "label": (dims, labels)})


def as_zarr(folder, labels, **options):
    data_set(labels).to_zarr(folder / "a.zarr")
    return open_source({"source": str(folder / "a.zarr"), **options})


def as_netcdf(folder, labels, **options):
    data_set(labels).to_netcdf(folder / "a.nc", engine="h5netcdf")
    return open_source({"source": str(folder / "a.nc"), **options})


def as_data_set(folder, labels, **options):
    from arrays_for_tests import from_datasets

    return from_datasets({"train": data_set(labels)}, **options)


def as_parquet(folder, labels, **options):
    table = {"image": [png(image) for image in IMAGES], "label": pa.array(rows(labels))}
    pq.write_table(pa.table(table), folder / "train.parquet", row_group_size=3)
    return open_source({"source": str(folder / "train.parquet"), **options})


def write_files(folder):
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.png").write_bytes(png(image))
    return [f"{number}.png" for number in range(COUNT)]


def as_parquet_list(folder, labels, **options):
    table = {"path": write_files(folder), "label": pa.array(rows(labels))}
    pq.write_table(pa.table(table), folder / "train.parquet")
    return open_source({"source": str(folder / "train.parquet"), **options})


def as_csv(folder, labels, **options):
    pairs = zip(write_files(folder), texts(labels), strict=True)
    content = "path,label\n" + "".join(f"{path},{text}\n" for path, text in pairs)
    (folder / "train.csv").write_text(content)
    return open_source({"source": str(folder / "train.csv"), **options})


def write_tar(folder, members):
    with tarfile.open(folder / "train.tar", "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(folder / "train.tar")


def as_cls(folder, labels, **options):
    members = []
    for number, text in enumerate(texts(labels)):
        members += [(f"{number}.png", png(IMAGES[number])), (f"{number}.cls", text.encode())]
    return open_source({"source": write_tar(folder, members), **options})


def as_json(folder, labels, **options):
    members = []
    for number, value in enumerate(rows(labels)):
        content = json.dumps({"label": value}).encode()
        members += [(f"{number}.png", png(IMAGES[number])), (f"{number}.json", content)]
    return open_source({"source": write_tar(folder, members), **options})


ARRAYS = [as_arrays, as_npz, as_npy, as_zarr, as_data_set]
if importlib.util.find_spec("h5netcdf"):
    ARRAYS.append(as_netcdf)
TYPED = [as_parquet, as_parquet_list]
TEXTS = [as_csv, as_cls]
WRITTEN = [*ARRAYS, *TYPED, *TEXTS]
ALL = [*WRITTEN, as_json]


def read(reader, folder, labels, **options):
    source = reader(folder, labels, **options)
    try:
        block = source.read("train", 0, COUNT)
        problems = [problem.detail for problem in block.problems.values()]
        return source.class_names, block.labels.tolist(), problems
    finally:
        release(source)


def cells(table):
    """A test for each reader that can hold a form."""
    return [
        pytest.param(reader, *row[:-1], id=f"{name}-{reader.__name__}")
        for name, row in table.items()
        for reader in row[-1]
    ]


NUMBERS = ("0", "1", "2")
READ = {
    "int64": (np.array([0, 2, 1, 0]), NUMBERS, [0, 2, 1, 0], ALL),
    "int8": (np.array([0, 2, -1, 1], "i1"), NUMBERS, [0, 2, -1, 1], ALL),
    "uint8": (np.array([0, 2, 1, 0], "u1"), NUMBERS, [0, 2, 1, 0], ALL),
    "uint64": (np.array([0, 2, 1, 0], "u8"), NUMBERS, [0, 2, 1, 0], ALL),
    "big endian": (np.array([0, 2, 1, 0], ">i4"), NUMBERS, [0, 2, 1, 0], ALL),
    "floats": (np.array([0.0, 2, 1, 0]), NUMBERS, [0, 2, 1, 0], ALL),
    "float32": (np.array([0.0, 2, -1, 1], "f4"), NUMBERS, [0, 2, -1, 1], ALL),
    "NaN": (np.array([0, NAN, 1, 2]), NUMBERS, [0, -1, 1, 2], [*ARRAYS, *TYPED, as_csv]),
    "bool": (np.array([True, False] * 2), ("false", "true"), [1, 0, 1, 0], ALL),
    "text": (np.array(["emu", "cat", "emu", "dog"]), ("cat", "dog", "emu"), [2, 0, 2, 1], ALL),
    "no text": (np.array(["emu", "", "cat", "emu"]), ("cat", "emu"), [1, -1, 0, 1],
                [*ARRAYS, *TYPED, as_csv]),
    "minus one text": (np.array(["emu", "-1", "cat", "emu"]), ("cat", "emu"), [1, -1, 0, 1], ALL),
    "bytes": (np.array([b"emu", b"cat", "ä".encode(), b"emu"]), ("cat", "emu", "ä"),
              [1, 0, 2, 1], [*ARRAYS, *TYPED, *TEXTS]),
    "digits": (np.array(["10", "9", "2", "10"]), ("2", "9", "10"), [2, 1, 0, 2], ALL),
    "gaps": (np.array([7, 3, 1000000, 3]), ("3", "7", "1000000"), [1, 0, 2, 0], ALL),
    "from one": (np.array([1, 2, 3, 10]), ("1", "2", "3", "10"), [0, 1, 2, 3], ALL),
    "float gaps": (np.array([7.0, 3, 12, 3]), ("3", "7", "12"), [1, 0, 2, 0], ALL),
    "column": (np.array([[0], [2], [1], [0]]), NUMBERS, [0, 2, 1, 0], [*ARRAYS, *TYPED, *TEXTS]),
    "one-hot": (np.eye(3)[[0, 2, 1, 0]], NUMBERS, [0, 2, 1, 0], [*ARRAYS, *TYPED, as_json]),
    "one-hot int": (np.eye(3, dtype=int)[[0, 2, 1, 0]], NUMBERS, [0, 2, 1, 0],
                    [*ARRAYS, *TYPED, as_json]),
    "one-hot bool": (np.eye(2, dtype=bool)[[0, 1, 1, 0]], ("0", "1"), [0, 1, 1, 0],
                     [*ARRAYS, *TYPED, as_json]),
    "all unlabelled": (np.full(4, -1), (), [-1] * 4, ARRAYS),
}  # fmt: skip


@pytest.mark.parametrize(("reader", "labels", "classes", "codes"), cells(READ))
def test_a_form_means_the_same_to_every_reader(tmp_path, reader, labels, classes, codes):
    assert read(reader, tmp_path, labels) == (classes, codes, [])


REFUSED = {
    "plus and minus": (np.array([1, -1, 1, -1]), "labels are -1 and 1.*write 0 for -1", ALL),
    "float plus and minus": (np.array([1.0, -1, 1, -1]), "labels are -1 and 1.*write 0", ALL),
    "below -1": (np.array([0, 1, -2, 1]), "label -2, expected", ALL),
    "255": (np.array([0, 1, 255, 1], "u1"), "0 to 1, and 255, .*or 2 if 255 is a class", ALL),
    "65535": (np.array([1, 2, 65535, 1], "u2"), "1 to 2, and 65535", ALL),
    "fraction": (np.array([0.5, 1, 0, 1]), "0.5, expected a whole number", [*ARRAYS, *TYPED]),
    "multi-label": (np.array([[0, 1, 1], [1, 0, 0]] * 2),
                    r"is multi-label: sample 0 has 2 of 3 columns set.*labels\[:, 0\]",
                    [*ARRAYS, *TYPED]),
    "no column": (np.array([[0, 1, 0], [0, 0, 0]] * 2), "sample 1 has 0 of 3 columns set",
                  [*ARRAYS, *TYPED]),
    "probabilities": (np.array([[0.5, 0.5], [0, 1.0]] * 2), "argmax", [*ARRAYS, *TYPED]),
    "Latin-1": (np.array(["bär".encode("latin-1")] * 4), "not UTF-8, in Latin-1 it reads 'bär'",
                [*ARRAYS, *TYPED]),
    "masks": (np.zeros((4, 3, 2), int), "masks or boxes", ARRAYS),
    "columns of text": (np.full((4, 2), "a"), "one label for each image", ARRAYS),
    "durations": (np.zeros(4, "m8[s]"), "expected whole numbers or text",
                  [as_arrays, as_npz, as_npy]),
}  # fmt: skip


@pytest.mark.parametrize(("reader", "labels", "message"), cells(REFUSED))
def test_a_form_that_is_no_label_is_the_same_error_in_every_reader(
    tmp_path, reader, labels, message
):
    with pytest.raises(InputError, match=message):
        read(reader, tmp_path, labels)


NAMED = {
    "codes": (np.array([0, 2, 1, 0]), [0, 2, 1, 0], ALL),
    "floats": (np.array([0.0, 2, -1, 0]), [0, 2, -1, 0], ALL),
    "few": (np.array([2, 2, 2, 0]), [2, 2, 2, 0], ALL),
    "names": (np.array(["b", "c", "a", "b"]), [1, 2, 0, 1], ALL),
    "one-hot": (np.eye(3)[[0, 2, 1, 0]], [0, 2, 1, 0], [*ARRAYS, *TYPED, as_json]),
}


@pytest.mark.parametrize(("reader", "labels", "codes"), cells(NAMED))
def test_codes_and_names_mean_the_classes_that_are_given(tmp_path, reader, labels, codes):
    found = read(reader, tmp_path, labels, class_names=["a", "b", "c"])
    assert found == (("a", "b", "c"), codes, [])


@pytest.mark.parametrize("reader", [*ARRAYS, *TYPED, *TEXTS])
def test_truth_values_are_the_codes_of_two_classes_that_are_given(tmp_path, reader):
    labels = np.array([True, False, False, True])
    found = read(reader, tmp_path, labels, class_names=["cat", "dog"])
    assert found == (("cat", "dog"), [1, 0, 0, 1], [])


@pytest.mark.parametrize("reader", ALL)
def test_codes_from_one_on_do_not_meet_names_that_count_from_zero(tmp_path, reader):
    labels = np.array([1, 2, 3, 1])
    with pytest.raises(LabelError, match=r"1 to 3 for 3 class names.*subtract 1") as caught:
        read(reader, tmp_path, labels, class_names=["a", "b", "c"])
    assert "leave class_names out" in str(caught.value)  # both cures work:
    (tmp_path / "cure").mkdir()
    assert read(reader, tmp_path / "cure", labels) == (("1", "2", "3"), [0, 1, 2, 0], [])
    (tmp_path / "other").mkdir()
    names = ["a", "b", "c"]
    assert read(reader, tmp_path / "other", labels - 1, class_names=names)[1] == [0, 1, 2, 0]


@pytest.mark.parametrize("reader", ALL)
def test_the_cures_of_minus_one_as_a_class_and_of_255_work(tmp_path, reader):
    for number, (labels, codes) in enumerate(
        {
            (1, 0, 1, 0): [1, 0, 1, 0],  # 0 written for -1
            (0, 1, -1, 1): [0, 1, -1, 1],  # -1 written for 255
            (0, 1, 2, 1): [0, 1, 2, 1],  # the next code written for 255
        }.items()
    ):
        (tmp_path / str(number)).mkdir()
        assert read(reader, tmp_path / str(number), np.array(labels))[1] == codes


# one value, one array --------------------------------------------------------------------------


def test_objects_and_masked_arrays_are_labels_too():
    objects = np.array(["emu", None, "cat", NAN], object)
    assert canonical(objects, "here").tolist() == ["emu", "", "cat", ""]
    assert canonical([3, None, 1.0, NAN], "here").tolist() == [3, -1, 1, -1]
    assert canonical([b"emu", "cat", None], "here").tolist() == ["emu", "cat", ""]
    masked = np.ma.array([3, 1, 2], mask=[False, True, False])
    assert canonical(masked, "here").tolist() == [3, -1, 2]
    masked = np.ma.array([0.5, 1, 2], mask=[True, False, False])
    assert canonical(masked, "here").tolist() == [-1, 1, 2]
    assert canonical([[0, 1], [1, 0]], "here").tolist() == [1, 0]
    assert canonical(np.array([[[4]], [[5]]]), "here").tolist() == [4, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, "a"], "here: some labels are codes and some texts"),
        ([True, 2], "some labels are codes and some texts"),
        ([0, {"a": 1}], r"here: sample 1 has the label \{'a': 1\}"),
        ([0, 2.5], "sample 1 has the label 2.5"),
        ([["a", "b"], ["a"]], r"here: sample 0 has the label \['a', 'b'\], expected a whole"),
        ([[[0], [1, 2]], [[0], [1]]], r"sample 0 has the label \[\[0\], \[1, 2\]\]"),
        ([[0, 1], [1, 0, 0], [1, 1]], "sample 2: is multi-label: it has 2 of 2 columns set"),
        ([float("inf")], "sample 0 has the label inf"),
        (np.array([2**64 - 1], "u8"), "sample 0 has label 18446744073709551615"),
        (np.array([0, np.inf]), "sample 1 has label inf"),
        (np.array([b"a", b"b\xe4r"]), "not UTF-8"),
    ],
)
def test_values_that_are_no_labels_are_refused_by_place(values, message):
    with pytest.raises((LabelError, SourceError), match=message):
        canonical(values, "here")


@pytest.mark.parametrize("labels", [np.array(3), np.zeros((3, 4), "U1"), np.zeros((1, 3, 3))])
def test_arrays_that_hold_not_one_label_a_sample_are_refused(labels):
    with pytest.raises(ShapeError, match="expected one label for each image"):
        canonical(labels, "here")


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (-1, "-1"), (True, "true"), (None, None), (NAN, None), ("", None),
     ("cat", "cat"), ("ä".encode(), "ä"), (np.int8(4), "4"), ([0, 0, 1], "2"), ([7], "7")],
)  # fmt: skip
def test_one_value_is_the_text_of_a_label(value, text):
    assert label_text(value, "here") == text


def test_whole_numbers_may_be_written_as_floats_or_with_a_sign():
    written = ["7", "-1", "+1", "7.0", "7.", "0"]
    assert [whole_number(text) for text in written] == [7, -1, 1, 7, 7, 0]
    assert [whole_number(text) for text in ["007", "7.5", "", "1e3", "9" * 30]] == [None] * 5


def test_one_class_may_be_written_in_several_ways():
    assert class_names_of({"1", "1.0", "0", "nan", ""}, "here") == ("0", "1")
    assert [code_of(text, ("0", "1")) for text in ("1.0", "nan", "", "0")] == [1, -1, -1, 0]
    assert class_names_of({"1.0", "nan", "cat"}, "here") == ("1.0", "cat", "nan")
    assert class_names_of({"-1", "7", "3"}, "here", as_names=True) == ("-1", "3", "7")
    with pytest.raises(LabelError, match="-1 and 1"):
        class_names_of({"+1", "-1"}, "here")


@pytest.mark.parametrize("codes", [{0, 255, 254}, set(range(256)), {3, 7, 255}, {255}])
def test_255_is_a_class_among_codes_that_are_not_dense(codes):
    names = class_names_of({str(code) for code in codes}, "here")
    assert names == tuple(map(str, sorted(codes)))


def test_splits_may_write_their_labels_in_several_forms():
    survey = Survey("here")
    for labels in (np.array([3, 7]), np.array([3.0, NAN]), np.array(["7", ""]), [None]):
        survey.add(labels, "here")
    labelling = survey.labelling()
    assert labelling.class_names == ("3", "7")
    assert labelling.apply(np.array(["7", "3", ""])).tolist() == [1, 0, -1]
    assert labelling.apply(np.array([7.0, NAN])).tolist() == [1, -1]


def test_arrays_and_objects_take_labels_of_one_sample_in_order():
    images = IMAGES[:2]
    with pytest.raises(LabelError, match="split 'test': sample 1 has label -3"):
        from_arrays({"train": (images, np.array([0, 1])), "test": (images, np.array([1, -3]))})


def test_texts_of_which_two_are_one_number_are_refused():
    with pytest.raises(LabelError, match=r"'1' and '1\.0' are one number"):
        class_names_of({"1", "1.0", "2.5"}, "a.csv")
    assert class_names_of({"1.0", "2.5"}, "a.csv") == ("1.0", "2.5")
