"""Bad samples: all of them are listed, in the end, and left out only where the job allows it."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from sources_for_tests import NAMES, Faulty, make_arrays
from stores_for_tests import stopped

import pipeline
from pipeline.core.errors import BadSamplesError, ConfigError, SourceError
from pipeline.ingestion import compaction, steps
from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import from_arrays
from pipeline.storage import manifest
from pipeline.storage.image_content import digest_images
from pipeline.storage.sample_tables import BAD_SAMPLES, SAMPLES

COUNTS = {"test": 9, "train": 43}
SHARD = 8
BAD = {("test", 0), ("train", 7), ("train", 8), ("train", 9), ("train", 42)}
# whole shards, first and last samples, a split without any
PATTERNS = {
    "some": BAD,
    "one at the end": {("train", 42)},
    "a whole shard": {("train", n) for n in range(16, 24)},
    "all but one": {("train", n) for n in range(43) if n != 20},
    "a whole split": {("test", n) for n in range(9)},
}


def faulty(bad=BAD, **changes):
    return Faulty(make_arrays(COUNTS), bad, **changes)


def content(path):
    return manifest.read_manifest(path, manifest.IMAGES)


def test_bad_samples_fail_the_ingest_in_the_end_with_all_of_them_listed(tmp_path):
    source = faulty()
    with pytest.raises(BadSamplesError) as caught:
        ingest(source, tmp_path / "s", SHARD)
    assert len(source.reads) == 8, "every partition was read before it failed"
    message = str(caught.value)
    assert "5 of 52 samples cannot be used (5 unreadable), expected at most 0" in message
    first = "the first is 'test' sample 0, test[0]: unreadable, begins with nothing; "
    assert first in message
    assert "(--set max_bad=5)" in message
    assert caught.value.summary == message.replace(first, "")  # to stand below the table
    with (tmp_path / "s" / BAD_SAMPLES).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["split"], int(row["sample"])) for row in rows} == BAD
    assert {row["status"] for row in rows} == {"unreadable"}
    assert len(caught.value.rows) == caught.value.count == 5
    assert manifest.kind_of(tmp_path / "s") is None


def test_a_failed_ingest_goes_on_without_reading_again_once_more_is_allowed(tmp_path):
    with pytest.raises(BadSamplesError):
        ingest(faulty(), tmp_path / "s", SHARD, max_bad=4)
    again = faulty()
    ingest(again, tmp_path / "s", SHARD, max_bad=5)
    assert again.reads == []
    assert not (tmp_path / "s" / BAD_SAMPLES).exists()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shard", [pytest.param(1, marks=pytest.mark.slow), SHARD, None])
def test_what_is_left_is_the_store_of_the_good_samples(tmp_path, pattern, shard):
    source = faulty(PATTERNS[pattern])
    path = ingest(source, tmp_path / "s", shard, max_bad="100%")
    other = ingest(from_arrays(source.good(), NAMES), tmp_path / "good", shard)
    assert content(path)["digest"] == content(other)["digest"] == digest_images(path)
    for split, (images, labels) in source.good().items():
        found = pipeline.open_images(path, split).compute()
        np.testing.assert_array_equal(found["image"].values, images)
        np.testing.assert_array_equal(found["label"].values, labels)
    for name in ("splits", "partitions", "class_names"):
        assert [*content(path)[name]] == [*content(other)[name]]


def test_the_store_says_how_many_were_left_out_and_which(tmp_path):
    path = ingest(faulty(), tmp_path / "s", SHARD, max_bad="10 %")
    assert content(path)["samples"] == {"listed": 52, "left_out": {"unreadable": 5}}
    rows = pq.read_table(path / SAMPLES).to_pylist()
    assert len(rows) == 52
    left_out = {row["source"] for row in rows if row["status"] != "ok"}
    assert left_out == {f"{split}[{number}]" for split, number in BAD}
    numbers = Counter()
    for row in rows:
        if row["status"] == "ok":
            assert (row["sample"], row["detail"]) == (numbers[row["split"]], None)
            numbers[row["split"]] += 1
            number = int(row["source"].partition("[")[2][:-1])
            image = make_arrays(COUNTS)[row["split"]][0][number]
            assert row["sha256"] == hashlib.sha256(image.tobytes()).digest()
            assert (row["width"], row["height"]) == (3, 4)
        else:
            assert row["sample"] is row["label"] is row["sha256"] is None
            assert (row["width"], row["height"]) == (7, 5)
            assert row["detail"] == "begins with nothing"


@pytest.mark.parametrize(("allowed", "fits"), [(4, False), (5, True), ("9%", False), ("10%", True)])
def test_as_many_as_the_job_allows_may_be_left_out(tmp_path, allowed, fits):
    if fits:
        ingest(faulty(), tmp_path / "s", SHARD, max_bad=allowed)
        return
    with pytest.raises(BadSamplesError, match="expected at most 4"):
        ingest(faulty(), tmp_path / "s", SHARD, max_bad=allowed)


def test_a_set_without_any_good_sample_is_refused(tmp_path):
    everything = {(split, n) for split, count in COUNTS.items() for n in range(count)}
    with pytest.raises(SourceError, match="none of 52 samples can be used"):
        ingest(faulty(everything), tmp_path / "s", SHARD, max_bad="100%")


@pytest.mark.parametrize("text", ["101%", "-1", "many", "1.5"])
def test_a_wrong_allowance_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="max_bad"):
        ingest(faulty(), tmp_path / "s", SHARD, max_bad=text)


@pytest.fixture(scope="module")
def whole_and_failed(tmp_path_factory):
    """The store that is to come about, and one that failed, to be copied."""
    folder = tmp_path_factory.mktemp("stores")
    with pytest.raises(BadSamplesError):
        ingest(faulty(), folder / "failed", SHARD)
    return ingest(faulty(), folder / "whole", SHARD, max_bad=5), folder / "failed"


@pytest.mark.parametrize(
    "moment", [n if n % 2 else pytest.param(n, marks=pytest.mark.slow) for n in range(12)]
)
def test_leaving_out_may_be_stopped_anywhere_and_is_completed(
    whole_and_failed, tmp_path, monkeypatch, moment
):
    """Stop at each of the steps of the finish in turn; the same command completes it."""
    whole, failed = whole_and_failed
    watched = {
        compaction: ["remove_tree", "replace_tree", "write_json"],
        compaction.image_store: ["write_images"],
        steps: ["write_samples", "write_duplicates", "consolidate"],
        manifest: ["write_json"],
    }
    path = shutil.copytree(failed, tmp_path / "s")
    with stopped(monkeypatch, moment, watched):
        ingest(faulty(), path, SHARD, max_bad=5)
    again = faulty()
    ingest(again, path, SHARD, max_bad=5)
    assert again.reads == []
    assert content(path)["digest"] == content(whole)["digest"] == digest_images(path)
    assert not (path / manifest.WORK).exists()
