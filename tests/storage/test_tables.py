"""Parquet tables: what goes in comes out, and a changed byte is an error."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import DamagedError, StoreError
from pipeline.storage import tables

ROWS = 40


def make_columns(seed=0, rows=ROWS, start=0):
    """Return columns as the tables take them, and the values that reading gives back."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 3, rows).astype(np.int32)
    hashes = np.frombuffer(rng.bytes(32 * rows), "V32")
    values = {
        "sample": np.arange(start, start + rows),
        "class": codes,
        "label": codes,
        "distance": rng.random(rows),
        "sha256": hashes,
    }
    columns = values | {
        "class": tables.dictionary(codes, ["cat", "dog", "é 字"]),
        "label": tables.nullable(codes, codes < 0),
        "sha256": tables.fixed_bytes(hashes),
        "source": [f"train/{n}.png" for n in range(start, start + rows)],
    }
    values["source"] = np.array(columns["source"], object)
    return columns, values


def same(found, expected):
    return list(found) == list(expected) and all(
        found[name].dtype == expected[name].dtype
        and found[name].tolist() == expected[name].tolist()
        for name in expected
    )


@pytest.fixture
def part(tmp_path):
    columns, values = make_columns()
    values = {name: values[name] for name in columns}
    tables.write_part(tmp_path / "a.parquet", columns, {"identity": "plan 1", "digest": "é"})
    return tmp_path / "a.parquet", values


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def column_ranges(path):
    """For each column the bytes that its pages take, as Parquet's own metadata says."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    ranges = {}
    for index in range(group.num_columns):
        column = group.column(index)
        start = column.data_page_offset
        if column.has_dictionary_page:
            start = min(start, column.dictionary_page_offset)
        ranges[column.path_in_schema] = (start, start + column.total_compressed_size)
    return ranges


def test_what_is_written_is_read_back_with_its_types(part):
    path, values = part
    found = tables.read_part(path)
    assert same(found, values)
    assert {name: str(column.dtype) for name, column in found.items()} == {
        "sample": "int64",
        "class": "int32",
        "label": "int32",
        "distance": "float64",
        "sha256": "|V32",
        "source": "object",
    }


def test_others_read_names_and_nulls_in_the_file_not_our_codes(part):
    path, values = part
    found = pq.read_table(path).to_pydict()
    names = ["cat", "dog", "é 字", None]  # -1 is the last
    assert found["class"] == [names[code] for code in values["class"]]
    assert found["label"] == [None if code < 0 else code for code in values["label"]]
    assert found["sha256"] == [bytes(value) for value in values["sha256"]]


def test_columns_are_read_alone_and_in_the_order_asked(part):
    path, values = part
    found = tables.read_part(path, ["distance", "sample"])
    assert set(found) == {"distance", "sample"}
    np.testing.assert_array_equal(found["distance"], values["distance"])


def test_a_table_without_rows_comes_back_with_its_types(tmp_path):
    columns, _ = make_columns(rows=0)
    del columns["source"]  # a list of nothing has no type
    tables.write_part(tmp_path / "a.parquet", columns, {})
    found = tables.read_part(tmp_path / "a.parquet")
    assert {name: (len(c), str(c.dtype)) for name, c in found.items()} == {
        "sample": (0, "int64"),
        "class": (0, "int32"),
        "label": (0, "int32"),
        "distance": (0, "float64"),
        "sha256": (0, "|V32"),
    }


@pytest.mark.parametrize("codes", [[2, 2, 0], [-1, -1], [1], [-1, 2, -1, 0]])
def test_codes_are_those_that_were_written_whichever_classes_occur(tmp_path, codes):
    written = np.array(codes, np.int64)
    names = [f"class {n}" for n in range(5)]
    tables.write_part(tmp_path / "a.parquet", {"c": tables.dictionary(written, names)}, {})
    assert tables.read_part(tmp_path / "a.parquet")["c"].tolist() == codes


def test_null_in_a_column_of_floats_is_nan(tmp_path):
    column = tables.nullable(np.array([0.5, 0.25, 1.0]), np.array([False, True, False]))
    tables.write_part(tmp_path / "a.parquet", {"margin": column}, {})
    found = tables.read_part(tmp_path / "a.parquet")["margin"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [0.5, np.nan, 1.0])


def test_fixed_bytes_keep_every_byte_also_of_a_slice_and_of_zeros():
    values = np.frombuffer(bytes(range(256)) + bytes(64), "V32")[::2]
    column = tables.fixed_bytes(values)
    assert column.type == pa.binary(32)
    assert column.to_pylist() == [bytes(value) for value in values]


def test_notes_come_back_and_hold_nothing_else(part):
    assert tables.read_notes(part[0]) == {"identity": "plan 1", "digest": "é"}


def test_a_table_without_notes_and_one_of_others_have_none(tmp_path):
    tables.write_part(tmp_path / "a.parquet", {"x": np.arange(3)}, {})
    schema = pa.schema([("x", pa.int64())], metadata={"identity": "not ours"})
    pq.write_table(pa.table({"x": [1]}, schema=schema), tmp_path / "b.parquet")
    assert tables.read_notes(tmp_path / "a.parquet") == {}
    assert tables.read_notes(tmp_path / "b.parquet") == {}


def test_a_missing_part_has_no_notes_and_cannot_be_read(tmp_path):
    assert tables.read_notes(tmp_path / "a.parquet") == {}
    with pytest.raises(DamagedError, match=r"a\.parquet"):
        tables.read_part(tmp_path / "a.parquet")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99])
def test_a_torn_part_has_no_notes_and_cannot_be_read(part, share):
    path, _ = part
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert tables.read_notes(path) == {}
    with pytest.raises(DamagedError, match=r"a\.parquet: cannot be read"):
        tables.read_part(path)


def test_a_failed_write_leaves_the_part_that_was_there(part):
    path, values = part
    with pytest.raises(pa.ArrowInvalid):
        tables.write_part(path, {"x": np.arange(3), "y": np.arange(4)}, {})
    assert same(tables.read_part(path), values)
    assert [item.name for item in path.parent.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("name", ["sample", "class", "label", "distance", "sha256", "source"])
def test_a_flipped_bit_in_a_page_is_an_error_and_never_another_value(part, name):
    path, values = part
    good = path.read_bytes()
    start, stop = column_ranges(path)[name]
    errors = 0
    for position in range(start, stop, 3):
        flip(path, position, position % 8)
        try:
            assert same(tables.read_part(path), values)
        except DamagedError:
            errors += 1
        path.write_bytes(good)
    # what lies in the header of a page may be optional, such as a statistic
    assert errors > (stop - start) / 3 / 2


def test_a_flipped_bit_in_the_data_of_a_page_is_named_with_the_file(part):
    path, _ = part
    flip(path, column_ranges(path)["distance"][1] - 1)
    with pytest.raises(DamagedError, match=r"a\.parquet.*CRC"):
        tables.read_part(path)
    with pytest.raises(DamagedError, match=r"a\.parquet.*CRC"):
        tables.merge_parts(path.with_name("all.parquet"), [path])


def test_notes_of_a_part_with_a_flipped_bit_are_the_same_or_none_or_differ_but_never_fail(part):
    path, _ = part
    good = path.read_bytes()
    footer = max(stop for _, stop in column_ranges(path).values())
    for position in range(footer, len(good), 2):
        flip(path, position, 7)
        found = tables.read_notes(path)  # a resume asks this of whatever it finds
        assert all(isinstance(text, str) for text in found.values())
        path.write_bytes(good)


def test_a_flipped_bit_in_the_footer_is_our_error_where_it_is_one(part):
    path, _ = part
    good = path.read_bytes()
    footer = max(stop for _, stop in column_ranges(path).values())
    errors = 0
    for position in range(footer, len(good), 2):
        flip(path, position, 7)
        try:
            tables.read_part(path)
        except DamagedError:
            errors += 1
        path.write_bytes(good)
    assert errors


def test_parts_are_merged_in_order_with_a_row_group_each(tmp_path):
    written = []
    for number, rows in enumerate([ROWS, 1, 25]):
        columns, values = make_columns(number, rows, start=100 * number)
        tables.write_part(tmp_path / f"{number}.parquet", columns, {"digest": str(number)})
        written.append({name: values[name] for name in columns})
    merged = tmp_path / "all.parquet"
    parts = [tmp_path / f"{number}.parquet" for number in range(3)]
    assert tables.merge_parts(merged, parts) == ROWS + 26
    whole = {name: np.concatenate([v[name] for v in written]) for name in written[0]}
    assert same(tables.read_part(merged), whole)
    file = pq.ParquetFile(merged)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [40, 1, 25]
    assert tables.read_notes(merged) == {}  # those of one part would be wrong for all


def test_parts_in_which_different_classes_occur_keep_their_codes_when_merged(tmp_path):
    names = ["cat", "dog", "emu"]
    for number, codes in enumerate([[0, 0], [2, 1], [-1, -1], [1, 2, 0]]):
        column = tables.dictionary(np.array(codes), names)
        tables.write_part(tmp_path / f"{number}.parquet", {"c": column}, {})
    parts = [tmp_path / f"{number}.parquet" for number in range(4)]
    tables.merge_parts(tmp_path / "all.parquet", parts)
    expected = [0, 0, 2, 1, -1, -1, 1, 2, 0]
    assert tables.read_part(tmp_path / "all.parquet")["c"].tolist() == expected
    named = [names[code] if code >= 0 else None for code in expected]
    assert pq.read_table(tmp_path / "all.parquet")["c"].to_pylist() == named


def test_merging_nothing_is_refused_and_writes_nothing(tmp_path):
    with pytest.raises(StoreError, match="no part"):
        tables.merge_parts(tmp_path / "all.parquet", [])
    assert list(tmp_path.iterdir()) == []


def test_merging_with_a_missing_part_leaves_the_table_that_was_there(part):
    path, values = part
    merged = path.with_name("all.parquet")
    tables.merge_parts(merged, [path])
    with pytest.raises(DamagedError, match=r"b\.parquet"):
        tables.merge_parts(merged, [path, path.with_name("b.parquet")])
    assert same(tables.read_part(merged), values)
    assert sorted(item.name for item in path.parent.iterdir()) == ["a.parquet", "all.parquet"]


def test_only_the_first_rows_of_a_long_table_are_read(tmp_path):
    count = 100_000
    columns = {"number": np.arange(count), "score": np.linspace(1, 0, count)}
    tables.write_part(tmp_path / "long.parquet", columns, {})
    seen = []

    def wanted(rows):
        seen.append(len(rows.integers("number")))
        return rows.integers("number") % 2 == 1

    rows = tables.first_rows(tmp_path / "long.parquet", 5, wanted)
    assert [row["number"] for row in rows] == [1, 3, 5, 7, 9]
    assert sum(seen) < 10_000
    assert tables.first_rows(tmp_path / "long.parquet", 5, lambda r: r.floats("score") < 0) == []
    (row,) = tables.read_rows(tmp_path / "long.parquet", [70_000])
    assert row["number"] == 70_000
    assert tables.read_rows(tmp_path / "long.parquet", []) == []
