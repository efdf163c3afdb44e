"""A job that leaves samples out: as if they had never been there, and recorded as left out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from jobs_for_tests import (
    NAMES,
    OUT,
    kept,
    make_arrays,
    make_images,
    make_settings,
    run,
    table_of,
    without,
    write_table,
)
from strategies import oracle_distances, oracle_sums

import pipeline
from pipeline.cli import main
from pipeline.core.errors import (
    ConfigError,
    ConflictError,
    EmptyClassError,
    InputError,
    JobInterruptedError,
    SourceError,
)
from pipeline.jobs import job
from pipeline.report.page_content import Findings, provenance
from pipeline.storage import sample_lists

SETTINGS = {"evaluate": ["test", "train"], "neighbours": {"k": 3}, "distances": "write"}


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("listed") / "out.parquet", reason="blurred")


@pytest.fixture(scope="module")
def shorter(tmp_path_factory):
    """A run on an image set in which these samples never were."""
    folder = tmp_path_factory.mktemp("shorter")
    images = make_images(folder / "images.zarr", without(make_arrays()))
    return run(images, folder / "run", **SETTINGS)


@pytest.fixture(scope="module")
def lessened(made, listed, tmp_path_factory):
    """A run that leaves them out."""
    path = tmp_path_factory.mktemp("lessened") / "run"
    return run(made, path, exclude=str(listed), **SETTINGS)


def renumbered(frame, columns):
    """The rows with samples numbered as in the whole image set."""
    left, frame = kept(make_arrays()), frame.copy()
    for split, sample in columns.items():
        numbers = zip(frame[split], frame[sample], strict=True)
        frame[sample] = [left[name][at] for name, at in numbers]
    return frame


def test_prototypes_are_those_of_the_images_that_are_left(lessened, shorter):
    images, labels = without(make_arrays())["train"]
    sums, _, counts = oracle_sums(images, labels, len(NAMES))
    fractions = lessened.prototypes
    assert (fractions["numerator"].values == sums).all()
    assert fractions["count"].values.tolist() == counts.tolist()
    for name in ("prototypes", "run"):
        same = lessened.manifest["digests"][name] == shorter.manifest["digests"][name]
        assert same == (name == "prototypes")


def test_predictions_are_those_of_an_image_set_without_them(lessened, shorter):
    expected = renumbered(shorter.predictions.compute(), {"split": "sample"})
    found = lessened.predictions.compute()
    assert found.reset_index(drop=True).equals(expected.reset_index(drop=True))
    for metric in ("l1", "l2"):
        assert lessened.metrics[metric] == shorter.metrics[metric]
    assert lessened.metrics["neighbours"] == shorter.metrics["neighbours"]


def test_predictions_are_those_of_exact_fractions(lessened):
    images, labels = without(make_arrays())["train"]
    sums, _, counts = oracle_sums(images, labels, len(NAMES))
    rows = lessened.predictions.compute()
    rows = rows[(rows["split"] == "test") & (rows["metric"] == "l1")]
    left = kept(make_arrays())["test"]
    assert rows["sample"].tolist() == left.tolist()
    for sample, predicted in zip(rows["sample"], rows["predicted"], strict=True):
        image = make_arrays()["test"][0][sample]
        exact = [oracle_distances(image, s, n, 255)[0] for s, n in zip(sums, counts, strict=True)]
        assert predicted == min(range(len(exact)), key=exact.__getitem__)


def test_neighbours_are_those_of_an_image_set_without_them(lessened, shorter):
    pairs = {"split": "sample", "neighbour_split": "neighbour"}
    expected = renumbered(shorter.neighbours.compute(), pairs)
    found = lessened.neighbours.compute()
    for name in found.columns:
        assert found[name].tolist() == expected[name].tolist(), name


def test_distances_of_what_is_left_out_are_not_a_number(lessened, shorter):
    found, expected = lessened.distances, shorter.distances.values
    out = [sample in OUT["test"] for sample in range(90)]
    out += [sample in OUT["train"] for sample in range(230)]
    assert np.isnan(found.values[:, out]).all()
    assert (found.values[:, ~np.array(out)] == expected).all()


@pytest.mark.parametrize(
    ("shard", "settings"),
    [
        (7, {"cluster": {"workers": 1}}),
        (64, {"cluster": {"workers": 4}, "device": "torch:cpu"}),
        (1000, {}),
    ],
)
def test_digests_are_the_same_however_it_is_cut(lessened, listed, tmp_path, shard, settings):
    images = make_images(tmp_path / "images.zarr", shard=shard)
    done = run(images, tmp_path / "run", exclude=str(listed), **SETTINGS, **settings)
    assert done.manifest["digests"] == lessened.manifest["digests"]


@pytest.mark.slow
def test_medians_and_processes_leave_them_out_too(made, listed, tmp_path):
    shorter = make_images(tmp_path / "images.zarr", without(make_arrays()))
    expected = run(shorter, tmp_path / "expected", prototypes="median", report=False)
    cluster = {"kind": "local", "workers": 2}
    done = run(
        made, tmp_path / "run", prototypes="median", report=False, exclude=str(listed),
        cluster=cluster,
    )  # fmt: skip
    digests = [each.manifest["digests"]["prototypes"] for each in (done, expected)]
    assert digests[0] == digests[1]
    assert done.metrics["l1"] == expected.metrics["l1"]


def test_how_many_were_left_out_and_why_is_recorded_and_said(made, listed, lessened, capsys):
    known = {
        split: {"count": len(samples), "reasons": {"blurred": len(samples)}}
        for split, samples in sorted(OUT.items())
    }
    assert lessened.manifest["excluded"] == lessened.metrics["excluded"] == known
    assert pipeline.describe(lessened.path)["excluded"] == known
    settings = make_settings(made, lessened.path, exclude=str(listed), **SETTINGS)
    assert pipeline.forecast(settings)["excluded"] == known
    main(["show", str(lessened.path)])
    assert "left out  3 samples of 'test' (3 blurred)" in capsys.readouterr().out
    findings = Findings(lessened.manifest, lessened.metrics, lessened.highlights)
    assert ("left out", "8 images of ‘train’ (8 blurred)") in provenance(findings)


def test_the_command_line_leaves_out_what_it_is_told(made, listed, lessened, tmp_path, capsys):
    content = {"images": str(made), "name": "trees", "output": str(tmp_path / "run")} | SETTINGS
    (tmp_path / "job.yml").write_text(json.dumps(content))
    assert main(["plan", str(tmp_path / "job.yml"), "--without", str(listed)]) == 0
    assert "left out  8 samples of 'train' (8 blurred)" in capsys.readouterr().out
    assert main(["run", str(tmp_path / "job.yml"), "--without", str(listed)]) == 0
    digests = pipeline.open_run(tmp_path / "run").manifest["digests"]
    assert digests == lessened.manifest["digests"]


def test_a_table_that_keeps_all_changes_nothing(made, undisturbed, tmp_path):
    count = sum(map(len, OUT.values()))
    table = write_table(tmp_path / "all.parquet", keep=[True] * count)
    done = run(made, tmp_path / "run", exclude=str(table))
    assert done.manifest["identity"] == undisturbed.manifest["identity"]
    assert done.manifest["digests"] == undisturbed.manifest["digests"]
    assert "excluded" not in done.manifest
    assert not (done.path / sample_lists.EXCLUDED).exists()


def test_order_reasons_and_the_path_of_the_table_decide_nothing(made, listed, lessened, tmp_path):
    other = tmp_path / "other.csv"
    pairs = [f"{split},{at}" for split, samples in OUT.items() for at in samples]
    other.write_text("\n".join(["split,sample", *sorted(pairs), pairs[0]]))
    done = run(made, tmp_path / "run", exclude=str(other), **SETTINGS)
    assert done.manifest["digests"] == lessened.manifest["digests"]
    assert done.manifest["identity"] == lessened.manifest["identity"]


def test_a_class_of_which_nothing_is_left_is_refused(made, tmp_path):
    labels = make_arrays()["train"][1]
    out = {"train": np.flatnonzero(labels == 2).tolist()}
    table = write_table(tmp_path / "out.parquet", out)
    with pytest.raises(EmptyClassError, match="cedar"):
        run(made, tmp_path / "run", exclude=str(table))
    assert not (tmp_path / "run").exists()
    done = run(made, tmp_path / "run", exclude=str(table), allow_empty_classes=True)
    assert done.prototypes["count"].values[2] == 0


@pytest.mark.parametrize(
    ("table", "expected", "message"),
    [
        ({"train": [230]}, InputError, "names sample 230 of 'train', expected 0 to 229; correct"),
        ({"training": [2]}, InputError, "names split 'training', expected one of .*: train, test"),
        ("nowhere.csv", SourceError, "nowhere.csv: no such file"),
        (".", SourceError, "is a folder without keep.parquet"),
        (3, ConfigError, "exclude.*expected a path"),
    ],
)
def test_what_cannot_be_left_out_is_refused(made, tmp_path, monkeypatch, table, expected, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(table, dict):
        table = write_table(tmp_path / "out.parquet", table)
    with pytest.raises(expected, match=message):
        run(made, tmp_path / "run", exclude=table)
    assert not (tmp_path / "run").exists()


def test_a_table_of_another_image_set_is_refused(made, listed, tmp_path):
    audit = tmp_path / "audit"
    audit.mkdir()
    (audit / "keep.parquet").write_bytes(listed.read_bytes())
    (audit / "manifest.json").write_text(json.dumps({"images": {"digest": "abc"}}))
    with pytest.raises(ConflictError, match="about an image set with digest abc, expected"):
        run(made, tmp_path / "run", exclude=str(audit))
    digest = pipeline.open_store(made).manifest["digest"]
    (audit / "manifest.json").write_text(json.dumps({"images": {"digest": digest}}))
    assert (
        run(made, tmp_path / "run", exclude=str(audit)).manifest["excluded"]["test"]["count"] == 3
    )


@dataclass(frozen=True)
class Stopping(job.EvaluatePartition):
    """Is interrupted at its second step."""

    def __call__(self, index):
        if index == 1:
            raise KeyboardInterrupt
        return super().__call__(index)


def test_a_run_cut_short_goes_on_with_the_same_samples_only(made, lessened, tmp_path, monkeypatch):
    table, one = write_table(tmp_path / "out.parquet"), {"cluster": {"workers": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(job, "EvaluatePartition", Stopping)
        with pytest.raises(JobInterruptedError):
            run(made, tmp_path / "run", exclude=str(table), **SETTINGS, **one)
    write_table(table, OUT | {"train": OUT["train"][1:]})
    with pytest.raises(ConflictError, match=r"'exclude\.samples\.train' there is 8, here 7"):
        run(made, tmp_path / "run", exclude=str(table), **SETTINGS)
    write_table(table, OUT | {"train": [1, *OUT["train"][1:]]})
    with pytest.raises(ConflictError, match=r"'exclude\.digest'"):
        run(made, tmp_path / "run", exclude=str(table), **SETTINGS)
    with pytest.raises(ConflictError, match="exclude"):
        run(made, tmp_path / "run", **SETTINGS)
    table.unlink()  # the run has its copy
    done = run(made, tmp_path / "run", exclude=str(table), **SETTINGS)
    assert done.manifest["digests"] == lessened.manifest["digests"]
    assert run(made, tmp_path / "run", exclude=str(table), **SETTINGS).manifest == done.manifest


KILLED = """
import os, signal, sys
import pipeline
from pipeline.jobs import job

class Killed(job.EvaluatePartition):
    def __call__(self, index):
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(index)

job.EvaluatePartition = Killed
pipeline.run_job(sys.argv[1])
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_digest(made, listed, lessened, tmp_path):
    content = {"images": str(made), "output": str(tmp_path / "run"), "name": "trees"} | SETTINGS
    content |= {"exclude": str(listed), "cluster": {"kind": "threads", "workers": 1}}
    (tmp_path / "job.yml").write_text(json.dumps(content))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "job.yml")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "run/manifest.json").exists()
    done = pipeline.run_job(tmp_path / "job.yml")
    assert done.manifest["digests"] == lessened.manifest["digests"]


@pytest.mark.parametrize("file", ["predictions/part-000000.parquet", "excluded.parquet"])
def test_what_is_damaged_is_made_again(images, tmp_path, file):
    table = write_table(tmp_path / "out.parquet", reason="blurred")
    done = run(images, tmp_path / "run", exclude=str(table), **SETTINGS)
    content = {path: path.read_bytes() for path in done.path.rglob("*.parquet")}
    if file != "excluded.parquet":
        table.unlink()  # the copy is enough
    (done.path / file).write_bytes(b"something else")
    assert [damage.file for damage in pipeline.verify(done.path)] == [file]
    assert [damage.file for damage in pipeline.verify(done.path, repair=True)] == [file]
    assert pipeline.verify(done.path) == []
    assert content == {path: path.read_bytes() for path in done.path.rglob("*.parquet")}
    again = pipeline.open_run(done.path).manifest
    assert again["digests"] == done.manifest["digests"]
    assert again["settings"] == done.manifest["settings"]


def test_a_search_for_one_image_finds_none_that_is_left_out(made, lessened):
    for sample in OUT["train"][:3]:  # their own nearest images, were they searched
        near = pipeline.explain(lessened.path, "train", sample, neighbours=20).neighbours["l1"]
        assert not {each.sample for each in near} & set(OUT["train"])


def test_open_images_leaves_out_a_table_in_memory(made, listed):
    arrays = without(make_arrays())
    for table in (table_of(), listed, str(listed)):
        images = pipeline.open_images(made, "train", exclude=table)
        assert (images["image"].values == arrays["train"][0]).all()
        assert (images["label"].values == arrays["train"][1]).all()
        assert images["sample"].values.tolist() == kept(make_arrays())["train"].tolist()
        assert images["image"].chunks[0] == (64 - 4, 64 - 2, 64 - 1, 38 - 1)  # a chunk a shard
    whole = {"train": list(range(64, 128))}
    images = pipeline.open_images(made, "train", exclude=table_of(whole))
    assert (images["image"].values == without(make_arrays(), whole)["train"][0]).all()
    assert pipeline.class_sums(images)["count"].sum() == 230 - 64
    sums = pipeline.class_sums(pipeline.open_images(made, "train", exclude=table_of()))
    expected, _, _ = oracle_sums(*arrays["train"], len(NAMES))
    assert (sums["pixel_sum"].values == expected).all()
