"""Digests: the same for any cut, another for any change."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import chunkings, labelled_blocks

from pipeline.core.digests import ColumnDigest, array_digest, json_digest, sample_records

COLUMNS = {
    "sample": np.arange(12),
    "distance": np.linspace(0, 1, 12),
    "label": (np.arange(12) % 3).astype(np.int32),
}


def digest_in_parts(columns, chunks, header=None):
    digest, start = ColumnDigest(), 0
    for size in chunks:
        digest.update({name: values[start : start + size] for name, values in columns.items()})
        start += size
    return digest.result(header)


@given(chunks=chunkings(12))
def test_any_cut_of_the_rows_gives_the_same_digest(chunks):
    assert digest_in_parts(COLUMNS, chunks) == digest_in_parts(COLUMNS, (12,))


@pytest.mark.parametrize(
    "changed",
    [
        {"distance": np.nextafter(COLUMNS["distance"], 2)},
        {"sample": COLUMNS["sample"][::-1]},
        {"label": COLUMNS["label"].astype(np.int64)},
        {"extra": np.zeros(12)},
    ],
    ids=["one ulp", "order", "dtype", "column"],
)
def test_any_change_gives_another_digest(changed):
    assert digest_in_parts(COLUMNS | changed, (12,)) != digest_in_parts(COLUMNS, (12,))


def test_names_and_header_count():
    renamed = {("metric" if k == "label" else k): v for k, v in COLUMNS.items()}
    assert digest_in_parts(renamed, (12,)) != digest_in_parts(COLUMNS, (12,))
    assert digest_in_parts(COLUMNS, (12,), ["a"]) != digest_in_parts(COLUMNS, (12,), ["b"])


def test_the_order_of_columns_and_the_byte_order_do_not_count():
    backwards = dict(reversed(COLUMNS.items()))
    big = {name: values.astype(values.dtype.newbyteorder(">")) for name, values in COLUMNS.items()}
    for other in (backwards, big):
        assert digest_in_parts(other, (5, 7)) == digest_in_parts(COLUMNS, (12,))


def test_every_nan_is_one_nan():
    plain = np.array([1.0, np.nan])
    other = np.array([0x3FF0000000000000, 0xFFF8DEAD00000001], np.uint64).view(np.float64)
    assert np.isnan(other[1])
    assert digest_in_parts({"x": plain}, (2,)) == digest_in_parts({"x": other}, (1, 1))


@given(block=labelled_blocks())
def test_sample_records_hash_each_image_by_itself(block):
    images, labels, _ = block
    records = sample_records(images, labels)
    assert records["label"].tolist() == labels.tolist()
    for record, image in zip(records, images, strict=True):
        expected = hashlib.sha256(image.astype(image.dtype.newbyteorder("<")).tobytes()).digest()
        assert record["sha256"].tobytes() == expected


def test_array_digests_know_shape_and_type():
    values = np.arange(6, dtype=np.uint8)
    digests = {
        array_digest(a) for a in (values, values.reshape(2, 3), values.astype("u2"), values[::-1])
    }
    assert len(digests) == 4
    assert array_digest(values.astype(">u2")) == array_digest(values.astype("<u2"))


@given(st.dictionaries(st.text(), st.integers()))
def test_json_digests_ignore_the_order_of_keys(content):
    assert json_digest(content) == json_digest(dict(reversed(content.items())))


def test_the_same_bytes_of_another_type_give_another_digest():
    values = np.arange(12)
    digests = {digest_in_parts({"x": values.view(t)}, (12,)) for t in ("i8", "u8", "f8")}
    assert len(digests) == 3
