"""The listing of a source: any range of it comes back, its digest counts all, damage is seen."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from image_files_for_tests import make_files, write_files

from pipeline.core.errors import DamagedError, LabelError, SourceError
from pipeline.sources import notes, sample_index
from pipeline.sources.encoded import open_encoded
from pipeline.sources.folder import FolderReader


def rows_of(start, stop):
    numbers = list(range(start, stop))
    return sample_index.make_rows(
        stop - start,
        origin=[f"o{n}" for n in numbers],
        key=[b"k%d" % n for n in numbers],
        offset=numbers,
        label=[str(n % 3) if n % 5 else None for n in numbers],
        stamp=[str(n) for n in numbers],
    )


def write_listing(folder, cuts):
    with sample_index.writing(folder) as writer:
        for start, stop in zip([0, *cuts], [*cuts, 20_000], strict=True):
            writer.add("train", rows_of(start, stop))
        writer.finish("test", notes.Notes())
    return sample_index.index(folder)


def test_a_listing_does_not_depend_on_how_its_rows_come(tmp_path):
    found = [
        write_listing(tmp_path / str(number), cuts)
        for number, cuts in enumerate([[], [1], [8192], [100, 9000, 9001, 19_999]])
    ]
    assert all(other == found[0] for other in found)
    assert found[0]["labels"] == ["0", "1", "2"]


@pytest.mark.parametrize("at", [(0, 5), (8190, 8195), (16_383, 16_385), (19_990, 20_000), (3, 3)])
def test_any_rows_of_a_listing_come_back(tmp_path, at):
    write_listing(tmp_path, [7000])
    rows = sample_index.read_rows(tmp_path, "train", *at)
    assert [row.offset for row in rows] == list(range(*at))
    assert [row.origin for row in rows] == [f"o{n}" for n in range(*at)]
    assert [row.label for row in rows] == [str(n % 3) if n % 5 else None for n in range(*at)]
    assert pq.ParquetFile(tmp_path / "0.parquet").metadata.row_group(0).num_rows == 8192


def test_a_group_of_rows_is_read_once_and_anew_from_another_listing(tmp_path, monkeypatch):
    read = []
    real = pq.ParquetFile.read_row_group

    def counted(file, number, **options):
        read.append(number)
        return real(file, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    write_listing(tmp_path, [])
    for start in range(0, 20_000, 50):
        rows = sample_index.read_rows(tmp_path, "train", start, start + 50)
        assert [row.offset for row in rows] == list(range(start, start + 50))
    assert read == [0, 1, 2]
    with sample_index.writing(tmp_path) as writer:
        writer.add("train", rows_of(7, 20_000))
        writer.finish("test", notes.Notes())
    assert sample_index.read_rows(tmp_path, "train", 16_400, 16_401)[0].offset == 16_407
    assert read == [0, 1, 2, 2]
    sample_index.close(tmp_path)
    sample_index.read_rows(tmp_path, "train", 16_400, 16_401)
    assert read == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("column", ["origin", "key", "offset", "label", "stamp", "size", "status"])
def test_every_column_counts_in_the_digest(tmp_path, column):
    values = {"origin": ["x"], "key": [b"x"], "label": ["x"], "stamp": ["x"]}
    digests = []
    for value in (None, values.get(column, [7])):
        with sample_index.writing(tmp_path) as writer:
            given = {} if value is None else {column: value}
            writer.add("train", sample_index.make_rows(1, **given))
            writer.finish("test", notes.Notes())
        digests.append(sample_index.index(tmp_path)["digests"])
    assert digests[0] != digests[1]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "no index"])
def test_a_damaged_listing_is_found(tmp_path, damage):
    source = open_encoded(
        FolderReader({None: [write_files(tmp_path / "set", make_files(count=50))]}),
        tmp_path / "listing",
    )
    source.close()
    path = tmp_path / "listing" / ("listing.json" if damage == "no index" else "0.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 8
    if damage in ("gone", "no index"):
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(DamagedError, match="run the job again"):
        source.read("train", 0, 10)


def test_a_column_that_is_not_of_labels_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_index, "MOST_LABELS", 10)
    refused = pytest.raises(LabelError, match="more than 10 different labels")
    with refused, sample_index.writing(tmp_path) as writer:
        writer.add("train", sample_index.make_rows(11, label=[str(n) for n in range(11)]))


def test_an_input_that_fails_leaves_no_listing(tmp_path):
    class Fails:
        kind, title = "test", "test"

        def batches(self, notes):
            yield "train", rows_of(0, 5)
            raise SourceError("the rest is gone")

    with pytest.raises(SourceError, match="the rest is gone"):
        open_encoded(Fails(), tmp_path / "listing")
    assert not (tmp_path / "listing" / sample_index.INDEX).exists()
