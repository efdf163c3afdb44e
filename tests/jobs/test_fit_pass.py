"""The first pass, cut short: what was counted is not read again, and the result is the same."""

from __future__ import annotations

import dataclasses
import shutil
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
from jobs_for_tests import make_arrays, make_images, make_settings

import pipeline
from pipeline.core.errors import DamagedError
from pipeline.core.partitions import PartitionTable
from pipeline.jobs import fit_pass, job, memory_model

PARTS, SHARD = 13, 18
THREAD = {"kind": "threads", "workers": 1}
KINDS = {"mean": ("mean", np.uint8), "median": ("median", np.uint8), "16": ("median", np.uint16)}


def make(tmp_path, kind="mean"):
    """An image set of thirteen partitions, and the settings of a job on it."""
    prototypes, dtype = KINDS[kind]
    arrays = make_arrays(train=230, test=30, dtype=dtype)
    images = make_images(tmp_path / "images.zarr", arrays, shard=SHARD)

    def settings(name="run", **changes):
        wanted = {"prototypes": prototypes, "cluster": THREAD, **changes}
        return make_settings(images, tmp_path / name, **wanted)

    return images, settings


def hide(images, numbers):
    """Take away the shards of partitions: reading one of them is an error."""
    for number in numbers:
        folder = images / "train" / "image" / "c" / str(number)
        shutil.move(folder, images.with_name(f"hidden-{number}"))


def show(images):
    """Put back what was taken away."""
    for folder in images.parent.glob("hidden-*"):
        number = folder.name.removeprefix("hidden-")
        shutil.move(folder, images / "train" / "image" / "c" / number)


def kept_numbers(run, stage="counts"):
    """The partitions whose sums of a stage are saved."""
    names = [path.stem for path in (run / ".work" / "sums").glob(f"{stage}-*/0*.npz")]
    return {number for name in names for number in range(*map(int, name.split("-")))}


def cut_short(settings, after=5):
    """Run until so many partitions were read; return those that are kept."""
    with counted_reads(after) as reads, pytest.raises(InterruptedError):
        pipeline.run_job(settings)
    kept = kept_numbers(settings.output)
    assert kept == {start // SHARD for start in reads}  # threads, one at a time
    return kept


@contextmanager
def counted_reads(most=None):
    """Remember where the partitions begin that the first pass reads; fail beyond `most`."""
    reads, original = [], fit_pass.read_checked

    def read(images, digest, split, start, stop):
        if len(reads) == most:
            raise InterruptedError("cut short")
        reads.append(start)
        return original(images, digest, split, start, stop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_pass, "read_checked", read)
        yield reads


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return what gives the digests of an undisturbed run by its kind."""

    @cache
    def digests(kind):
        _, settings = make(tmp_path_factory.mktemp("undisturbed"), kind)
        return pipeline.run_job(settings()).manifest["digests"]

    return digests


@pytest.mark.parametrize(("kind", "workers"), [
    ("mean", 1), ("mean", 2), ("median", 1), ("16", 2),
    *(pytest.param(*other, marks=pytest.mark.slow) for other in [("median", 2), ("16", 1)]),
])  # fmt: skip
def test_what_was_counted_is_not_read_again(tmp_path, undisturbed, kind, workers):
    _, settings = make(tmp_path, kind)
    expected = undisturbed(kind)
    kept = cut_short(settings())
    with counted_reads() as reads:
        done = pipeline.run_job(settings(cluster={"kind": "threads", "workers": workers}))
    again = range(PARTS) if kind == "16" else ()  # for the low bytes
    rest = set(range(PARTS)) - kept
    assert sorted(start // SHARD for start in reads) == sorted([*rest, *again])
    assert done.manifest["digests"] == expected
    assert not (done.path / ".work").exists()


@pytest.fixture(scope="module")
def scheduler():
    """The address of a scheduler with two workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as made:
        yield made.scheduler_address


@pytest.mark.parametrize("kind", ["mean", "16"])
def test_workers_go_on_and_so_do_threads_after_them(tmp_path, kind, scheduler, undisturbed):
    images, settings = make(tmp_path, kind)
    expected = undisturbed(kind)
    first = cut_short(settings(), after=3)
    hide(images, [*first, missing := max(set(range(PARTS)) - first)])
    with pytest.raises(DamagedError, match="missing"):
        pipeline.run_job(settings(cluster=scheduler))
    kept = kept_numbers(tmp_path / "run")
    assert first <= kept <= set(range(PARTS)) - {missing}
    show(images)
    if kind == "mean":  # else all are read once more, for low bytes
        hide(images, kept)
    done = pipeline.run_job(settings())
    assert done.manifest["digests"] == expected


def test_the_counts_of_high_bytes_are_kept_while_low_bytes_are_counted(tmp_path, undisturbed):
    images, settings = make(tmp_path, "16")
    expected = undisturbed("16")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_pass, "_read_high", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run_job(settings())
    (high,) = (tmp_path / "run" / ".work").glob("high-*.zarr")
    for path in high.rglob("c/*"):  # as a process that is killed may leave it
        path.unlink() if path.is_file() else shutil.rmtree(path)
    with counted_reads() as reads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_pass, "select_bytes", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run_job(settings())
    assert sorted(reads) == list(range(0, 230, SHARD))  # for low bytes alone
    assert kept_numbers(tmp_path / "run", "low") == set(range(PARTS))
    hide(images, range(PARTS))
    assert pipeline.run_job(settings()).manifest["digests"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_that_are_done_are_kept(tmp_path, kind):
    prototypes, dtype = KINDS[kind]
    shape = (60, 50) if prototypes == "median" else (120, 100)
    arrays = make_arrays(train=60, test=20, shape=shape, dtype=dtype)
    images = make_images(tmp_path / "images.zarr", arrays, shard=16)
    room = 6 * 10**6 if prototypes == "median" else 3 * 10**6
    memory = int((memory_model._BASE_NUMPY + room) / memory_model._SHARE)
    tight = {"prototypes": prototypes, "cluster": THREAD | {"memory": memory}}
    whole = make_settings(images, tmp_path / "whole", prototypes=prototypes)
    settings = make_settings(images, tmp_path / "run", **tight)
    plan = job.plan_job(settings, images)
    assert len(plan.tiles) > 2
    count_tile, done = fit_pass._count_tile, []

    def fail_at_third(*arguments):
        if len(done) == 2:
            raise InterruptedError("cut short")
        done.append(arguments[-1])
        return count_tile(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_pass, "_count_tile", fail_at_third)
        with pytest.raises(InterruptedError):
            pipeline.run_job(settings)
    folder = tmp_path / "run" / ".work" / "sums"
    assert {path.name for path in folder.iterdir()} == {f"tile-{a}-{b}" for a, b in done}
    with counted_reads() as reads:
        found = pipeline.run_job(settings).manifest["digests"]
    assert len(reads) == 4 * plan.passes * (len(plan.tiles) - 2)
    assert found == pipeline.run_job(whole).manifest["digests"]


def test_with_other_tiles_the_pass_starts_again(tmp_path, undisturbed):
    _, settings = make(tmp_path)
    expected = undisturbed("mean")
    assert cut_short(settings())
    plan_job = job.plan_job
    with pytest.MonkeyPatch.context() as patch:
        tiles = ((0, 7), (7, 20))
        patch.setattr(
            job, "plan_job", lambda *a, **k: dataclasses.replace(plan_job(*a, **k), tiles=tiles)
        )
        assert pipeline.run_job(settings()).manifest["digests"] == expected


def test_sums_of_another_plan_do_not_pass_for_those_of_this(tmp_path, undisturbed):
    _, settings = make(tmp_path)
    expected = undisturbed("mean")
    other = settings("other", metrics=["l1"])
    kept = cut_short(other, after=PARTS - 1)
    cut_short(settings(), after=0)
    (mine,) = (tmp_path / "run" / ".work" / "sums").iterdir()
    for path in (tmp_path / "other" / ".work" / "sums").rglob("*.npz"):
        shutil.copy(path, mine)
    assert kept_numbers(tmp_path / "run") == kept
    with counted_reads() as reads:
        assert pipeline.run_job(settings()).manifest["digests"] == expected
    assert len(reads) == PARTS


def test_every_pass_has_an_identity_of_its_own(tmp_path):
    images, settings = make(tmp_path, "16")
    plan = job.plan_job(settings(), images)
    tile = plan.tiles[0]
    other = settings(fit="test")
    found = [
        fit_pass._kept(*arguments).identity
        for arguments in [
            (plan, "counts", tile, 5),
            (plan, "low", tile, 5, tmp_path / "high-a.zarr"),
            (plan, "low", tile, 5, tmp_path / "high-b.zarr"),
            (plan, "counts", (0, 3), 5),
            (plan, "counts", (3, 6), 5),
            # the same images in other shards have the digest of these
            (
                dataclasses.replace(plan, fit=PartitionTable((("train", 230, 9),))),
                "counts",
                tile,
                5,
            ),
            (job.plan_job(other, images), "counts", tile, 5),
        ]
    ]
    assert len(set(found)) == len(found)


def test_sums_that_contradict_the_manifest_are_not_kept(tmp_path):
    _, settings = make(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        found = fit_pass.label_sums
        patch.setattr(fit_pass, "label_sums", lambda sums, *rest: found(sums + 1, *rest))
        with pytest.raises(DamagedError, match="its manifest says"):
            pipeline.run_job(settings())
    assert not (tmp_path / "run" / ".work" / "sums").exists()
    pipeline.run_job(settings())


def test_sums_are_gone_once_the_prototypes_are_made(tmp_path):
    _, settings = make(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.run_job(settings())
    assert (tmp_path / "run" / "prototypes.zarr").exists()
    assert not (tmp_path / "run" / ".work" / "sums").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_pass, "fit", lambda *_: pytest.fail("fitted again"))
        pipeline.run_job(settings())


def test_the_image_set_is_read_whole_once_when_nothing_happens(tmp_path):
    _, settings = make(tmp_path)
    with counted_reads() as reads:
        pipeline.run_job(settings())
    assert sorted(reads) == list(range(0, 230, SHARD))


def test_sums_that_the_version_before_left_are_counted_again(tmp_path, undisturbed):
    _, settings = make(tmp_path)
    cut_short(settings())
    (folder,) = (tmp_path / "run" / ".work" / "sums").iterdir()
    for path in folder.iterdir():  # it had a format of its own, and no token
        path.unlink()
    (folder / "000000-000001.sums").write_bytes(b"pixsums1" + bytes(100))
    with counted_reads() as reads:
        done = pipeline.run_job(settings())
    assert len(reads) == PARTS
    assert done.manifest["digests"] == undisturbed("mean")
    assert not (done.path / ".work").exists()
