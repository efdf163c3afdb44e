"""A folder that holds another thing: what is said of it, and how it is replaced."""

from __future__ import annotations

import pytest
from stores_for_tests import memory

from pipeline.core.errors import ConflictError, StoreError
from pipeline.storage import manifest, replacing
from pipeline.storage.atomic import write_json
from pipeline.storage.claims import claimed, identity, recognise, start
from pipeline.storage.folders import exists, files_below
from pipeline.storage.manifest import AUDIT, COPY, IMAGES, MANIFEST, RUN, WORK

OLD, NEW = {"metrics": ["l1", "l2"], "fit": "train"}, {"metrics": ["l1"], "fit": "train"}
FILES = ("metrics.json", "predictions/part-0.parquet")


def finish(path, kind=RUN, plan=OLD, **terms):
    with claimed(path, kind, plan, lambda line: None, **terms) as done:
        if done is None:
            for name in FILES:
                write_json(path / name, {"plan": plan})
            files = manifest.file_hashes(path, FILES)
            content = {"plan": plan, "identity": identity(plan), "files": files, "arrays": {}}
            manifest.write_manifest(path, kind, content)
    return path


def content_of(path):
    return manifest.read_manifest(path, RUN)["plan"], {(path / n).read_text() for n in FILES}


@pytest.mark.parametrize("kind", [RUN, AUDIT, IMAGES])
def test_what_is_finished_stays_until_the_new_is_complete_and_then_goes(tmp_path, kind):
    path, said = finish(tmp_path / "s", kind), []
    (path / "notes.txt").write_text("mine")
    with claimed(path, kind, NEW, said.append, overwrite=True) as done:
        assert done is None
        old = path / WORK / replacing.REPLACED
        assert manifest.read_manifest(old, kind)["plan"] == OLD
        assert all(exists(old / name) for name in FILES)
        assert not any(exists(path / name) for name in (*FILES, MANIFEST, COPY))
        assert str(old) in said[0]
    finish(path, kind, NEW)
    assert manifest.read_manifest(path, kind)["plan"] == NEW
    assert sorted(item.name for item in path.iterdir()) == [
        COPY, MANIFEST, "metrics.json", "notes.txt", "predictions",
    ]  # fmt: skip


def test_the_same_is_recognised_also_where_it_might_be_replaced(tmp_path):
    path = finish(tmp_path / "s")
    before = {name: (path / name).stat().st_mtime_ns for name in files_below(path)}
    assert recognise(path, RUN, OLD, overwrite=True)["plan"] == OLD
    finish(path, overwrite=True)
    assert before == {name: (path / name).stat().st_mtime_ns for name in files_below(path)}


@pytest.mark.parametrize("fails_at", range(1, 7))
def test_cut_short_at_any_step_the_old_or_the_new_is_complete_in_the_end(
    tmp_path, monkeypatch, fails_at
):
    path, calls = finish(tmp_path / "s"), []

    def failing(function):
        def call(*arguments, **keywords):
            calls.append(function)
            if len(calls) == fails_at:
                raise OSError("cut short")
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(replacing, "write_json", failing(replacing.write_json))
        patch.setattr(replacing, "exists", failing(replacing.exists))
        with pytest.raises(OSError, match="cut short"):
            finish(path, plan=NEW, overwrite=True)
    if exists(path / MANIFEST):
        finish(path)  # the old is what it was, and its own command leaves it so
        assert content_of(path)[0] == OLD
        assert len(content_of(path)[1]) == 1
        finish(path, plan=NEW, overwrite=True)
    else:
        assert manifest.read_manifest(path / WORK / replacing.REPLACED, RUN)["plan"] == OLD
        finish(path, plan=NEW)  # begun, so that it need not be asked for again
    assert content_of(path)[0] == NEW
    assert not exists(path / WORK)
    assert '"l2"' not in "".join(content_of(path)[1])


def test_another_plan_that_was_not_finished_is_removed_and_the_finished_one_is_kept(tmp_path):
    path = finish(tmp_path / "s")
    assert start(path, RUN, NEW, overwrite=True) is None
    write_json(path / "metrics.json", {"half": "done"})
    third, said = NEW | {"fit": "all"}, []
    with pytest.raises(ConflictError, match="'fit' there is 'train', here 'all'"):
        start(path, RUN, third)
    assert start(path, RUN, third, None, said.append, overwrite=True) is None
    assert not exists(path / "metrics.json")
    assert manifest.read_manifest(path / WORK / replacing.REPLACED, RUN)["plan"] == OLD
    assert "made anew" in said[0]


def test_what_is_no_folder_of_this_kind_is_never_replaced(tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    (path / "notes.txt").write_text("years of work")
    with pytest.raises(ConflictError, match="nothing in it was touched"):
        start(path, RUN, NEW, overwrite=True)
    store = finish(tmp_path / "s", IMAGES)
    with pytest.raises(StoreError, match="is a pixsim image set"):
        start(store, RUN, NEW, overwrite=True)
    begun = tmp_path / "begun"
    start(begun, IMAGES, OLD)
    with pytest.raises(ConflictError):
        start(begun, RUN, NEW, overwrite=True)


def test_behind_a_url_it_is_removed_before_the_new_is_written():
    path = memory() / "s"
    finish(path)
    with claimed(path, RUN, NEW, lambda line: None, overwrite=True) as done:
        assert done is None
        assert not any(exists(path / name) for name in (*FILES, MANIFEST, COPY))
    finish(path, plan=NEW)
    assert content_of(path)[0] == NEW


# what is said ------------------------------------------------------------------------------------


def message(was, now_is):
    return replacing.conflict("there", RUN, now_is, was)


def test_each_key_that_differs_is_named_with_both_values():
    was = {"metrics": ["l1", "l2"], "neighbours": {"k": 3, "among": ["train"]}, "step": 8}
    now_is = {"metrics": ["l1"], "neighbours": {"k": 5, "among": ["train"]}, "step": 8, "fit": "a"}
    assert message(was, now_is).startswith(
        "there: holds another run ('metrics' there is ['l1', 'l2'], here ['l1']; "
        "'neighbours.k' there is 3, here 5; 'fit' there is None, here 'a'); nothing in it was"
    )


def test_long_values_are_shortened_to_what_differs():
    names = [f"class {number}" for number in range(1000)]
    said = message({"classes": names}, {"classes": [*names, "a cat"]})
    assert "'classes' there is 1,000 values, here 1,001 values with 'a cat'" in said
    said = message({"images": "ab" * 32}, {"images": "cd" * 32})
    assert f"there is {'ab' * 6}..., here {'cd' * 6}..." in said
    said = message({"path": "/x" * 60 + "/a"}, {"path": "/x" * 60 + "/b"})
    assert "/a'" in said
    assert "/b'" in said
    assert len(said) < 400


def test_of_many_keys_the_first_are_named_and_the_others_counted():
    said = message({}, {f"key{number}": number for number in range(9)})
    assert "'key2' there is None, here 2; and 6 keys more)" in said
