"""Tables of samples to leave out are read as they are meant, or refused in one sentence."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs_for_tests import table_of

from pipeline.core.errors import DamagedError, SchemaError, SourceError
from pipeline.storage import sample_lists
from pipeline.storage.sample_lists import ListedSamples, read_copy, read_list, taken_of

CONTENT = {"digest": "d", "splits": {"test": {"count": 90}, "train": {"count": 230}}}
LISTED = {"train": [4, 2, 2], "test": [1]}


def plain(listed):
    return {split: rows.tolist() for split, rows in listed.samples.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda columns: columns,
        pa.table,
        pd.DataFrame,
        lambda columns: pd.DataFrame(columns).astype({"split": "category", "sample": "int16"}),
    ],
)
def test_tables_in_memory_are_taken_in_any_form(form):
    listed = read_list(form(table_of(LISTED)), CONTENT)
    assert plain(listed) == {"test": [1], "train": [2, 4]}
    assert listed.counts()["train"] == {"count": 2, "reasons": {"no reason given": 2}}


def test_rows_to_keep_are_not_meant_and_the_first_reason_counts(tmp_path):
    (tmp_path / "t.csv").write_text(
        "sample,reason,split,keep\n3,b,1,False\n2,NA,1,False\n9,,1,True\n3,a,1,false\n"
    )
    content = {"digest": "d", "splits": {"1": {"count": 10}}}
    listed = read_list(tmp_path / "t.csv", content)
    assert plain(listed) == {"1": [2, 3]}
    assert listed.counts() == {"1": {"count": 2, "reasons": {"NA": 1, "b": 1}}}


def test_of_many_reasons_the_most_frequent_are_counted():
    reasons = ["blurred"] * 3 + [f"copy of {number}" for number in range(50)]
    listed = read_list(table_of({"train": list(range(53))}) | {"reason": reasons}, CONTENT)
    known = listed.counts()["train"]["reasons"]
    assert len(known) == 21
    assert (known["blurred"], known["other reasons"]) == (3, 53 - 3 - 19)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sample": [1]}, "no column 'split' .it has sample., expected one of texts"),
        ({"split": ["train"], "index": [1]}, "no column 'sample' .it has split, index."),
        ({"split": ["train"], "sample": [1.5]}, "'sample' holds double, expected integers"),
        ({"split": ["train", None], "sample": [1, 2]}, "'split' is empty in 1 rows"),
        ({"split": ["train", "train"], "sample": [1, None]}, "'sample' is empty in 1 rows"),
        ({"split": [1], "sample": [1]}, "'split' holds integer, expected texts"),
        ({"split": ["train"], "sample": [1], "keep": [0]}, "'keep' holds integer, expected true"),
        ({"split": ["train"], "sample": [1], "keep": [None]}, "'keep' is empty in 1 rows"),
        ({"split": ["train"], "sample": [1], "reason": [3]}, "'reason' holds integer"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, columns, message):
    with pytest.raises(SchemaError, match=f"^the table: .*{message}"):
        read_list(columns, CONTENT)
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(SchemaError, match=f"t.parquet: .*{message}"):
        read_list(tmp_path / "t.parquet", CONTENT)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"junk", "t.parquet: cannot be read"),
        ("t.csv", b"", "t.csv: cannot be read"),
        ("t.csv", b"split,sample\na,1,2\n", "t.csv: cannot be read"),
        ("t.txt", b"", "expected a table in a file .parquet or .csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_list(tmp_path / name, CONTENT)


def test_what_is_no_table_is_refused():
    with pytest.raises(SchemaError, match=r"a table of type list .*expected a data frame"):
        read_list([1, 2], CONTENT)


@pytest.mark.parametrize("columns", [{"split": [], "sample": []}, {}])
def test_an_empty_table_leaves_nothing_out(columns, tmp_path):
    if not columns:
        with pytest.raises(SchemaError, match=r"it has none"):
            read_list(columns, CONTENT)
        return
    (tmp_path / "t.csv").write_text("split,sample\n")
    for given_ in (columns, tmp_path / "t.csv"):
        assert read_list(given_, CONTENT).total == 0


@given(st.sets(st.integers(0, 49)), st.lists(st.integers(0, 50), min_size=2, max_size=4))
def test_a_copy_tells_of_any_range_what_is_taken(tmp_path_factory, samples, edges):
    path = tmp_path_factory.mktemp("copy") / "list.parquet"
    listed = read_list(table_of({"train": sorted(samples)}), CONTENT)
    if not listed.total:
        return
    listed.write(path, "somewhere")
    edges = sorted(edges)
    pieces = [("test", 0, 3), *(("train", a, b) for a, b in itertools.pairwise(edges))]
    for taken in (False, True):
        found = taken_of([ListedSamples(path, listed.digest, taken)], pieces)
        inside = [split == "train" and at in samples for split, a, b in pieces
                  for at in range(a, b)]  # fmt: skip
        assert found.tolist() == [is_in == taken for is_in in inside]
    assert sample_lists.copied_from(path) == "somewhere"


def test_a_copy_that_was_changed_is_noticed(tmp_path):
    path = tmp_path / "list.parquet"
    listed = read_list(table_of(LISTED, reason="r"), CONTENT)
    listed.write(path, "somewhere")
    assert read_copy(path).counts() == listed.counts()
    with pytest.raises(DamagedError, match="was changed"):
        ListedSamples(path, "other", taken=False).taken_of("train", 0, 3)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedError, match="--repair"):
        read_copy(path)


def test_a_million_of_a_hundred_million_is_looked_up_at_once(tmp_path):
    count = 10**8
    samples = np.arange(0, count, 100)
    content = {"digest": "d", "splits": {"train": {"count": count}}}
    table = pa.table({"split": pa.array(["train"] * len(samples)), "sample": samples})
    listed = read_list(table, content)
    listed.write(tmp_path / "list.parquet", "")
    lists = [ListedSamples(tmp_path / "list.parquet", listed.digest, taken=False)]
    assert taken_of(lists, [("train", count - 250, count)]).sum() == 248
