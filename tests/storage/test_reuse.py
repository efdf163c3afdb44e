"""What an earlier try left is used again only where it is the same; else it is made anew."""

from __future__ import annotations

import numpy as np
import pytest
from jobs_for_tests import Heard
from PIL import Image
from sources_for_tests import NAMES, Faulty, make_arrays

import pipeline
from pipeline.core.errors import (
    BadSamplesError,
    ConflictError,
    IncompleteError,
    ShapeError,
    SourceError,
)
from pipeline.sources.arrays import from_arrays
from pipeline.storage import manifest
from pipeline.storage.image_content import digest_images

SHARD = 8


def content(path):
    return manifest.read_manifest(path, manifest.IMAGES)


def write_pngs(folder, dtype, bad=False, size=(5, 4)):
    rng = np.random.default_rng(1)
    images = []
    for number in range(9):
        file = folder / f"c{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        images.append(rng.integers(0, np.iinfo(dtype).max, size, dtype, endpoint=True))
        Image.fromarray(images[-1]).save(file)
        if bad and number == 4:
            file.write_bytes(b"no picture")
    return np.stack([images[n] for c in range(3) for n in range(c, 9, 3)])


def write_npz(folder, dtype, bad=False, size=(5, 4)):
    del bad  # its samples are good, or the file is refused before anything is written
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (9, *size), dtype)
    np.savez(folder / "set.npz", x_train=images, y_train=np.arange(9) % 3)
    return images


WRITERS = {"png": write_pngs, "npz": write_npz}


def settings_of(kind, folder, **more):
    return {"source": str(folder if kind == "png" else folder / "set.npz")} | more


@pytest.mark.parametrize("kind", WRITERS)
def test_files_replaced_by_deeper_ones_after_a_failure_give_what_they_hold(
    tmp_path, monkeypatch, kind
):
    write, folder = WRITERS[kind], tmp_path / "set"
    write(folder, np.uint8, bad=True)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingestion.steps.write_samples", lambda *_: 1 / 0)
        with pytest.raises((BadSamplesError, ZeroDivisionError)):
            pipeline.ingest(settings_of(kind, folder), tmp_path / "s")
    expected = write(folder, np.uint16)
    path = pipeline.ingest(settings_of(kind, folder), tmp_path / "s")
    found = pipeline.open_images(path)
    np.testing.assert_array_equal(found.image.values, expected)
    assert found.image.dtype == np.uint16
    assert content(path)["splits"]["train"]["dtype"] == "uint16"
    assert content(path)["digest"] == digest_images(path)


def test_nothing_is_left_of_a_split_that_is_gone(tmp_path):
    write_pngs(tmp_path / "set" / "train", np.uint8, bad=True)
    write_pngs(tmp_path / "set" / "test", np.uint8)
    with pytest.raises(BadSamplesError):
        pipeline.ingest(str(tmp_path / "set"), tmp_path / "s")
    for file in (tmp_path / "set" / "test").rglob("*.png"):
        file.unlink()
    write_pngs(tmp_path / "set" / "train", np.uint8)
    path = pipeline.ingest(str(tmp_path / "set"), tmp_path / "s")
    assert [*content(path)["splits"]] == ["train"]
    assert not (path / "test").exists()
    assert pipeline.verify(path) == []


def mixed(folder):
    write_pngs(folder, np.uint8)
    Image.new("L", (9, 7)).save(folder / "c1" / "large.png")


CURES = {
    "resize": (mixed, {"source": "set"}, {"resize": [5, 4]}, "set resize"),
    "shard": (mixed, {"source": "set"}, {"shard": 2, "max_bad": 1}, "max_bad"),
}  # fmt: skip


@pytest.mark.parametrize("what", CURES)
def test_a_failed_ingest_is_made_anew_with_the_settings_that_it_asks_for(
    tmp_path, monkeypatch, what
):
    monkeypatch.chdir(tmp_path)
    write, settings, cure, message = CURES[what]
    write(tmp_path / "set")
    with pytest.raises(BadSamplesError, match=message):
        pipeline.ingest(settings, tmp_path / "s")
    heard = Heard()
    path = pipeline.ingest(settings | cure, tmp_path / "s", reporter=heard)
    assert any("made anew" in line for line in heard.lines)
    fresh = pipeline.ingest(settings | cure, tmp_path / "fresh")
    assert content(path)["digest"] == content(fresh)["digest"] == digest_images(path)
    files = [sorted(p.relative_to(s).as_posix() for p in s.rglob("*")) for s in (path, fresh)]
    assert files[0] == files[1]


def test_a_full_scale_is_given_as_the_message_says(tmp_path):
    arrays = make_arrays({"train": 9})
    with pytest.raises(ShapeError, match="give the right full_scale"):
        pipeline.ingest(from_arrays(arrays, NAMES, 16), tmp_path / "s")
    path = pipeline.ingest(from_arrays(arrays, NAMES, 255), tmp_path / "s")
    assert content(path)["full_scale"] == 255


def test_what_was_compacted_of_other_settings_is_forgotten(tmp_path, monkeypatch):
    mixed(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingestion.steps.write_samples", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.ingest({"source": str(tmp_path / "set"), "max_bad": 1}, tmp_path / "s", 2)
    assert (tmp_path / "s" / ".work" / "compacted.json").exists()
    path = pipeline.ingest({"source": str(tmp_path / "set"), "resize": [5, 4]}, tmp_path / "s", 2)
    assert content(path)["samples"] == {"listed": 10, "left_out": {}}
    assert content(path)["digest"] == digest_images(path)


def test_stopped_while_it_is_made_anew_either_plan_goes_on(tmp_path, monkeypatch):
    mixed(tmp_path / "set")
    old, new = {"max_bad": 1}, {"resize": [5, 4]}
    whole = {
        str(cure): content(pipeline.ingest({"source": str(tmp_path / "set")} | cure, tmp_path / n))
        for n, cure in (("old", old), ("new", new))
    }
    for number, cure in ((n, cure) for n in range(4) for cure in (old, new)):
        place, left = tmp_path / f"{number}-{len(str(cure))}", iter(range(number))
        with pytest.raises(BadSamplesError):
            pipeline.ingest({"source": str(tmp_path / "set")}, place)
        removed = pipeline.ingestion.steps.remove_tree

        def stop(path, left=left, removed=removed):
            if next(left, None) is None:
                raise SourceError("the power went")
            removed(path)

        with monkeypatch.context() as patch:
            patch.setattr("pipeline.ingestion.steps.remove_tree", stop)
            with pytest.raises(SourceError, match="the power went"):
                pipeline.ingest({"source": str(tmp_path / "set")} | new, place)
        pipeline.ingest({"source": str(tmp_path / "set")} | cure, place)
        assert content(place)["digest"] == whole[str(cure)]["digest"] == digest_images(place)


def test_another_source_is_refused_with_what_differs_however_long_it_is(tmp_path):
    for name in ("a" * 70 + "1", "a" * 70 + "2"):
        write_pngs(tmp_path / name, np.uint8, bad=True)
    with pytest.raises(BadSamplesError):
        pipeline.ingest(str(tmp_path / ("a" * 70 + "1")), tmp_path / "s")
    with pytest.raises(ConflictError, match=r"'source\.place' there is") as caught:
        pipeline.ingest(str(tmp_path / ("a" * 70 + "2")), tmp_path / "s")
    assert "aaaa1'" in str(caught.value)
    assert "aaaa2'" in str(caught.value)


def test_of_a_finished_store_the_key_that_differs_is_named(tmp_path):
    write_pngs(tmp_path / "set", np.uint8)
    pipeline.ingest(str(tmp_path / "set"), tmp_path / "s")
    with pytest.raises(ConflictError, match=r"'source\.conversion\.resize") as e:
        pipeline.ingest({"source": str(tmp_path / "set"), "resize": [3, 3]}, tmp_path / "s")
    assert "[3, 3]" in str(e.value)


def test_a_refused_append_does_not_block_the_next(tmp_path):
    path = pipeline.ingest(from_arrays(make_arrays({"train": 9}), NAMES), tmp_path / "s", SHARD)
    before = content(path)
    for wrong in ((6, 6), (2, 2)):
        with pytest.raises(ShapeError, match="resize them"):
            pipeline.ingest(from_arrays(make_arrays({"train": 5}, wrong), NAMES), path, append=True)
        assert not (path / manifest.APPEND).exists()
        assert content(path) == before
        assert pipeline.verify(path) == []
    pipeline.ingest(from_arrays(make_arrays({"train": 5}), NAMES), path, append=True)
    assert content(path)["splits"]["train"]["count"] == 14


def test_an_append_of_several_sizes_is_made_anew_with_resize(tmp_path):
    write_pngs(tmp_path / "set", np.uint8)
    path = pipeline.ingest(str(tmp_path / "set"), tmp_path / "s")
    mixed(tmp_path / "more")
    with pytest.raises(BadSamplesError):
        pipeline.ingest(str(tmp_path / "more"), path, append=True)
    pipeline.ingest({"source": str(tmp_path / "more"), "resize": [5, 4]}, path, append=True)
    assert content(path)["splits"]["train"]["count"] == 19
    assert content(path)["digest"] == digest_images(path)


def test_samples_that_are_half_added_are_completed_by_their_own_command(tmp_path, monkeypatch):
    path = pipeline.ingest(from_arrays(make_arrays({"train": 9}), NAMES), tmp_path / "s", SHARD)
    half = from_arrays(make_arrays({"train": 4}, seed=2), NAMES)
    more = from_arrays(make_arrays({"train": 5}, seed=3), NAMES)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingestion.append._commit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.ingest(half, path, append=True)
    with pytest.raises(ConflictError, match="run that command again, to complete it"):
        pipeline.ingest(more, path, append=True)
    for samples in (half, more):
        pipeline.ingest(samples, path, append=True)
    assert content(path)["splits"]["train"]["count"] == 18
    assert content(path)["digest"] == digest_images(path)


def test_what_keeps_other_samples_waiting_may_be_removed_as_the_message_says(tmp_path):
    path = pipeline.ingest(from_arrays(make_arrays({"train": 9}), NAMES), tmp_path / "s", SHARD)
    with pytest.raises(BadSamplesError):
        pipeline.ingest(Faulty(make_arrays({"train": 4}), {("train", 0)}), path, append=True)
    more = from_arrays(make_arrays({"train": 5}, seed=3), NAMES)
    with pytest.raises(ConflictError, match=r"or remove .*\.append"):
        pipeline.ingest(more, path, append=True)
    with pytest.raises(IncompleteError, match=r"or remove .*\.append, then verify it"):
        pipeline.verify(path)
    pipeline.storage.folders.remove_tree(path / manifest.APPEND)
    assert pipeline.verify(path) == []
    pipeline.ingest(more, path, append=True)
    assert content(path)["splits"]["train"]["count"] == 14
    assert content(path)["digest"] == digest_images(path)


def test_an_append_cut_short_whose_source_is_gone_is_completed_as_the_message_says(
    tmp_path, monkeypatch
):
    path = pipeline.ingest(from_arrays(make_arrays({"train": 9}), NAMES), tmp_path / "s", SHARD)
    arrays = make_arrays({"train": 4}, seed=2)
    images, labels = arrays["train"]
    np.savez(tmp_path / "more.npz", train_images=images, train_labels=labels, class_names=NAMES)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingestion.append._commit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.ingest(tmp_path / "more.npz", path, append=True)
    (tmp_path / "more.npz").unlink()
    with pytest.raises(IncompleteError, match="run that command again, to complete it, then"):
        pipeline.verify(path)
    pipeline.ingest(tmp_path / "more.npz", path, append=True)
    assert pipeline.verify(path) == []
    assert content(path)["splits"]["train"]["count"] == 13
