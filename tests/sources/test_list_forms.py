"""Lists as people have them: what they look like, what they may name, and which cure cures."""

from __future__ import annotations

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import grey, put

from pipeline.config.job_settings import make_images
from pipeline.core.errors import ConfigError, LabelError, PixsimError, SourceError
from pipeline.sources.lists import Repeats
from pipeline.sources.registry import find_kind, open_source, release

COUNT = 4
TABLE = "path,label\n" + "".join(f"imgs/{n}.png,{'bä' if n % 2 else 'cat'}\n" for n in range(COUNT))
NAMES = ("bä", "cat")


@pytest.fixture
def root(tmp_path):
    for folder in ("imgs", "odd place"):
        (tmp_path / folder).mkdir()
        for number in range(COUNT):
            (tmp_path / folder / f"{number}.png").write_bytes(grey(number))
        if folder == "imgs":
            folders = tmp_path
    return folders


def listed(source, **settings):
    """Return classes, split -> (values of the images, labels), and remarks."""
    given = source if isinstance(source, dict) else {"source": str(source)}
    found = open_source({**given, **settings})
    try:
        splits = {}
        for split, info in found.splits().items():
            block = found.read(split, 0, info.count)
            assert block.problems == {}
            splits[split] = block.images[:, 0, 0].tolist(), block.labels.tolist()
        return found.class_names, splits, found.remarks
    finally:
        release(found)


ALL = ([0, 1, 2, 3], [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TABLE.encode("utf-8-sig")),
        ("a.csv", TABLE.encode("utf-16")),
        ("a.csv", TABLE.encode("utf-32")),
        ("a.csv", TABLE.replace(",", ";")),
        ("a.csv", TABLE.replace(",", "|")),
        ("a.csv", TABLE.replace(",", ", ")),
        ("a.csv", TABLE.replace(",", " , ")),
        ("a.tsv", TABLE.replace(",", "\t")),
        ("a.csv", TABLE.replace("\n", "\r")),
        ("a.csv", TABLE.replace("\n", "\r\n") + "\r\n\r\n"),
        ("a.csv", "# made by me\n\n# it's \"mine\"\n" + TABLE),
        ("a.csv", TABLE.replace("bä\n", "bä\n# later\n   \n", 1)),
        ("a.csv", "# " + TABLE),
        ("a.csv", re.sub(r"([^,\n]+)", r'"\1"', TABLE)),
        ("a.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("packed.csv", gzip.compress(TABLE.encode("utf-16"), mtime=0)),
        ("a.csv", "FilePath,Label" + TABLE.removeprefix("path,label")),
        ("a.csv", "label,File Name\n" + re.sub(r"(.+),(.+)", r"\2,\1", TABLE.partition("\n")[2])),
        ("a.csv", TABLE.replace("imgs/", "imgs\\")),
        ("a.csv", TABLE.replace("imgs/", "imgs/").replace(".png", ".PNG")),
        ("a.csv", TABLE.replace("imgs/", "").replace("path", "image_id")),
        ("a.csv", TABLE.replace("imgs/", "").replace(".png", "").replace("path", "Id")),
        ("a.csv", TABLE.partition("\n")[2]),
        ("a.csv", TABLE.partition("\n")[2].replace(".png", "")),
        ("a.csv", TABLE.partition("\n")[2].replace("imgs/", "").replace(".png", "")),
        ("a.csv", TABLE.replace("path", "image").replace("label\n", "label,name\n").replace(
            "bä\n", "bä,Ann\n").replace("cat\n", "cat,Bo\n")),
        ("a.txt", TABLE.partition("\n")[2].replace(",", " ")),
        ("a.txt", TABLE.replace(",", "   ").replace("bä", "bä  ")),
        ("utf16.ndjson", "".join(
            json.dumps({"Image": row.split(",")[0], "label": row.split(",")[1]}) + "\r\n"
            for row in TABLE.splitlines()[1:]
        ).encode("utf-16")),
        ("a.jsonl", "".join(
            json.dumps(dict(zip(("file_name", "label"), row.split(","), strict=True))) + "\n"
            for row in TABLE.splitlines()[1:]
        )),
    ],
)  # fmt: skip
def test_one_table_in_many_forms_gives_the_same_samples(root, name, content):
    path = put(root / name, content)
    assert find_kind(make_images(str(path))) == "list"
    names, splits, _ = listed(path)
    assert (names, splits) == (NAMES, {"train": ALL})


@pytest.mark.parametrize(
    ("header", "cells", "splits", "said"),
    [
        ("path,label,data set", ["train", "train", "test", "test"], ["train", "test"], "data set"),
        ("path,label,Usage", ["Training"] * 2 + ["PublicTest"] * 2,
         ["Training", "PublicTest"], "Usage"),
        ("path,label,is_valid", ["False", "False", "True", "True"], ["train", "valid"], "is_valid"),
        ("path,label,Is Test", ["0", "0", "1", "1"], ["train", "test"], "Is Test"),
        ("path,label,Split", ["a", "a", "b", "b"], ["a", "b"], ""),
        ("path,label,dataset", ["ade", "ade", "coco", "coco"], ["train"], ""),
    ],
)  # fmt: skip
def test_columns_of_splits_are_known_by_name_and_content(root, header, cells, splits, said):
    rows = [f"imgs/{n}.png,{n % 2},{cell}\n" for n, cell in enumerate(cells)]
    _, found, remarks = listed(put(root / "a.csv", header + "\n" + "".join(rows)))
    assert list(found) == splits
    assert sum(len(values) for values, _ in found.values()) == COUNT
    several = "" if len(splits) == 1 else "s"
    *others, line = remarks
    assert line == f"{len(splits)} split{several}, 2 classes from column 'label'"
    assert said in "".join(others)
    assert bool(others) == bool(said)


def test_what_is_decided_by_more_than_a_name_is_said(root):
    _, _, remarks = listed(put(root / "a.csv", "0,cat\n1,dog\n1,dog\n".replace("0", "imgs/0.png")))
    assert remarks[-1] == "1 split, 2 classes from column 'label'"
    assert [text.partition(".csv: ")[2] for text in remarks[:-1]] == [
        "has no header; taken as 'path', 'label'",
        "2 entries stand for files in imgs/ with the suffix .png",
        "1 entries name a file that an earlier one names; each is a sample",
    ]


def test_columns_of_classes_are_one_label_where_each_row_has_a_single_one(root):
    rows = "".join(f"{n},{int(n % 2 == 0)}.0,{int(n % 2 == 1)}.0\n" for n in range(COUNT))
    path = put(root / "a.csv", "image, MEL, BCC\n" + rows)
    names, splits, remarks = listed(path)
    assert (names, splits["train"][1]) == (("MEL", "BCC"), [0, 1, 0, 1])
    assert "MEL, BCC are taken as one class each" in remarks[0]
    assert remarks[-1] == "1 split, 2 classes from columns, one for each class"
    table = pa.table({"image": ["0", "1"], "b": [True, False], "a": [False, True]})
    pq.write_table(table, root / "a.parquet")
    assert listed(root / "a.parquet")[:2] == (("b", "a"), {"train": ([0, 1], [0, 1])})


def test_codes_and_names_side_by_side_must_agree(root):
    rows = ["imgs/0.png,7,cat", "imgs/1.png,3,dog", "imgs/2.png,7,cat"]
    text = "path,class_id,class_name\n" + "\n".join(rows) + "\n"
    names, splits, remarks = listed(put(root / "a.csv", text))
    assert (names, splits["train"][1]) == (("cat", "dog"), [0, 1, 0])
    assert "labels are taken from column 'class_name'" in remarks[0]
    assert remarks[-1] == "1 split, 2 classes from column 'class_name'"
    both = text.replace("class_id,class_name", "label,label_name")
    assert listed(put(root / "a.csv", both))[0] == ("3", "7")
    for wrong in ("imgs/3.png,3,cat", "imgs/3.png,7,dog"):
        path = put(root / "a.csv", text + wrong)
        with pytest.raises(LabelError, match=r"goes with '.*' and with '.*' of column"):
            listed(path)
        assert listed(path, columns={"label": "class_name"})[0] == ("cat", "dog")


@pytest.mark.parametrize(
    ("content", "error", "message", "cure"),
    [
        ("id,breed\n0,pug\n1,boxer\n", ConfigError, "but breed; .* columns: {label: breed}",
         {"columns": {"label": "breed"}}),
        ("id,breed\n0,pug\n1,boxer\n", ConfigError, "columns: {label: null}",
         {"columns": {"label": None}}),
        ("foo,label\nimgs/0.png,7\n", ConfigError, "but foo, label; .*columns: {path: foo}",
         {"columns": {"path": "foo"}}),
        ("path,label\nimgs/0.png,bä\n".encode("latin-1"), SourceError,
         "is no UTF-8; .* encoding: latin-1, in which this reads 'bä'", {"encoding": "latin-1"}),
        ("path,klä\nimgs/0.png,7\n".encode("latin-1"), SourceError, "is no UTF-8; .*: latin-1",
         {"encoding": "latin-1", "columns": {"label": "klä"}}),
        ("path,label\nimgs/0.png,b\n".encode("utf-16-le"), SourceError, "encoding: utf-16-le",
         {"encoding": "utf-16-le"}),
        ("image,cat,dog\n0,1,0\n1,1,1\n", LabelError, "row 2 is of 2 of the classes cat, dog: .*"
         "multi-label.* columns: {label: cat}", {"columns": {"label": "cat"}}),
        ("image,cat,dog\n0,1,0\n1,0,0\n", LabelError, "row 2 is of 0 of the classes",
         {"columns": {"label": "cat"}}),
        ("path,Label,LABEL\nimgs/0.png,1,2\n", ConfigError, "2 columns for the label, Label, LABEL",
         {"columns": {"label": "Label"}}),
        ("path,label\n2.png,b\n".replace("2", "x/2"), SourceError,
         "none of the first 1 paths, from column 'path', can be read, such as 'x/2.png': no such "
         "file; correct them, or say with root", None),
    ],
)  # fmt: skip
def test_the_cure_of_each_error_cures(root, content, error, message, cure):
    path = put(root / "a.csv", content)
    with pytest.raises(error, match=rf"a\.csv: .*{message}"):
        listed(path)
    if cure is not None:
        assert listed(path, **cure)[1]["train"][0][0] == 0


@pytest.mark.parametrize(
    ("name", "content", "message", "cured"),
    [
        ("digits.txt", "2\n0\n", "single value on each line, such as '2'", "2.png\n0.png\n"),
        ("truth.txt", "490\n361\n", r"single value on each line, such as '490', .*val/0001\.jpg,7",
         "0.png,490\n1.png,361\n"),
        ("a.csv", "imgs/0.png,7,x,y\n", "has no names of columns, .* path,label,split,column4",
         "path,label,u,v\nimgs/0.png,7,x,y\n"),
        ("a.csv", "7,imgs/0.png\n", "has no names of columns, .* path,label",
         "label,path\n7,imgs/0.png\n"),
        ("a.csv", f"label,{','.join(f'pixel{n}' for n in range(784))}\n", "holds no samples", None),
        ("a.csv", 'path,label\nimgs/0.png,"b\nimgs/1.png,b\n', "goes over several lines; close",
         TABLE),
        ("a.csv", "path,label\nimgs/0.png\n", "no proper CSV table", TABLE),
        ("a.csv", "", "is empty", TABLE),
        ("a.csv", "# nothing\n", "is empty", TABLE),
        ("a.csv.gz", gzip.compress(TABLE.encode(), mtime=0)[:-9], "cannot be unpacked", TABLE),
        ("a.jsonl", '{"file_name": "imgs/0.png", "label": 1}\n[1]\n', "line 2 is no object", None),
        ("a.jsonl", '{"file_name": "imgs/0.png"\n', "line 1 is no JSON", None),
        ("a.jsonl", "\n", "is empty", None),
        ("a.csv", TABLE.encode("utf-16"), "begins with the mark of UTF-16, .* leave", None),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused_with_what_it_is(root, name, content, message, cured):
    settings = {"encoding": "latin-1"} if "mark of" in message else {}
    with pytest.raises(PixsimError, match=message):
        listed(put(root / name, content), **settings)
    if cured is not None:
        assert listed(put(root / name, cured))[1]["train"][0]


def test_a_name_that_may_be_two_files_says_which(root):
    put(root / "imgs" / "0.jpg", grey(9))
    path = put(root / "a.csv", "path,label\nimgs/1,a\nimgs/0,b\n")
    with pytest.raises(AssertionError):
        listed(path)
    found = open_source(str(path))
    problem = found.read("train", 0, 2).problems[1]
    assert problem.detail == "may be imgs/0.jpg or imgs/0.png; write which in the list"
    release(found)
    assert listed(put(path, "path,label\nimgs/1,a\nimgs/0.png,b\n"))[1]["train"][0] == [1, 0]


def test_a_folder_of_another_split_is_not_looked_into(tmp_path):
    for folder, value in (("train_images", 1), ("test_images", 2)):
        put(tmp_path / folder / "0.png", grey(value))
    for name, value in (("train", 1), ("test", 2)):
        path = put(tmp_path / f"{name}.csv", "image_id,label\n0.png,cat\n")
        assert listed(path)[1][name][0] == [value]
    both = put(tmp_path / "labels.csv", "id,label,split\n0,a,test\n0,b,train\n")
    assert {s: v for s, (v, _) in listed(both)[1].items()} == {"test": [2], "train": [1]}
    path = put(tmp_path / "labels.csv", "id,label\n0,cat\n")
    with pytest.raises(
        SourceError, match=r"may be test_images/0\.png or train_images/0\.png; .*root"
    ):
        listed(path)
    assert listed(path, root=str(tmp_path / "test_images"))[1]["train"][0] == [2]


def test_an_unusual_folder_is_named_by_the_error(root):
    path = put(root / "sub" / "a.csv", "path,label\n1,cat\n")
    with pytest.raises(SourceError, match="root: ") as caught:
        listed(path)
    place = re.search(r"root: (.*)$", str(caught.value))[1]
    assert listed(path, root=place)[1]["train"][0] == [1]
    path = put(root / "odd place" / "a.csv", "path,label\nodd place/1.png,cat\n")
    with pytest.raises(SourceError, match=f"root: {root}$"):
        listed(path)
    assert listed(path, root=str(root))[1]["train"][0] == [1]


def test_a_table_without_labels_beside_one_with_them_is_unlabelled(root):
    train = put(root / "train.csv", "id,width,breed\n0,4,pug\n1,4,boxer\n")
    test = put(root / "test.csv", "id,width\n2,4\n")
    places = {"splits": {"train": str(train), "test": str(test)}}
    names, splits, remarks = listed(places, columns={"label": "breed"})
    assert "test.csv: has no column of labels as others have" in str(remarks)
    assert names == ("boxer", "pug")
    assert splits == {"train": ([0, 1], [1, 0]), "test": ([2], [-1])}
    put(train, "id,width,label\n0,4,pug\n1,4,boxer\n")
    assert listed(places)[1]["test"] == ([2], [-1])
    put(test, "id,height,breed\n2,4,pug\n")
    with pytest.raises(ConfigError, match=r"test\.csv: has no column label.* but height, breed"):
        listed(places)


def test_a_list_of_paths_alone_is_a_set_without_labels(root):
    names, splits, remarks = listed(put(root / "a.txt", "imgs/0.png\nimgs/3.png\n"))
    assert (names, splits) == ((), {"train": ([0, 3], [-1, -1])})
    assert "no column of labels" in remarks[-1]
    with pytest.raises(LabelError, match=r"a\.csv: none of its samples has a label"):
        listed(put(root / "a.csv", "path,label\nimgs/0.png,\n"))


def test_lines_of_json_hold_labels_of_any_kind(root):
    rows = [("0", 2), ("1", 2.0), ("2", None), ("3", 0)]
    text = "".join(
        json.dumps({"id": name, "label": label, "box": [{"x": 1}]}) + "\n" for name, label in rows
    )
    assert listed(put(root / "a.jsonl", text), columns={"label": "label"})[:2] == (
        ("0", "2"), {"train": ([0, 1, 2, 3], [1, 1, -1, 0])},
    )  # fmt: skip


def test_only_a_text_encoding_is_one():
    for wrong in ("nonsense", "base64"):
        with pytest.raises(ConfigError, match="the name of an encoding, such as utf-8"):
            make_images({"source": "a.csv", "encoding": wrong})
    plain = make_images("a.csv").model_dump(exclude_unset=True)
    assert plain == {"source": "a.csv"}  # what older plans recorded


def test_repeats_are_counted_within_and_between_batches(tmp_path):
    repeats = Repeats()
    repeats.add(tmp_path, [b"a", b"b", b"a", b"", b""])
    repeats.add(tmp_path, [b"b", b"c"])
    repeats.add(tmp_path / "other", [b"a"])
    assert repeats.count == 2


def write_parquet(path, columns, names=None):
    table = pa.table(columns)
    if names:
        features = {c: {"_type": "ClassLabel", "names": list(n)} for c, n in names.items()}
        notes = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": notes})
    pq.write_table(table, path)
    return path


IMAGES = [grey(n) for n in range(COUNT)]


@pytest.mark.parametrize(
    ("columns", "names", "settings", "expected"),
    [
        ({"Image": IMAGES, "Label": [0, 1, 0, 1]}, None, {}, ("0", "1")),
        ({"image": IMAGES, "breed": [0, 1, 0, 1]}, {"breed": ("pug", "boxer")}, {},
         ("pug", "boxer")),
        ({"img": IMAGES, "Class ID": [5, 9, 5, 9]}, None, {}, ("5", "9")),
        ({"image": IMAGES, "label": [[1, 0], [0, 1], [1, 0], [0, 1]]}, None, {}, ("0", "1")),
        ({"image": IMAGES, "a": [1, 0, 1, 0], "b": [0, 1, 0, 1]}, None, {}, ("a", "b")),
        ({"image": IMAGES}, None, {}, ()),
    ],
)  # fmt: skip
def test_columns_of_parquet_are_found_by_any_spelling(tmp_path, columns, names, settings, expected):
    path = write_parquet(tmp_path / "a.parquet", columns, names)
    found, splits, _ = listed(path, **settings)
    labels = [0, 1, 0, 1] if expected else [-1] * COUNT
    assert (found, splits["train"]) == (expected, ([0, 1, 2, 3], labels))


@pytest.mark.parametrize(
    ("columns", "names", "message", "cure"),
    [
        ({"photo": IMAGES, "label": [0] * 4}, None, "but photo, label; .* columns: {image: photo}",
         {"kind": "parquet", "columns": {"image": "photo"}}),
        ({"image": IMAGES, "fine": [0] * 4, "coarse": [0] * 4},
         {"fine": ("a",), "coarse": ("b",)}, "2 columns of classes, fine, coarse; .*{label: fine}",
         {"columns": {"label": "fine"}}),
        ({"image": IMAGES, "breed": ["pug"] * 4}, None, "but breed; .*{label: breed}",
         {"columns": {"label": "breed"}}),
        ({"image": IMAGES, "caption": ["x"] * 4}, None, "columns: {label: null}",
         {"columns": {"label": None}}),
        ({"image": IMAGES, "label": [0, 0, 1, 1], "class_name": ["a", "b", "c", "c"]}, None,
         "'0' of column 'label' goes with", {"columns": {"label": "class_name"}}),
    ],
)  # fmt: skip
def test_the_cure_of_each_error_of_parquet_cures(tmp_path, columns, names, message, cure):
    path = write_parquet(tmp_path / "a.parquet", columns, names)
    with pytest.raises(PixsimError, match=rf"a\.parquet: .*{message}"):
        listed(path, kind="parquet")
    assert listed(path, **cure)[1]["train"][0] == [0, 1, 2, 3]


def test_a_file_of_parquet_without_images_is_named(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "a.parquet", {"image": IMAGES, "label": [0, 1, 0, 1]})
    other = write_parquet(folder / "meta.parquet", {"key": ["a"], "label": [1]})
    with pytest.raises(ConfigError, match=r"meta\.parquet: holds no images: .*key, label.*leave"):
        listed(folder)
    other.unlink()
    assert listed(folder)[1]["train"][0] == [0, 1, 2, 3]


def test_a_parquet_list_may_have_numbers_for_names(root):
    write_parquet(
        root / "a.parquet", {"Id": [3, 1], "is_valid": [True, False], "label": [1.0, None]}
    )
    assert listed(root / "a.parquet")[:2] == (("1",), {"valid": ([3], [0]), "train": ([1], [-1])})
