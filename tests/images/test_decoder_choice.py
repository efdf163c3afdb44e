"""One decoder for one job: chosen once, recorded, followed by whoever goes on with it."""

from __future__ import annotations

import io
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline import finish_ingest, ingest, ingest_partitions, plan_ingest, verify
from pipeline.core.errors import BadSamplesError, ConfigError, PixsimError, SourceError
from pipeline.images import decoder_choice, jpeg
from pipeline.images.decoder_choice import Decoders, choose, difference, installed, recorded
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import open_source
from pipeline.storage import claims

PILLOW = decoder_choice._pillow()
NEWER = Decoders("Pillow 99.0 (libjpeg-turbo 9.9)", "Pillow 99.0")


@pytest.fixture
def by_torchvision(monkeypatch):
    """Stand in for torchvision's decoder, which takes seconds to load; return what it decoded."""
    asked = []

    def decode(data):
        asked.append(data)
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image).reshape(image.height, image.width, -1)

    for module in (decoder_choice, jpeg):
        monkeypatch.setattr(module, "torchvision_decoder", lambda: decode)
    installed.cache_clear()
    yield asked
    installed.cache_clear()


@pytest.fixture
def another_pillow(monkeypatch):
    """Return what makes this process one with another Pillow."""

    def change():
        monkeypatch.setattr(decoder_choice, "_pillow", lambda: NEWER)
        installed.cache_clear()

    yield change
    monkeypatch.undo()
    installed.cache_clear()


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


class Heard:
    """A reporter that keeps what it is told."""

    def __init__(self):
        from pipeline.execution.progress import SilentReporter

        self.lines, self._silent = [], SilentReporter()

    def say(self, line):
        self.lines.append(line)

    def phase(self, *arguments):
        return self._silent.phase(*arguments)


# The choice ------------------------------------------------------------------------------------


def test_what_was_imported_before_does_not_choose(monkeypatch, by_torchvision):
    for modules in ({}, {"torchvision.io": object()}):
        monkeypatch.delitem(sys.modules, "torchvision.io", raising=False)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        assert choose(decoder_choice.WORTHWHILE_PIXELS - 1, False) == PILLOW
        assert choose(decoder_choice.WORTHWHILE_PIXELS, False).torchvision


def test_only_jpeg_is_worth_torchvision_and_a_resize_loads_it_anyway(by_torchvision):
    assert choose(1, True).torchvision
    assert choose(0, True) == PILLOW
    assert choose(0, False) == PILLOW


def test_where_torchvision_decodes_nothing_pillow_is_chosen(monkeypatch, by_torchvision):
    monkeypatch.setattr(decoder_choice, "torchvision_decoder", lambda: None)
    installed.cache_clear()
    assert choose(2**40, True) == PILLOW
    assert installed(True) is None


def test_what_decoded_the_others_is_preferred(by_torchvision):
    torchvision = choose(2**40, False)
    for like in (PILLOW, torchvision):
        for pixels in (1, 2**40):
            assert choose(pixels, True, {"decoders": like.describe()}) == like
    assert choose(1, False, {"kind": "of an older version"}) == PILLOW


def test_a_build_for_a_gpu_is_the_same_version(monkeypatch, by_torchvision):
    found = []
    for version in ("0.25.0", "0.25.0+cpu", "0.25.0+cu128"):
        monkeypatch.setattr(
            decoder_choice.metadata, "version", lambda name, version=version: version
        )
        installed.cache_clear()
        found.append(installed(True))
    assert found == [Decoders("torchvision 0.25.0", PILLOW.other)] * 3


def test_how_many_pixels_are_jpeg_is_told_from_the_first_images(tmp_path):
    make_folder(tmp_path / "a", 8)
    make_folder(tmp_path / "a", 8, seed=1, kind="PNG")
    assert open_source(str(tmp_path / "a")).jpeg_pixels == 8 * 64


# The record ------------------------------------------------------------------------------------


def test_the_store_records_what_decoded_it(tmp_path):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    assert recorded(manifest_of(store)["provenance"]) == PILLOW
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]
    assert recorded(attributes["provenance"]) == PILLOW
    assert "libjpeg-turbo" in PILLOW.jpeg


def test_a_store_of_arrays_records_none(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2, 4, 4), np.uint8), y_train=[0, 1])
    store = ingest(str(tmp_path / "a.npz"), tmp_path / "s.zarr")
    assert "decoders" not in manifest_of(store)["provenance"]


def test_one_decoder_decodes_all(tmp_path, monkeypatch, by_torchvision):
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 1)
    folder = make_folder(tmp_path / "a")
    fast = ingest(str(folder), tmp_path / "fast.zarr", shard_samples=2)
    assert len(by_torchvision) == 6
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 2**30)
    plain = ingest(str(folder), tmp_path / "plain.zarr", shard_samples=2)
    assert len(by_torchvision) == 6
    made = manifest_of(fast), manifest_of(plain)
    assert [recorded(one["provenance"]).torchvision for one in made] == [True, False]
    assert made[0]["digest"] == made[1]["digest"]
    assert made[0]["identity"] == made[1]["identity"]


def test_who_has_another_version_fails_and_uses_no_other(tmp_path, another_pillow):
    source = open_source(str(make_folder(tmp_path / "a"))).decoded_by(PILLOW)
    assert source.read("train", 0, 6).problems == {}
    another_pillow()
    with pytest.raises(ConfigError, match=r"decoded by Pillow .*; .* has Pillow 99\.0 .*install"):
        source.read("train", 0, 6)


def test_who_has_no_torchvision_fails_and_uses_no_other(tmp_path, monkeypatch, by_torchvision):
    torchvision = choose(2**40, False)
    source = open_source(str(make_folder(tmp_path / "a"))).decoded_by(torchvision)
    monkeypatch.setattr(decoder_choice, "torchvision_decoder", lambda: None)
    installed.cache_clear()
    with pytest.raises(ConfigError, match="has no torchvision that decodes JPEG; install"):
        source.read("train", 0, 6)


# Who goes on -----------------------------------------------------------------------------------


def begun(tmp_path, monkeypatch, pixels):
    """Begin a store that fails for a bad file, with torchvision from so many pixels on; mend it."""
    folder = make_folder(tmp_path / "a")
    good = (folder / "cat" / "0-0.jpeg").read_bytes()
    (folder / "cat" / "0-0.jpeg").write_bytes(good[:300])
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", pixels)
    with pytest.raises(BadSamplesError):
        ingest(str(folder), tmp_path / "s.zarr", shard_samples=2)
    return folder, good


def test_a_resume_uses_what_was_recorded(tmp_path, monkeypatch, by_torchvision):
    folder, _ = begun(tmp_path, monkeypatch, 1)
    shutil.rmtree(tmp_path / "s.zarr" / ".work" / "samples")
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 2**30)
    by_torchvision.clear()
    store = ingest({"source": str(folder), "max_bad": 1}, tmp_path / "s.zarr", shard_samples=2)
    assert len(by_torchvision) == 5
    assert recorded(manifest_of(store)["provenance"]).torchvision


def test_steps_apart_use_what_the_plan_recorded(tmp_path, monkeypatch, by_torchvision):
    folder = make_folder(tmp_path / "a")
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 1)
    assert plan_ingest(str(folder), tmp_path / "s.zarr", shard_samples=2) == 3
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 2**30)
    for number in range(3):
        ingest_partitions(str(folder), number, number + 1, tmp_path / "s.zarr", shard_samples=2)
    store = finish_ingest(str(folder), tmp_path / "s.zarr", shard_samples=2)
    assert len(by_torchvision) == 6
    assert recorded(manifest_of(store)["provenance"]).torchvision


def test_a_resume_with_another_version_says_so_and_both_cures_work(
    tmp_path, monkeypatch, another_pillow
):
    folder, _ = begun(tmp_path, monkeypatch, 2**30)
    images = {"source": str(folder), "max_bad": 1}
    with monkeypatch.context() as patch:
        patch.setattr(decoder_choice, "_pillow", lambda: NEWER)
        installed.cache_clear()
        with pytest.raises(ConfigError, match="install there what it was begun with, or remove"):
            ingest(images, tmp_path / "s.zarr", shard_samples=2)
        (tmp_path / "s.zarr").rename(tmp_path / "removed.zarr")
        anew = ingest(images, tmp_path / "s.zarr", shard_samples=2)
        assert recorded(manifest_of(anew)["provenance"]) == NEWER
    installed.cache_clear()
    store = ingest(images, tmp_path / "removed.zarr", shard_samples=2)
    assert manifest_of(store)["digest"] == manifest_of(anew)["digest"]
    assert recorded(manifest_of(store)["provenance"]) == PILLOW


def test_other_files_are_decoded_by_what_is_there_now(tmp_path, monkeypatch, another_pillow):
    folder, good = begun(tmp_path, monkeypatch, 2**30)
    (folder / "cat" / "0-0.jpeg").write_bytes(good)  # another listing: all is written again
    another_pillow()
    store = ingest(str(folder), tmp_path / "s.zarr", shard_samples=2)
    assert recorded(manifest_of(store)["provenance"]) == NEWER


def test_a_finished_store_is_known_whatever_decodes_now(tmp_path, another_pillow):
    folder = make_folder(tmp_path / "a")
    ingest(str(folder), tmp_path / "s.zarr")
    before = (tmp_path / "s.zarr" / "manifest.json").read_bytes()
    another_pillow()
    heard = Heard()
    ingest(str(folder), tmp_path / "s.zarr", reporter=heard)
    assert any("complete already" in line for line in heard.lines)
    assert (tmp_path / "s.zarr" / "manifest.json").read_bytes() == before


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
    assert recorded(made["appended"][0]["provenance"]) == PILLOW


def test_an_older_store_is_mended(older):
    _, store = older
    digest = manifest_of(store)["digest"]
    a_shard(store).unlink()
    assert verify(store, repair=True)
    assert manifest_of(store)["digest"] == digest


def test_an_unfinished_older_store_goes_on_and_claims_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(EncodedSource, "decoded_by", lambda source, _: source)
        folder, _ = begun(tmp_path, patch, 2**30)
    images = {"source": str(folder), "max_bad": 1}
    store = ingest(images, tmp_path / "s.zarr", shard_samples=2)
    assert "decoders" not in manifest_of(store)["provenance"]


def test_only_the_decoders_are_left_out_of_an_identity():
    source = {"kind": "folder", "decoders": PILLOW.describe()}
    plain = claims.identity({"source": {"kind": "folder"}})
    assert claims.identity({"source": source}) == plain
    assert claims.identity({"source": {**source, "kind": "tar"}}) != plain
    assert claims.identity({"source": {}, "decoders": 1}) != claims.identity({"source": {}})


# Growing and mending ---------------------------------------------------------------------------


def test_new_samples_are_decoded_by_what_decoded_the_others(tmp_path, monkeypatch, by_torchvision):
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 1)
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    monkeypatch.setattr(decoder_choice, "WORTHWHILE_PIXELS", 2**30)
    by_torchvision.clear()
    heard = Heard()
    more = make_folder(tmp_path / "b", seed=1)
    ingest(str(more), store, append=True, reporter=heard)
    assert len(by_torchvision) == 6
    assert not any("decoders" in line for line in heard.lines)


def test_new_samples_decoded_by_another_version_are_told(tmp_path, another_pillow):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    another_pillow()
    heard = Heard()
    ingest(str(make_folder(tmp_path / "b", seed=1)), store, append=True, reporter=heard)
    (line,) = [line for line in heard.lines if "decoders" in line]
    assert f"decoded by {PILLOW} then, by {NEWER} now" in line


def test_a_repair_by_another_version_holds_each_sample_against_its_hash(
    tmp_path, monkeypatch, another_pillow
):
    store = ingest(str(make_folder(tmp_path / "a")), tmp_path / "s.zarr")
    digest = manifest_of(store)["digest"]
    another_pillow()
    file = a_shard(store)
    file.unlink()
    assert verify(store, repair=True)  # it gives the same bits
    assert manifest_of(store)["digest"] == digest
    file.unlink()
    as_before = jpeg._pixels
    monkeypatch.setattr(jpeg, "_pixels", lambda *given: as_before(*given) ^ 1)
    with pytest.raises(SourceError, match=r"another image .* by Pillow 99\.0 .* now\)"):
        verify(store, repair=True)


def test_a_difference_is_only_told_where_both_are_known():
    ours, theirs = {"decoders": PILLOW.describe()}, {"decoders": NEWER.describe()}
    assert difference({}, ours) == difference(ours, {}) == difference(ours, ours) == ""
    assert "99.0" in difference(ours, theirs)
    assert issubclass(ConfigError, PixsimError)
