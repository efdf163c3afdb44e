"""An audit finds what was planted, and the same on whatever it runs, however often it is begun."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_for_tests import Faulty

import pipeline
from pipeline.core.errors import ConfigError, ConflictError, EmptyClassError
from pipeline.jobs import audit as auditing
from pipeline.jobs.audit_pairs import LOWEST
from pipeline.ops.audit_scores import nearness
from pipeline.ops.looks import normalize
from pipeline.sources.arrays import from_arrays

NAMES = ["cat", "dog", "emu"]
SHAPE = (9, 8)


def make_splits(counts, shape=SHAPE, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    return {
        name: (
            rng.integers(0, largest, (count, *shape), dtype, endpoint=True),
            rng.integers(0, len(NAMES), count).astype(np.int32),
        )
        for name, count in counts.items()
    }


def ingest(path, arrays, shard=16):
    return pipeline.ingest(from_arrays(arrays, NAMES), path, shard)


def audit(store, output, **checks):
    content = {"name": "audit", "images": str(store), "output": str(output)}
    return pipeline.run_audit(content | checks)


def keys(table, first="", second="other_"):
    """Return the two images of each row, as (split, sample)."""
    ends = [
        zip(table[f"{prefix}split"].astype(str), table[f"{prefix}sample"], strict=True)
        for prefix in (first, second)
    ]
    return list(zip(*ends, strict=True))


@pytest.fixture(scope="module")
def planted():
    """Two splits with an exact copy, three of one image, a darker copy, and a mirrored one."""
    arrays = make_splits({"train": 90, "test": 40})
    train, labels = arrays["train"]
    test, test_labels = arrays["test"]
    test[5], test_labels[5] = train[17], labels[17]
    train[60] = train[61] = train[3]
    labels[[3, 60, 61]] = [0, 0, 1]
    train[33] = (test[8] * 0.7).astype(np.uint8) + 12
    train[70] = test[20][:, ::-1]
    return arrays


@pytest.fixture(scope="module")
def store(planted, tmp_path_factory):
    return ingest(tmp_path_factory.mktemp("store") / "images.zarr", planted)


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    return audit(store, tmp_path_factory.mktemp("made") / "audit", variants=["mirror"])


def test_planted_copies_are_the_first_pairs(made):
    pairs = made.table("pairs")
    exact = pairs[pairs.kind == "exact"]
    assert set(keys(exact)) == {
        (("test", 5), ("train", 17)), (("train", 3), ("train", 60)), (("train", 3), ("train", 61)),
        (("train", 60), ("train", 61)),
    }  # fmt: skip
    assert (exact.distance == 0).all()
    assert (exact.score == 1).all()
    assert exact.finding.all()
    near = pairs[(pairs.kind == "near") & pairs.finding]
    assert {(("test", 8), ("train", 33)), (("test", 20), ("train", 70))} <= set(keys(near))
    mirrored = near[near.mirrored]
    assert (("test", 20), ("train", 70)) in keys(mirrored)
    assert mirrored.distance.min() == 0
    assert list(pairs.score) == sorted(pairs.score, reverse=True)


def test_each_pair_is_there_once_and_every_two_splits_have_their_best(made, planted):
    pairs = made.table("pairs")
    assert len(set(map(frozenset, keys(pairs)))) == len(pairs)
    for (split, _), (other, _) in keys(pairs):
        assert (split, other) != ("train", "test")  # what is kept first comes first
    between = set(zip(pairs.split.astype(str), pairs.other_split.astype(str), strict=True))
    assert between == {("test", "test"), ("test", "train"), ("train", "train")}


def test_distances_are_those_of_the_images(made, planted):
    rows = made.table("pairs")
    for row in rows.sample(30, random_state=0).itertuples():
        one = planted[row.split][0][row.sample].astype(int)
        one = one[:, ::-1] if row.mirrored else one
        two = planted[row.other_split][0][row.other_sample].astype(int)
        assert row.distance == np.abs(one - two).sum() / (255 * one.size)
        assert row.label == planted[row.split][1][row.sample]
        assert row.label_name == NAMES[row.label]
        assert row.source == f"{row.split}[{row.sample}]"


@pytest.mark.parametrize("split", ["train", "test"])
def test_scores_are_those_of_lists_found_by_hand(store, planted, tmp_path, split):
    """Of the nearest in each split by both looks, and the surer of the two."""
    found = audit(store, tmp_path / "audit").table("pairs")
    queries, among = planted["test"][0], planted[split][0]
    best = {}
    for look in (lambda x: x, normalize):
        a, b = (look(x).astype(int).reshape(len(x), -1) for x in (queries, among))
        distance = np.abs(a[:, None] - b[None]).sum(-1).astype(float)
        if split == "test":
            np.fill_diagonal(distance, np.inf)
        order = np.argsort(distance, axis=1, kind="stable")[:, :10]
        score = nearness(np.take_along_axis(distance, order, 1))
        for i in range(len(a)):
            for rank in range(10):
                key = ("test", i), (split, int(order[i, rank]))
                key = tuple(sorted(key)) if split == "test" else key
                if rank == 0 or score[i, rank] >= LOWEST:
                    best[key] = max(best.get(key, 0), score[i, rank])
    mine = found[(found.split == "test") & (found.other_split == split)]
    assert len(mine) > 20
    for key, score in zip(keys(mine), mine.score, strict=True):
        assert score == pytest.approx(best[key], rel=1e-9) or score == 1


def test_groups_are_the_components_of_pairs(made):
    pairs, groups = made.table("pairs"), made.table("groups")
    parent = {}

    def root(key):
        parent.setdefault(key, key)
        return key if parent[key] == key else root(parent[key])

    for one, two in keys(pairs[pairs.finding]):
        parent[root(one)] = root(two)
    members = {}
    for key in parent:
        members.setdefault(root(key), set()).add(key)
    by_group = groups.groupby("group")
    found = [set(zip(rows.split.astype(str), rows["sample"], strict=True)) for _, rows in by_group]
    assert sorted(map(sorted, found)) == sorted(map(sorted, members.values()))
    assert (by_group["size"].first() == by_group.size()).all()
    three = groups[(groups.split == "train") & groups["sample"].isin([3, 60, 61])]
    assert three.group.nunique() == 1
    assert three.label_conflict.all()
    assert (by_group.representative.sum() == 1).all()
    assert (groups.diameter >= groups.smallest_distance).all()


def test_what_to_keep_follows_from_groups(made, planted):
    keep, groups = made.table("keep"), made.table("groups")
    assert len(keep) == 130
    rows = keep.set_index(["split", "sample"])
    assert rows.loc[("test", 5), "keep"]
    assert rows.loc[("train", 17), "reason"] == "leak"
    # the label of one of three copies differs, and none of them is in test
    assert set(rows.loc[[("train", n) for n in (3, 60, 61)], "reason"]) <= {
        "label conflict", "copy",
    }  # fmt: skip
    assert not rows.loc[("train", 3), "keep"]
    assert int((~keep.keep).sum()) >= made.summary["copies"]["copies_to_remove"]
    in_groups = set(zip(groups.split.astype(str), groups["sample"], strict=True))
    dropped = keep[~keep.keep]
    assert set(zip(dropped.split.astype(str), dropped["sample"], strict=True)) <= in_groups
    listed = (made.path / "drop.txt").read_text().split()
    assert listed == list(dropped.source)


def test_splits_named_first_keep_their_images(store, tmp_path):
    rows = audit(store, tmp_path / "audit", keep=["train"]).table("keep")
    rows = rows.set_index(["split", "sample"])
    assert rows.loc[("train", 17), "keep"]
    assert rows.loc[("test", 5), "reason"] == "leak"


def test_counts_are_said_in_three_ways(made):
    copies, groups, pairs = made.summary["copies"], made.table("groups"), made.table("pairs")
    assert copies["images"] == len(groups)
    assert copies["pairs"] == int(pairs.finding.sum())
    assert copies["groups"] == groups.group.nunique()
    assert copies["copies_to_remove"] == len(groups) - groups.group.nunique()


def test_a_threshold_of_ones_own_is_taken(store, tmp_path):
    found = audit(store, tmp_path / "audit", near=0.9, labels=1.0, outliers=1.0)
    pairs = found.table("pairs")
    assert (pairs.finding == ((pairs.score >= 0.9) | (pairs.kind == "exact"))).all()
    assert {part["threshold"] for part in found.summary["between"].values()} == {0.9}
    assert not found.table("labels").finding.any()


@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_copy_planted_anywhere_is_found(tmp_path_factory, data):
    counts = {"train": data.draw(st.integers(2, 40)), "test": data.draw(st.integers(1, 30))}
    arrays = make_splits(counts, seed=data.draw(st.integers(0, 99)))
    one, two = (
        (
            name := data.draw(st.sampled_from(sorted(counts))),
            data.draw(st.integers(0, counts[name] - 1)),
        )
        for _ in "ab"
    )
    if one == two:
        return
    arrays[one[0]][0][one[1]] = arrays[two[0]][0][two[1]]
    folder = tmp_path_factory.mktemp("any")
    found = audit(ingest(folder / "s.zarr", arrays, data.draw(st.integers(3, 50))), folder / "a")
    pairs = found.table("pairs")
    exact = {frozenset(key) for key in keys(pairs[pairs.kind == "exact"])}
    assert exact == {frozenset([one, two])}


# the same on anything ---------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [
    {"cluster": {"kind": "threads", "workers": 3}}, {"device": "torch:cpu"},
    pytest.param({"cluster": "local"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_digest_is_the_same_on_any_workers_and_device(made, store, tmp_path, changed):
    again = audit(store, tmp_path / "audit", variants=["mirror"], **changed)
    assert again.manifest["digests"] == made.manifest["digests"]


def test_the_digest_is_the_same_for_any_shards(made, planted, tmp_path):
    other = audit(ingest(tmp_path / "s.zarr", planted, 7), tmp_path / "a", variants=["mirror"])
    assert other.manifest["digests"] == made.manifest["digests"]


def test_an_audit_that_was_cut_short_goes_on(made, store, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(auditing, "write_findings", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            audit(store, tmp_path / "audit", variants=["mirror"])
    searched = (tmp_path / "audit/neighbours/part-000000.parquet").stat().st_mtime_ns
    again = audit(store, tmp_path / "audit", variants=["mirror"])
    assert again.manifest["digests"] == made.manifest["digests"]
    assert (again.path / "neighbours/part-000000.parquet").stat().st_mtime_ns == searched
    assert audit(store, tmp_path / "audit", variants=["mirror"]).path == again.path


def test_every_file_is_verified_and_made_again(made, tmp_path):
    path = shutil.copytree(made.path, tmp_path / "audit")
    digests = pipeline.digest(path)
    assert digests == made.manifest["digests"]
    for file in made.manifest["files"]:
        (path / file).write_bytes(b"nothing")
        assert [damage.file for damage in pipeline.verify(path)] == [file]
        assert [damage.file for damage in pipeline.verify(path, repair=True)] == [file]
        assert pipeline.verify(path) == []
    assert pipeline.digest(path) == digests


def test_another_audit_in_its_folder_is_refused(made, store):
    with pytest.raises(ConflictError, match="holds another audit"):
        audit(store, made.path, k=4)


# what people have -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (4, 6, 3)])
def test_any_images_of_one_split_without_labels(tmp_path, dtype, shape):
    arrays = make_splits({"all": 12}, shape, dtype=dtype)
    arrays["all"][0][7] = arrays["all"][0][2]
    arrays["all"][1][:] = -1
    found = audit(ingest(tmp_path / "s.zarr", arrays), tmp_path / "a")
    pairs = found.table("pairs")
    assert frozenset([("all", 2), ("all", 7)]) in {
        frozenset(key) for key in keys(pairs[pairs.kind == "exact"])
    }
    assert len(found.table("labels")) == 0
    assert len(found.table("keep")) == 12


def test_two_images_are_enough_and_one_is_not(tmp_path):
    found = audit(ingest(tmp_path / "two.zarr", make_splits({"a": 1, "b": 1})), tmp_path / "a")
    assert not found.table("pairs").finding.any()
    with pytest.raises(EmptyClassError, match="holds 1 images, expected 2 or more"):
        audit(ingest(tmp_path / "one.zarr", make_splits({"a": 1})), tmp_path / "b")


def test_a_group_of_more_copies_than_are_listed_is_one_group(tmp_path):
    arrays = make_splits({"train": 60})
    arrays["train"][0][10:40] = arrays["train"][0][10]
    arrays["train"][1][10:40] = 1
    found = audit(ingest(tmp_path / "s.zarr", arrays), tmp_path / "a", near=0.99)
    groups = found.table("groups")
    assert groups["sample"].tolist() == list(range(10, 40))
    assert found.summary["copies"]["copies_to_remove"] == 29


def test_wrong_labels_are_found_with_the_class_that_they_have(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 60).astype(np.int32)
    patterns = rng.integers(0, 255, (3, *SHAPE))
    images = np.clip(patterns[labels] + rng.integers(-40, 40, (180, *SHAPE)), 0, 255)
    wrong = np.array([5, 70, 133])
    true, labels = labels.copy(), labels.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    arrays = {"train": (images.astype(np.uint8), labels)}
    table = audit(ingest(tmp_path / "s.zarr", arrays), tmp_path / "a").table("labels")
    first = table.head(3)
    assert set(first["sample"]) == set(wrong)
    assert first.finding.all()
    assert (first.suggested == true[first["sample"]]).all()
    assert (first.prototype_rank > 1).all()
    assert (table[table["sample"].isin(wrong)].votes < 10).all()


def test_an_image_of_something_else_is_the_first_outlier(tmp_path):
    rng = np.random.default_rng(0)
    images = np.clip(100 + rng.integers(-9, 9, (80, *SHAPE)), 0, 255).astype(np.uint8)
    images[31] = rng.integers(0, 255, SHAPE)
    arrays = {"train": (images, np.zeros(80, np.int32))}
    first = audit(ingest(tmp_path / "s.zarr", arrays), tmp_path / "a").table("outliers").iloc[0]
    assert (first["sample"], first.finding) == (31, True)
    assert first["quantile"] > 0.98


def test_what_cannot_be_audited_is_refused_in_a_line(tmp_path):
    store = ingest(tmp_path / "s.zarr", make_splits({"train": 8, "test": 4}))
    with pytest.raises(ConfigError, match="keep: unknown split 'tset'; did you mean 'test'"):
        audit(store, tmp_path / "a", keep=["tset"])
    with pytest.raises(ConfigError, match="'k' is 1"):
        audit(store, tmp_path / "a", k=1)
    with pytest.raises(ConfigError, match=r"'near' is 0.05"):  # not all pairs below 0.1 are kept
        audit(store, tmp_path / "a", near=0.05)
    assert not (tmp_path / "a").exists()


def test_a_job_file_audits_its_images_beside_its_run(store, tmp_path):
    job = {"name": "j", "images": str(store), "output": str(tmp_path / "run")}
    pipeline.run_job(pipeline.make_job(job | {"audit": {"k": 4}, "report": False}))
    found = pipeline.open_audit(tmp_path / "run/audit")
    assert found.summary["checks"]["k"] == 4
    assert found.summary["checks"]["keep"] == ["test", "train"]
    assert pipeline.verify(tmp_path / "run") == []


def test_a_job_without_what_the_audit_drops_measures_the_rest(made, store, planted, tmp_path):
    job = {"name": "j", "images": str(store), "report": False, "exclude": str(made.path)}
    run = pipeline.run_job(pipeline.make_job(job | {"output": str(tmp_path / "run")}))
    keep = made.table("keep")
    kept = {
        split: planted[split][0][keep.keep[keep.split == split].to_numpy()] for split in planted
    }
    counts = run.prototypes["count"].values
    assert counts.sum() == len(kept["train"]) < 90
    assert len(run.predictions.compute()) == 2 * len(kept["test"])


def test_what_could_not_be_read_is_named_and_no_obstacle(tmp_path):
    arrays = make_splits({"train": 20, "test": 9})
    arrays["train"][0][4] = arrays["test"][0][3]
    arrays["train"][1][4] = arrays["test"][1][3]
    store = pipeline.ingest(
        Faulty(arrays, {("train", 2), ("test", 8)}, names=NAMES), tmp_path / "s.zarr", 8, max_bad=2
    )
    found = audit(store, tmp_path / "a")
    keep = found.table("keep")
    assert keep.reason.value_counts()["unreadable"] == 2
    assert keep["sample"].isna().sum() == 2
    job = {"name": "j", "images": str(store), "report": False, "exclude": str(found.path)}
    run = pipeline.run_job(pipeline.make_job(job | {"output": str(tmp_path / "run")}))
    assert run.prototypes["count"].values.sum() == keep.keep[keep.split == "train"].sum() <= 18
