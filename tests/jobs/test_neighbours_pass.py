"""The nearest images that a job writes: those of the definition, however it is cut and wherever."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_for_tests import NAMES, make_arrays, make_images, make_settings, run
from sklearn.metrics import confusion_matrix
from strategies import oracle_lists, oracle_numerators

import pipeline
from pipeline.core.errors import (
    ConfigError,
    ConflictError,
    DamagedError,
    EmptyClassError,
    JobInterruptedError,
    ShapeError,
    StoreError,
)
from pipeline.core.exact import NOWHERE, finish_neighbours
from pipeline.jobs import neighbours_pass, search_pass, search_plan
from pipeline.storage import tables

SIZE = 20  # bytes of an image of `make_arrays`


@pytest.fixture
def small(monkeypatch):
    """Cut into steps of 16 queries and groups of 50 references."""
    cut(monkeypatch)


def cut(monkeypatch, step=16, group=50):
    monkeypatch.setattr(search_plan, "_STEP_BYTES", step * SIZE)
    monkeypatch.setattr(search_plan, "_GROUP_BYTES", group * SIZE)


def rows_of(arrays, k, evaluate, among, metrics, wanted):
    """The rows that a job writes, by the definition: a stable sort of every distance, in int64."""
    images, labels = (np.concatenate([arrays[split][at] for split in among]) for at in (0, 1))
    where = [(split, sample) for split in among for sample in range(len(arrays[split][0]))]
    rows = []
    for split in evaluate:
        queries, own = arrays[split]
        numerators = {}
        for metric in metrics:
            found = oracle_numerators(queries, images, metric)
            found[:, ~np.isin(labels, wanted)] = NOWHERE
            for column, place in enumerate(where):
                if place[0] == split:
                    found[place[1], column] = NOWHERE
            numerators[metric] = oracle_lists(found, k)
        for sample in range(len(queries)):
            if own[sample] >= 0 and own[sample] not in wanted:
                continue
            for metric in metrics:
                nearest, indices = (part[sample] for part in numerators[metric])
                distance = finish_neighbours(nearest, metric, SIZE, 255)
                for rank, index in enumerate(indices.tolist()):
                    there = index != NOWHERE
                    rows.append((
                        sample, split, metric, rank + 1,
                        *((where[index][1], where[index][0], labels[index], distance[rank])
                          if there else (None, None, None, None)),
                    ))  # fmt: skip
    return rows


def written(done):
    columns = [
        "sample", "split", "metric", "rank", "neighbour", "neighbour_split", "neighbour_label",
        "distance",
    ]  # fmt: skip
    rows = []
    for part in sorted((done.path / "neighbours").glob("part-*.parquet")):
        table = pq.read_table(part).to_pydict()
        rows += zip(*(table[name] for name in columns), strict=True)
    return rows


def test_tables_have_what_is_documented(images, tmp_path):
    done = run(images, tmp_path / "run", neighbours={"k": 3})
    table = pq.read_table(next((done.path / "neighbours").iterdir()))
    assert table.column_names == [
        "sample", "split", "label", "metric", "rank", "neighbour", "neighbour_split",
        "neighbour_label", "distance",
    ]  # fmt: skip
    frame = done.neighbours.compute()
    assert len(frame) == 90 * 2 * 3
    assert frame["split"].dtype == "category"
    assert (frame["label"].to_numpy().reshape(90, 6) == frame["label"].to_numpy()[::6, None]).all()


@pytest.mark.parametrize(
    ("evaluate", "among", "metrics", "classes"),
    [
        ("test", "train", ["l1", "l2"], None),
        ("train", "train", ["l2"], None),
        (["test", "train"], ["train", "test"], ["l1"], ["birch", "dogwood"]),
        (["train", "test"], "test", ["l2", "l1"], ["cedar", "ash"]),
    ],
)
def test_rows_are_those_of_the_definition(tmp_path, small, evaluate, among, metrics, classes):
    arrays = make_arrays(3)
    arrays["train"][0][50:60] = arrays["train"][0][7]  # ties, across groups
    arrays["test"][1][::9] = -1
    images = make_images(tmp_path / "images.zarr", arrays)
    done = run(
        images, tmp_path / "run", evaluate=evaluate, classes=classes, metrics=["l1"],
        neighbours={"k": 4, "among": among, "metrics": metrics},
    )  # fmt: skip
    splits = [[name] if isinstance(name, str) else name for name in (evaluate, among)]
    wanted = [NAMES.index(name) for name in classes or NAMES]
    assert written(done) == rows_of(arrays, 4, *splits, metrics, wanted)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99), sizes=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    shard=st.sampled_from([5, 16, 64]), workers=st.integers(1, 5), k=st.integers(1, 30),
    dtype=st.sampled_from([np.uint8, np.uint16]),
)  # fmt: skip
def test_the_digest_is_the_same_for_any_cut(seed, sizes, shard, workers, k, dtype):
    arrays = make_arrays(seed, train=24, test=9, dtype=dtype)
    asked = {"report": False, "neighbours": {"k": k, "among": ["train", "test"]}}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        one = run(make_images(folder / "one.zarr", arrays), folder / "one", **asked)
        cut(patch, *sizes)
        images = make_images(folder / "other.zarr", arrays, shard)
        other = run(images, folder / "other", cluster={"workers": workers}, **asked)
        assert other.manifest["digests"] == one.manifest["digests"]
        assert pipeline.digest(other.path) == one.manifest["digests"]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"cluster": {"kind": "local", "workers": 2}}, marks=pytest.mark.slow),
        {"device": "torch:cpu"},
        {"distances": "skip"},
        {"report": False},
    ],
)
def test_where_it_runs_changes_nothing(images, tmp_path, small, more):
    expected, done = (
        run(images, tmp_path / name, neighbours={"k": 5}, evaluate=["test", "train"], **settings)
        for name, settings in {"expected": {}, "done": more}.items()
    )
    assert done.manifest["digests"]["neighbours"] == expected.manifest["digests"]["neighbours"]
    assert done.metrics == expected.metrics


def test_votes_are_counted_as_scikit_learn_counts_them(images, tmp_path, small):
    done = run(images, tmp_path / "run", evaluate=["train", "test"], neighbours={"k": 7})
    frame = done.neighbours.compute()
    assert list(done.metrics["neighbours"]) == ["l1", "l2"]
    for split in ("train", "test", None):
        known = done.metrics if split is None else done.metrics["splits"][split]
        for metric, by_votes in known["neighbours"].items():
            assert list(by_votes) == ["1", "3", "5"]
            mine = frame[frame["metric"] == metric]
            mine = mine if split is None else mine[mine["split"] == split]
            nearest = mine["neighbour_label"].to_numpy(float).reshape(-1, 7)
            labels = mine["label"].to_numpy(float).reshape(-1, 7)[:, 0]
            for votes, found in by_votes.items():
                predicted = [most_frequent(row[: int(votes)].tolist()) for row in nearest]
                counts = confusion_matrix(labels, predicted, labels=range(4))
                assert found["confusion"]["counts"] == counts.tolist()
                assert found["accuracy"] == np.diagonal(counts).sum() / len(labels)


def most_frequent(labels):
    return max(labels, key=lambda label: (labels.count(label), -labels.index(label)))


def test_more_neighbours_than_there_are_end_in_rows_without(tmp_path):
    arrays = make_arrays(train=4, test=3)
    images = make_images(tmp_path / "images.zarr", arrays)
    settings = {"allow_empty_classes": True, "evaluate": ["test", "train"]}
    done = run(images, tmp_path / "run", neighbours={"k": 6}, **settings)
    assert written(done) == rows_of(
        arrays, 6, ["test", "train"], ["train"], ["l1", "l2"], [0, 1, 2, 3]
    )
    frame = done.neighbours.compute()
    assert frame["distance"].isna().sum() == 3 * 2 * 2 + 4 * 2 * 3


@dataclass(frozen=True)
class Stopping(search_pass.SearchPart):
    """Is stopped after some groups."""

    def _search(self, prepared, queries, lists):
        _left[0] -= 1
        if not _left[0]:
            raise KeyboardInterrupt
        return super()._search(prepared, queries, lists)


_left = [0]


@pytest.mark.parametrize("after", [1, 2, 3, 8, 17, 30])
def test_a_search_cut_short_goes_on_after_the_group_that_it_was_at(
    images, tmp_path, small, monkeypatch, after
):
    one = {"cluster": {"workers": 1}, "neighbours": {"k": 5}}
    expected = run(images, tmp_path / "expected", **one)
    with monkeypatch.context() as patch:
        patch.setattr(neighbours_pass, "SearchPart", Stopping)
        _left[0] = after
        with pytest.raises(JobInterruptedError):
            run(images, tmp_path / "run", **one)
    searched = []
    plain = search_pass.SearchPart._search

    def counted(self, prepared, queries, lists):
        searched.append(len(lists))
        return plain(self, prepared, queries, lists)

    monkeypatch.setattr(search_pass.SearchPart, "_search", counted)
    done = run(images, tmp_path / "run", **one)
    steps, groups = 8, 5  # 90 queries in steps of 12, 230 references in groups of 46
    assert len(searched) == steps * groups - (after - 1)
    assert done.manifest["digests"] == expected.manifest["digests"]
    assert not (done.path / ".work").exists()


def test_a_search_resumed_by_another_number_of_workers_keeps_what_was_searched(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(search_plan, "_GROUP_BYTES", 30 * SIZE)  # a step, and eight groups
    images = make_images(tmp_path / "images.zarr")
    expected = run(images, tmp_path / "expected", neighbours={"k": 5})
    with monkeypatch.context() as patch:
        patch.setattr(neighbours_pass, "SearchPart", Stopping)
        _left[0] = 7
        with pytest.raises(JobInterruptedError):
            run(images, tmp_path / "run", neighbours={"k": 5}, cluster={"workers": 4})
    saved = list((tmp_path / "run/.work/neighbours").glob("*-of-4.parquet"))
    kept = sum(int(tables.read_notes(path)["done"]) % 2 or 2 for path in saved)
    searched = []
    plain = search_pass.SearchPart._search

    def counted(self, prepared, queries, lists):
        searched.append(len(lists))
        return plain(self, prepared, queries, lists)

    monkeypatch.setattr(search_pass.SearchPart, "_search", counted)
    done = run(images, tmp_path / "run", neighbours={"k": 5}, cluster={"workers": 1})
    assert kept > 2
    assert 0 < len(searched) <= 8 - kept  # a task that was told to stop may have ended since
    assert done.manifest["digests"] == expected.manifest["digests"]


def test_a_measured_split_without_images_has_no_neighbours(tmp_path):
    arrays = make_arrays(train=20, test=9)
    arrays["none"] = arrays["test"][0][:0], arrays["test"][1][:0]
    images = make_images(tmp_path / "images.zarr", arrays)
    done = run(images, tmp_path / "run", evaluate="none", neighbours={"k": 3}, report=False)
    assert done.metrics["neighbours"]["l1"]["1"]["accuracy"] is None
    assert pipeline.digest(done.path) == done.manifest["digests"]
    assert pipeline.verify(done.path) == []


def test_saved_lists_that_were_damaged_are_searched_again(images, tmp_path, small, monkeypatch):
    one = {"cluster": {"workers": 1}, "neighbours": {"k": 5}}
    expected = run(images, tmp_path / "expected", **one)
    with monkeypatch.context() as patch:
        patch.setattr(neighbours_pass, "SearchPart", Stopping)
        _left[0] = 18
        with pytest.raises(JobInterruptedError):
            run(images, tmp_path / "run", **one)
    saved = sorted((tmp_path / "run/.work/neighbours").iterdir())
    assert len(saved) > 2
    saved[0].write_bytes(saved[0].read_bytes()[:-40])
    columns, notes = tables.read_part(saved[1]), tables.read_notes(saved[1])
    columns["distance"] = columns["distance"] + 1
    tables.write_part(saved[1], columns, notes)
    done = run(images, tmp_path / "run", **one)
    assert done.manifest["digests"] == expected.manifest["digests"]


def test_only_damaged_tables_are_made_again(images, tmp_path, small):
    done = run(images, tmp_path / "run", neighbours={"k": 5})
    parts = sorted((done.path / "neighbours").iterdir())
    content = {part: part.read_bytes() for part in parts}
    parts[1].unlink()
    parts[2].write_bytes(content[parts[2]][:100])
    (done.path / "neighbours/part-000099.parquet").write_bytes(content[parts[0]])
    with pytest.raises(DamagedError, match=r"neighbours/part-0000.*verify.*--repair"):
        pipeline.open_run(done.path)
    named = [damage.file for damage in pipeline.verify(done.path)]
    assert named == [f"neighbours/part-{number:06d}.parquet" for number in (1, 2, 99)]
    before = parts[0].stat().st_mtime_ns
    assert [damage.file for damage in pipeline.verify(done.path, repair=True)] == named
    assert content == {part: part.read_bytes() for part in (done.path / "neighbours").iterdir()}
    assert parts[0].stat().st_mtime_ns == before
    assert pipeline.verify(done.path) == []


def test_a_table_that_was_changed_whole_is_noticed(images, tmp_path, small):
    done = run(images, tmp_path / "run", neighbours={"k": 5})
    first, second = sorted((done.path / "neighbours").iterdir())[:2]
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedError):
        done.neighbours.compute()
    with pytest.raises(DamagedError):
        pipeline.digest(done.path)
    assert [damage.file for damage in pipeline.verify(done.path)] == [
        "neighbours/part-000000.parquet"
    ]


def test_a_job_with_other_neighbours_is_another_job(images, tmp_path):
    run(images, tmp_path / "plain")
    run(images, tmp_path / "run", neighbours={"k": 5})
    for folder, other in [
        ("plain", {"k": 5}), ("run", None), ("run", {"k": 6}), ("run", {"k": 5, "among": "test"}),
        ("run", {"k": 5, "metrics": "l1"}),
    ]:  # fmt: skip
        with pytest.raises(ConflictError, match="neighbours"):
            run(images, tmp_path / folder, neighbours=other)


def test_a_run_without_neighbours_says_how_to_get_them(undisturbed):
    with pytest.raises(StoreError, match=r"no neighbours.*neighbours: \{k: 10\}"):
        _ = undisturbed.neighbours
    assert "neighbours" not in undisturbed.metrics
    assert "neighbours" not in undisturbed.manifest["plan"]


@pytest.mark.parametrize(
    ("neighbours", "message"),
    [
        ({"k": 0}, "neighbours.k"),
        ({"k": "many"}, "neighbours.k"),
        ({"amongst": "train"}, "did you mean 'among'"),
        ({"metrics": ["l3"]}, "neighbours.metrics"),
        ({"among": []}, "neighbours.among"),
        (5, r"expected a mapping such as \{k: 10"),
        ({"k": True}, "neighbours.k"),
    ],
)
def test_wrong_settings_are_refused(images, tmp_path, neighbours, message):
    with pytest.raises(ConfigError, match=message):
        make_settings(images, tmp_path / "run", neighbours=neighbours)


def test_what_cannot_be_searched_is_refused_before_anything_is_written(tmp_path):
    arrays = make_arrays(train=20, test=9)
    arrays["large"] = np.zeros((3, 6, 6), np.uint8), np.zeros(3, np.int32)
    arrays["unlabelled"] = arrays["test"][0], np.full(9, -1, np.int32)
    images = make_images(tmp_path / "images.zarr", arrays)
    for among, expected in {
        "gone": StoreError, "large": ShapeError, "unlabelled": EmptyClassError,
    }.items():  # fmt: skip
        with pytest.raises(expected, match=among):
            run(images, tmp_path / "run", neighbours={"among": among})
    assert not (tmp_path / "run").exists()


def test_the_plan_says_what_a_search_reads_and_writes(images, tmp_path, small):
    job = make_settings(images, tmp_path / "run", neighbours={"k": 5, "metrics": "l1"})
    known = pipeline.forecast(job)
    assert known["pairs"] == 90 * 230
    *_, last = known["passes"]
    assert last["name"] == "neighbours of 'test' among 'train'"
    assert (last["images"], last["partitions"], last["tasks"]) == (90, 8, 8)
    assert last["bytes"] == (90 + 230) * SIZE
    assert known["memory"]["search"] > 0
    assert ["neighbours/part-*.parquet", 8] in [[f["path"], f["files"]] for f in known["files"]]
    done = pipeline.run_job(job)
    assert len(list((done.path / "neighbours").iterdir())) == 8
    assert json.loads((done.path / "metrics.json").read_text())["neighbours"]["l1"]["5"]
