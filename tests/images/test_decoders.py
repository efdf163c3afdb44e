"""What decodes is recorded with its version; a resume needs the same, an append tells of others."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import imagecodecs
import numpy as np
import PIL
import pytest
from jobs_for_tests import Heard
from PIL import Image

from pipeline import finish_ingest, ingest, ingest_partitions, plan_ingest, verify
from pipeline.core.errors import BadSamplesError, ConfigError, SourceError
from pipeline.images import conversion, jpeg
from pipeline.images.decoders import Decoders, by_pillow, difference, installed, recorded, to_resume
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import open_source
from pipeline.storage import claims

OURS = installed()
NEWER = Decoders(OURS.jpeg.replace(imagecodecs.__version__, "2099.1.1"), "Pillow 99.0")
FORMER = (
    Decoders("Pillow 11.0 (libjpeg-turbo 3.0)", "Pillow 11.0"),
    Decoders("torchvision 0.25.0", "Pillow 11.0"),
)


@pytest.fixture
def newer_libraries(monkeypatch):
    """Return a context in which this process has other libraries."""

    @contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(imagecodecs, "__version__", "2099.1.1")
            patch.setattr(PIL, "__version__", "99.0")
            installed.cache_clear()
            assert installed() == NEWER
            yield
        installed.cache_clear()

    return context


def make_folder(path, count=6, seed=0, kind="JPEG"):
    rng = np.random.default_rng(seed)
    for number in range(count):
        folder = path / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8))
        image.save(folder / f"{seed}-{number}.{kind.lower()}", kind)
    return path


def manifest_of(path):
    return json.loads((path / "manifest.json").read_text())


def a_shard(store):
    return next(file for file in (store / "train" / "image" / "c").rglob("*") if file.is_file())


# The record ------------------------------------------------------------------------------------


def test_the_store_records_what_decoded_it(tmp_path):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    assert recorded(manifest_of(store)["provenance"]) == OURS
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    assert recorded(attributes["provenance"]) == OURS
    assert "imagecodecs" in OURS.jpeg
    assert "libjpeg-turbo" in OURS.jpeg
    assert OURS.other.startswith("Pillow")


def test_a_store_of_arrays_records_none(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=[0, 1])
    store = ingest(str(tmp_path / "a.npz"), tmp_path / "s.zarr")
    assert "decoders" not in manifest_of(store)["provenance"]


def test_a_process_with_other_versions_decodes_nothing(tmp_path, newer_libraries):
    source = open_source(str(make_folder(tmp_path / "a"))).decoded_by(OURS)
    assert source.read("train", 0, 6).problems == {}
    with (
        newer_libraries(),
        pytest.raises(ConfigError, match=r"decoded by imagecodecs .*2099\.1\.1 .*install"),
    ):
        source.read("train", 0, 6)


def test_files_that_another_library_opens_need_pillow_alone():
    by_pillow().require()
    with pytest.raises(ConfigError, match=r"decoded by Pillow 1\.0, .* has Pillow"):
        Decoders("Pillow 1.0", "Pillow 1.0").require()


# Resuming --------------------------------------------------------------------------------------


def begun(tmp_path):
    """Begin a store that fails for a bad file, of which the good one is returned."""
    folder = make_folder(tmp_path / "a")
    good = (folder / "cat" / "0-0.jpeg").read_bytes()
    (folder / "cat" / "0-0.jpeg").write_bytes(good[:300])
    with pytest.raises(BadSamplesError):
        ingest(str(folder), tmp_path / "s.zarr", shard_samples=2)
    return folder, good


def rewrite_plan(store, decoders):
    """Make an unfinished store one that other libraries began."""
    path = store / ".work" / "plan.json"
    record = json.loads(path.read_text())
    record["plan"]["source"]["decoders"] = decoders.describe()
    path.write_text(json.dumps(record))


def test_steps_apart_need_what_the_plan_recorded(tmp_path, newer_libraries):
    folder, store = make_folder(tmp_path / "a"), tmp_path / "s.zarr"
    assert plan_ingest(str(folder), store, shard_samples=2) == 3
    with newer_libraries(), pytest.raises(ConfigError, match="install there"):
        ingest_partitions(str(folder), 0, 1, store, shard_samples=2)
    for number in range(3):
        ingest_partitions(str(folder), number, number + 1, store, shard_samples=2)
    finish_ingest(str(folder), store, shard_samples=2)
    assert recorded(manifest_of(store)["provenance"]) == OURS


def test_a_resume_with_another_version_says_so_and_both_cures_work(tmp_path, newer_libraries):
    folder, _ = begun(tmp_path)
    images = {"source": str(folder), "max_bad": 1}
    with newer_libraries():
        with pytest.raises(ConfigError, match="install there what it was begun with, or remove"):
            ingest(images, tmp_path / "s.zarr", shard_samples=2)
        (tmp_path / "s.zarr").rename(tmp_path / "removed.zarr")
        anew = ingest(images, tmp_path / "s.zarr", shard_samples=2)
        assert recorded(manifest_of(anew)["provenance"]) == NEWER
    store = ingest(images, tmp_path / "removed.zarr", shard_samples=2)
    assert manifest_of(store)["digest"] == manifest_of(anew)["digest"]
    assert recorded(manifest_of(store)["provenance"]) == OURS


def test_other_files_are_decoded_by_what_is_there_now(tmp_path, newer_libraries):
    folder, good = begun(tmp_path)
    (folder / "cat" / "0-0.jpeg").write_bytes(good)  # another listing: all is written again
    with newer_libraries():
        store = ingest(str(folder), tmp_path / "s.zarr", shard_samples=2)
    assert recorded(manifest_of(store)["provenance"]) == NEWER


def test_a_finished_store_is_known_whatever_decodes_now(tmp_path, newer_libraries):
    folder = make_folder(tmp_path / "a")
    ingest(str(folder), tmp_path / "s.zarr")
    before = (tmp_path / "s.zarr" / "manifest.json").read_bytes()
    heard = Heard()
    with newer_libraries():
        ingest(str(folder), tmp_path / "s.zarr", reporter=heard)
    assert any("complete already" in line for line in heard.lines)
    assert (tmp_path / "s.zarr" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("former", FORMER, ids=["Pillow", "torchvision"])
def test_what_older_versions_decoded_with_is_resumed_and_claims_nothing(tmp_path, former):
    folder, _ = begun(tmp_path)
    rewrite_plan(tmp_path / "s.zarr", former)
    assert to_resume({"decoders": former.describe()}) is None
    images = {"source": str(folder), "max_bad": 1}
    store = ingest(images, tmp_path / "s.zarr", shard_samples=2)
    assert "decoders" not in manifest_of(store)["provenance"]


# Stores made before it was recorded ------------------------------------------------------------


@pytest.fixture
def older(tmp_path, monkeypatch):
    """Make a store as it was made before decoders were recorded; return its folder and itself."""
    folder = make_folder(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(EncodedSource, "decoded_by", lambda source, _: source)
        store = ingest(str(folder), tmp_path / "older.zarr", shard_samples=4)
    assert "decoders" not in manifest_of(store)["provenance"]
    return folder, store


def test_an_older_store_is_the_same_image_set(older, tmp_path):
    folder, store = older
    before = manifest_of(store)
    ingest(str(folder), store, shard_samples=4)
    assert manifest_of(store) == before
    now = manifest_of(ingest(str(folder), tmp_path / "now.zarr", shard_samples=4))
    assert (now["identity"], now["digest"]) == (before["identity"], before["digest"])


def test_an_older_store_grows_and_knows_what_it_has(older, tmp_path):
    folder, store = older
    heard = Heard()
    ingest(str(folder), store, shard_samples=4, append=True, reporter=heard)
    assert any("holds these samples already" in line for line in heard.lines)
    ingest(str(make_folder(tmp_path / "b", seed=1)), store, shard_samples=4, append=True)
    made = manifest_of(store)
    assert made["splits"]["train"]["count"] == 12
    assert "decoders" not in made["provenance"]
    assert recorded(made["appended"][0]["provenance"]) == OURS


def test_an_older_store_is_mended(older):
    _, store = older
    digest = manifest_of(store)["digest"]
    a_shard(store).unlink()
    assert verify(store, repair=True)
    assert manifest_of(store)["digest"] == digest


def test_an_unfinished_older_store_goes_on_and_claims_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(EncodedSource, "decoded_by", lambda source, _: source)
        folder, _ = begun(tmp_path)
    images = {"source": str(folder), "max_bad": 1}
    store = ingest(images, tmp_path / "s.zarr", shard_samples=2)
    assert "decoders" not in manifest_of(store)["provenance"]


def test_only_the_decoders_are_left_out_of_an_identity():
    source = {"kind": "folder", "decoders": OURS.describe()}
    plain = claims.identity({"source": {"kind": "folder"}})
    assert claims.identity({"source": source}) == plain
    assert claims.identity({"source": {**source, "kind": "tar"}}) != plain
    assert claims.identity({"source": {}, "decoders": 1}) != claims.identity({"source": {}})


# Stores resized by what older versions called otherwise ------------------------------------------

FORMER_WORDS = "torchvision v2 resize, bilinear, antialias"


@pytest.fixture
def resized(tmp_path, monkeypatch):
    """Return settings of resized images, and what makes a store as older versions recorded it."""
    images = {"source": str(make_folder(tmp_path / "a")), "resize": 6}

    def make(path):
        with monkeypatch.context() as patch:
            patch.setattr(conversion, "RESIZE_METHOD", FORMER_WORDS)
            ingest(images, path, shard_samples=4)
        assert manifest_of(path)["provenance"]["conversion"]["resize"]["method"] == FORMER_WORDS
        return path

    return images, make


def test_a_store_that_names_the_former_resize_is_the_same_image_set(resized, tmp_path):
    images, make = resized
    before = manifest_of(make(tmp_path / "former.zarr"))
    heard = Heard()
    ingest(images, tmp_path / "former.zarr", shard_samples=4, reporter=heard)
    assert any("complete already" in line for line in heard.lines)
    now = manifest_of(ingest(images, tmp_path / "now.zarr", shard_samples=4))
    assert (now["identity"], now["digest"]) == (before["identity"], before["digest"])
    assert now["provenance"]["conversion"]["resize"]["method"] != FORMER_WORDS


def test_a_store_that_names_the_former_resize_grows_and_is_repaired(resized, tmp_path):
    images, make = resized
    store = make(tmp_path / "former.zarr")
    digest = manifest_of(store)["digest"]
    a_shard(store).unlink()
    assert verify(store, repair=True)
    assert manifest_of(store)["digest"] == digest
    more = str(make_folder(tmp_path / "b", seed=1))
    ingest({**images, "source": more}, store, shard_samples=4, append=True)
    assert manifest_of(store)["splits"]["train"]["count"] == 12


def test_an_unfinished_store_that_names_the_former_resize_is_resumed(
    resized, tmp_path, monkeypatch
):
    images, make = resized
    digest = manifest_of(make(tmp_path / "whole.zarr"))["digest"]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "RESIZE_METHOD", FORMER_WORDS)
        plan_ingest(images, tmp_path / "s.zarr", shard_samples=4)
        ingest_partitions(images, 0, 1, tmp_path / "s.zarr", shard_samples=4)
    record = (tmp_path / "s.zarr" / ".work" / "plan.json").read_bytes()
    ingest_partitions(images, 1, 2, tmp_path / "s.zarr", shard_samples=4)
    finish_ingest(images, tmp_path / "s.zarr", shard_samples=4)
    assert FORMER_WORDS.encode() in record
    assert manifest_of(tmp_path / "s.zarr")["digest"] == digest


# Appending and repairing -----------------------------------------------------------------------


@pytest.mark.parametrize("former", FORMER, ids=["Pillow", "torchvision"])
def test_an_append_says_that_another_library_decoded_the_store(tmp_path, monkeypatch, former):
    with monkeypatch.context() as patch:

        def recording(source, _):
            provenance = {**source.provenance, "decoders": former.describe()}
            return replace(source, provenance=provenance)

        patch.setattr(EncodedSource, "decoded_by", recording)
        store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    heard = Heard()
    ingest(str(make_folder(tmp_path / "b", seed=1)), store, append=True, reporter=heard)
    (line,) = [line for line in heard.lines if "decoders" in line]
    assert f"decoded by {former} then, by {OURS} now" in line
    assert recorded(manifest_of(store)["appended"][0]["provenance"]) == OURS


def test_an_append_by_another_version_says_so(tmp_path, newer_libraries):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    heard = Heard()
    with newer_libraries():
        ingest(str(make_folder(tmp_path / "b", seed=1)), store, append=True, reporter=heard)
    (line,) = [line for line in heard.lines if "decoders" in line]
    assert f"decoded by {OURS} then, by {NEWER} now" in line


def test_an_append_of_the_same_libraries_says_nothing(tmp_path):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    heard = Heard()
    ingest(str(make_folder(tmp_path / "b", seed=1)), store, append=True, reporter=heard)
    assert not any("decoders" in line for line in heard.lines)


def test_a_repair_by_another_version_compares_each_sample_with_its_hash(
    tmp_path, monkeypatch, newer_libraries
):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    digest = manifest_of(store)["digest"]
    file = a_shard(store)
    with newer_libraries():
        file.unlink()
        assert verify(store, repair=True)  # it gives the same bits
        assert manifest_of(store)["digest"] == digest
        file.unlink()
        as_before = jpeg._pixels
        monkeypatch.setattr(jpeg, "_pixels", lambda *given: as_before(*given) ^ 1)
        with pytest.raises(
            SourceError, match=r"another image .* by imagecodecs 2099\.1\.1 .* now\)"
        ):
            verify(store, repair=True)


def test_a_difference_is_only_told_where_both_are_known():
    ours, theirs = {"decoders": OURS.describe()}, {"decoders": NEWER.describe()}
    assert difference({}, ours) == difference(ours, {}) == difference(ours, ours) == ""
    assert "2099" in difference(ours, theirs)
