"""The record that makes a folder a store or a run, and the plan that it starts from."""

from __future__ import annotations

import errno
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.core.errors import (
    ConflictError,
    DamagedError,
    IncompleteError,
    StorageFullError,
    StoreError,
)
from pipeline.storage import claims, manifest
from pipeline.storage.claims import claimed, start
from pipeline.storage.locks import held
from pipeline.storage.manifest import IMAGES, RUN, read_manifest, write_manifest

PLAN = {"images": "abc", "classes": ["cat", "dog"], "step": 64}


def finish(path, kind=IMAGES, plan=PLAN):
    assert start(path, kind, plan) is None
    content = {"digest": "d1", "identity": claims.identity(plan), "plan": dict(plan)}
    write_manifest(path, kind, content)


def snapshot(folder):
    """Every file below a folder with its bytes, and every folder."""
    return {
        str(item.relative_to(folder)): item.read_bytes() if item.is_file() else None
        for item in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("existing", [False, True])
def test_a_new_or_an_empty_folder_is_begun(tmp_path, existing):
    path = tmp_path / "deep" / "store"
    if existing:
        path.mkdir(parents=True)
    assert start(path, IMAGES, PLAN) is None
    assert manifest.kind_of(path) is None  # begun is not finished


def test_the_same_plan_resumes_and_touches_nothing(tmp_path):
    start(tmp_path / "s", IMAGES, PLAN)
    (tmp_path / "s" / "shard").write_bytes(b"work done so far")
    before = snapshot(tmp_path / "s")
    same_in_another_order = dict(reversed(PLAN.items()))
    assert start(tmp_path / "s", IMAGES, same_in_another_order) is None
    assert snapshot(tmp_path / "s") == before


@pytest.mark.parametrize("kind", [IMAGES, RUN])
def test_a_finished_folder_of_the_same_plan_is_recognised(tmp_path, kind):
    finish(tmp_path / "s", kind)
    before = snapshot(tmp_path / "s")
    done = start(tmp_path / "s", kind, PLAN)
    assert done is not None
    assert done["digest"] == "d1"
    assert done == read_manifest(tmp_path / "s", kind)
    assert manifest.kind_of(tmp_path / "s") == kind
    assert snapshot(tmp_path / "s") == before


def test_finishing_drops_the_work_folder(tmp_path):
    start(tmp_path / "s", IMAGES, PLAN)
    assert (tmp_path / "s" / manifest.WORK).is_dir()
    write_manifest(tmp_path / "s", IMAGES, {"digest": "d1"})
    left = sorted(item.name for item in (tmp_path / "s").iterdir())
    assert left == [manifest.COPY, manifest.MANIFEST]


def test_work_that_a_killed_finish_left_is_dropped_by_the_next_start(tmp_path):
    finish(tmp_path / "s")
    (tmp_path / "s" / manifest.WORK / "samples").mkdir(parents=True)
    assert start(tmp_path / "s", IMAGES, PLAN) is not None
    assert not (tmp_path / "s" / manifest.WORK).exists()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("key", "value"), [("images", "xyz"), ("classes", ["cat"]), ("step", 32), ("step", None)]
)
def test_another_plan_is_refused_by_key_and_both_values(tmp_path, finished, key, value):
    path = tmp_path / "s"
    if finished:
        finish(path)
    else:
        start(path, IMAGES, PLAN)
    before = snapshot(path)
    with pytest.raises(ConflictError) as caught:
        start(path, IMAGES, PLAN | {key: value})
    message = str(caught.value)
    assert str(path) in message
    assert f"'{key}' there is {PLAN[key]!r}, here {value!r}" in message
    assert isinstance(caught.value, FileExistsError)
    assert snapshot(path) == before


def test_a_conflict_names_what_follows_from_others_only_where_nothing_else_differs(tmp_path):
    start(tmp_path / "s", IMAGES, {"evaluate": ["test"], "step": 40})
    with pytest.raises(ConflictError) as caught:
        start(tmp_path / "s", IMAGES, {"evaluate": ["train"], "step": 300})
    assert "'evaluate' there is ['test'], here ['train']" in str(caught.value)
    assert "step" not in str(caught.value)
    with pytest.raises(ConflictError) as caught:
        start(tmp_path / "s", IMAGES, {"evaluate": ["a"], "neighbours_step": 3, "step": 40})
    assert "step" not in str(caught.value)
    with pytest.raises(ConflictError, match="'step' there is 40, here 300"):
        start(tmp_path / "s", IMAGES, {"evaluate": ["test"], "step": 300})


def test_a_conflict_over_a_long_value_stays_readable(tmp_path):
    start(tmp_path / "s", IMAGES, {"classes": [f"class {n}" for n in range(10_000)]})
    with pytest.raises(ConflictError) as caught:
        start(tmp_path / "s", IMAGES, {"classes": ["cat"]})
    assert "'classes'" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_begun_store_is_no_place_for_a_run(tmp_path):
    start(tmp_path / "s", IMAGES, PLAN)
    before = snapshot(tmp_path / "s")
    with pytest.raises(ConflictError):
        start(tmp_path / "s", RUN, PLAN)
    assert snapshot(tmp_path / "s") == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "thesis"
    (path / "chapters").mkdir(parents=True)
    (path / "notes.txt").write_text("years of work")
    before = snapshot(path)
    with pytest.raises(ConflictError, match="choose another place or remove it") as caught:
        start(path, IMAGES, PLAN)
    assert str(path) in str(caught.value)
    assert snapshot(path) == before


def test_a_file_in_the_place_of_the_folder_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "s"
    path.write_text("a file")
    with pytest.raises(ConflictError):
        start(path, IMAGES, PLAN)
    assert path.read_text() == "a file"


def test_a_start_that_met_a_full_disk_can_be_repeated_as_its_message_says(tmp_path, monkeypatch):
    opened = Path.open

    def full(self, mode="r", *more, **keywords):
        if "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(self, mode, *more, **keywords)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", full)
        with pytest.raises(StorageFullError, match="run the same command again"):
            start(tmp_path / "s", IMAGES, PLAN)
    assert start(tmp_path / "s", IMAGES, PLAN) is None


def test_a_start_that_was_killed_before_its_plan_was_written_can_be_repeated(tmp_path):
    work = tmp_path / "s" / manifest.WORK
    work.mkdir(parents=True)
    (work / "plan.json.partial").write_text('{"kind"')
    assert start(tmp_path / "s", IMAGES, PLAN) is None


@pytest.mark.parametrize("what", ["another's run", "another's begun run", "thesis", "file"])
def test_no_lock_is_made_in_a_folder_that_is_refused(tmp_path, monkeypatch, what):
    path, other = tmp_path / "s", PLAN | {"step": 1}
    if what == "another's run":
        finish(path, RUN, other)
    elif what == "another's begun run":
        start(path, RUN, other)
    elif what == "thesis":
        path.mkdir()
        (path / "notes.txt").write_text("years of work")
    else:
        path.write_text("a file")
    monkeypatch.setattr(claims, "held", None)
    with pytest.raises(ConflictError), claimed(path, RUN, PLAN, print):
        pass


def test_a_finished_folder_that_cannot_be_written_to_is_recognised_all_the_same(
    tmp_path, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    finish(tmp_path / "s")
    for name in ("write_bytes", "write_text", "mkdir", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    with claimed(tmp_path / "s", IMAGES, PLAN, print) as done:
        assert done is not None
    monkeypatch.undo()
    (tmp_path / "s" / manifest.WORK).mkdir()
    for name in ("write_bytes", "write_text", "mkdir", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    with claimed(tmp_path / "s", IMAGES, PLAN, print) as done:
        assert done is not None


def test_a_folder_that_another_filled_between_two_looks_is_refused_or_complete(
    tmp_path, monkeypatch
):
    def filled(plan):
        @contextmanager
        def slow(path, *arguments, **keywords):
            finish(path, IMAGES, plan)
            with held(path, *arguments, **keywords) as lock:
                yield lock

        return slow

    monkeypatch.setattr(claims, "held", filled(PLAN))
    with claimed(tmp_path / "same", IMAGES, PLAN, print) as done:
        assert done is not None
    monkeypatch.setattr(claims, "held", filled(PLAN | {"step": 1}))
    with pytest.raises(ConflictError), claimed(tmp_path / "other", IMAGES, PLAN, print):
        pass
    assert not list(tmp_path.rglob(".lock*"))


@pytest.mark.parametrize("look", [
    lambda path: claims.recognise(path, IMAGES, PLAN) is None,
    lambda path: not claims.could_hold(path, IMAGES),
])  # fmt: skip
def test_a_folder_that_another_begins_between_two_looks_is_not_somebody_elses(
    tmp_path, monkeypatch, look
):
    path = tmp_path / "s"
    looked, record = [], path / manifest.PLAN

    def slow(place):
        if place == record and not looked:
            looked.append(place)  # not there yet; now another begins, and writes its first array
            start(path, IMAGES, PLAN)
            (path / "zarr.json").write_text("{}")
            raise FileNotFoundError(place)
        return read(place)

    read = claims.read_json
    monkeypatch.setattr(claims, "read_json", slow)
    assert look(path)
    assert looked == [record]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'"text"'])
def test_a_plan_that_cannot_be_read_is_damage_with_its_place(tmp_path, content):
    start(tmp_path / "s", IMAGES, PLAN)
    (tmp_path / "s" / manifest.WORK / "plan.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"plan\.json"):
        start(tmp_path / "s", IMAGES, PLAN)


def test_a_begun_folder_is_incomplete_and_says_how_to_go_on(tmp_path):
    start(tmp_path / "s", IMAGES, PLAN)
    with pytest.raises(IncompleteError, match="run the same command") as caught:
        read_manifest(tmp_path / "s", IMAGES)
    assert str(tmp_path / "s") in str(caught.value)


def test_a_zarr_store_of_others_is_not_taken_for_an_image_set(tmp_path):
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(IncompleteError, match=r"manifest\.json.*pixsim ingest"):
        read_manifest(tmp_path, IMAGES)


def test_a_missing_folder_is_said_to_be_missing(tmp_path):
    with pytest.raises(StoreError, match="no such folder") as caught:
        read_manifest(tmp_path / "nowhere", IMAGES)
    assert not isinstance(caught.value, IncompleteError)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    "content", [b"", b'{"kind": "pixsim im', b"[]", b"{}", b"null", b"\xff\xfe\x00"]
)
def test_a_manifest_that_cannot_be_read_is_damage_with_its_place(tmp_path, content):
    finish(tmp_path / "s")
    (tmp_path / "s" / manifest.MANIFEST).write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        read_manifest(tmp_path / "s", IMAGES)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        start(tmp_path / "s", IMAGES, PLAN)
    assert manifest.kind_of(tmp_path / "s") is None


def test_another_format_is_refused_with_both_versions(tmp_path):
    finish(tmp_path / "s")
    record = tmp_path / "s" / manifest.MANIFEST
    content = json.loads(record.read_text()) | {"format_version": 987}
    record.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=f"format 987, expected {manifest.FORMAT_VERSION}"):
        read_manifest(tmp_path / "s", IMAGES)


@pytest.mark.parametrize(("is_", "wanted"), [(RUN, IMAGES), (IMAGES, RUN)])
def test_a_run_is_no_image_set_and_the_other_way_round(tmp_path, is_, wanted):
    finish(tmp_path / "s", is_)
    before = snapshot(tmp_path / "s")
    for call in (read_manifest, lambda path, kind: start(path, kind, PLAN)):
        with pytest.raises(StoreError, match=f"is a {is_}, expected a {wanted}"):
            call(tmp_path / "s", wanted)
    assert snapshot(tmp_path / "s") == before


def test_a_manifest_names_the_versions_that_made_the_result(tmp_path):
    finish(tmp_path / "s")
    found = read_manifest(tmp_path / "s", IMAGES)["versions"]
    assert found["numpy"] == np.__version__
    assert found["zarr"] == zarr.__version__


def test_plans_are_the_same_exactly_where_their_content_is():
    assert claims.identity({"a": 1, "b": [2]}) == claims.identity({"b": [2], "a": 1})
    plans = [{"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": None}, {}]
    assert len({claims.identity(plan) for plan in plans}) == len(plans)
