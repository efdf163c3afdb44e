"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.cli import main
from pipeline.core.errors import DatasetNotFoundError
from pipeline.jobs import demo
from pipeline.sources.arrays import from_arrays
from pipeline.storage.locks import held

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def digits_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(ROOT / "workflows" / "digits.yml"), "--output", "run"]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def fails(capsys, *arguments, code=2):
    """Run, and return the one or two lines that the failure prints."""
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    progress, marker, message = captured.err.rpartition("pixsim: ")
    assert marker
    assert not progress or progress.endswith("\n")
    assert len(message.splitlines()) == 1
    return message


def test_run_prints_accuracies_and_the_digest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(ROOT / "workflows" / "digits.yml")]) == 0
    captured = capsys.readouterr()
    run = pipeline.open_run("data/runs/digits")
    assert f"{run.metrics['l2']['accuracy']:.4f}" in captured.out
    assert f"digest sha256:{run.manifest['digests']['run']}" in captured.out
    assert "distances of 'test'" in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_plan_prints_what_the_run_takes_and_writes_nothing(digits_run, tmp_path, capsys):
    job = str(ROOT / "workflows" / "digits.yml")
    assert main(["plan", job, "--output", "other", "--set", "cluster.workers=1"]) == 0
    printed = capsys.readouterr().out
    run = pipeline.open_run(digits_run)
    arithmetic = f"arithmetic {run.manifest['arithmetic']}"
    for part in (
        "plan of digits", "prototypes from 'train'", "distances of 'test'", "peak memory",
        "1 task at once in this process", arithmetic, "predictions/part-*.parquet",
    ):  # fmt: skip
        assert part in printed
    assert not (tmp_path / "other").exists()


def test_plan_refuses_what_cannot_fit(digits_run, capsys):
    job = str(ROOT / "workflows" / "digits.yml")
    message = fails(capsys, "plan", job, "--set", "cluster.memory=100MB")
    assert "expected at most 0.1 GB" in message
    message = fails(capsys, "plan", job, "--set", "cluster.memory=much")
    assert "'cluster.memory' is 'much' (str): expected a number of bytes, such as 4 GB" in message


def test_run_takes_overrides_behind_one_set_or_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job = str(ROOT / "workflows" / "digits.yml")
    assert main(["run", job, "--output", "a", "--set", "metrics=l1", "classes=[3, 8]"]) == 0
    assert main(["run", job, "-o", "b", "--set", "metrics=l1", "--set", "classes=[3, 8]"]) == 0
    a, b = pipeline.open_run("a"), pipeline.open_run("b")
    assert a.manifest["class_names"] == ["3", "8"]
    assert a.manifest["digests"] == b.manifest["digests"]


def test_datasets_lists_the_catalog(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    for name in ("mnist", "fashion-mnist", "kmnist", "cifar10", "digits"):
        assert name in out
    assert "embedded" in out


def test_ingest_and_show_a_store_with_a_grid(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ingest", "digits", "--output", "digits.zarr", "--shard", "100"]) == 0
    assert "898" in capsys.readouterr().out
    assert main(["show", "digits.zarr", "--grid", "grid.png"]) == 0
    out = capsys.readouterr().out
    for text in ("train", "899", "8 x 8", "uint8", "100", "57,472", "sha256:"):
        assert text in out
    with Image.open("grid.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def make_folder(folder, bad=0):
    """Files in SPLIT/CLASS, 12 good ones and some bad ones."""
    for number in range(12 + bad):
        place = folder / ("train" if number % 2 else "test") / "ab"[number % 3 == 0]
        place.mkdir(parents=True, exist_ok=True)
        if number < 12:
            pixels = np.full((5, 4), 20 * number, np.uint8)
            Image.fromarray(pixels).save(place / f"{number:02}.png")
        else:
            (place / f"{number:02}\x1b[2J.png").write_bytes(b"")
    return folder


def test_ingest_lists_bad_samples_and_leaves_them_out_where_it_may(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    make_folder(tmp_path / "set", bad=3)
    assert main(["ingest", "set"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    table, message = captured.err.split("pixsim: ")
    assert table.count("the file is empty") == 3
    assert "3 of 15 samples cannot be used (3 unreadable), expected at most 0" in message
    assert "the file is empty" not in message
    assert "\x1b" not in captured.err
    assert "12\\x1b[2J.png" in table
    assert main(["ingest", "set", "--set", "max_bad=20%"]) == 0
    assert "left out  3 samples (3 unreadable)" in capsys.readouterr().out


def test_ingest_takes_the_images_of_a_job_file_and_overrides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    make_folder(tmp_path / "set")
    (tmp_path / "job.yml").write_text("images: {source: set, resize: [3, 2]}\nclasses: [a]\n")
    assert main(["ingest", "job.yml", "-o", "x.zarr"]) == 0
    assert "3 x 2" in capsys.readouterr().out
    assert main(["ingest", "job.yml", "-o", "y.zarr", "--set", "resize=4x4", "mode=RGB"]) == 0
    assert "4 x 4 x 3" in capsys.readouterr().out
    assert "did you mean 'mode'" in fails(capsys, "ingest", "set", "--set", "mod=L")


def test_ingest_runs_in_steps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "set")
    words = ["ingest", "set", "-o", "x.zarr", "--shard", "2"]
    assert main([*words, "--only", "plan"]) == 0
    assert capsys.readouterr().out == "6 partitions to write\n"
    assert "expected numbers from 0 to 6" in fails(capsys, *words, "--only", "2:1")
    assert main([*words, "--only", "1:6"]) == 0
    assert "1 of 6 partitions are not written (0)" in fails(capsys, *words, "--only", "finish")
    assert main([*words, "--only", "0"]) == 0
    assert main([*words, "--only", "finish"]) == 0
    assert "digest    sha256:" in capsys.readouterr().out
    assert main([*words, "--only", "plan"]) == 0
    assert capsys.readouterr().out == "finished already\n"
    for step in ("some", "3:", "-1"):
        assert "partitions" in fails(capsys, *words, f"--only={step}")


def test_ingest_appends(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "set")
    Image.new("L", (4, 5)).save(make_folder(tmp_path / "more") / "test" / "b" / "x.png")
    assert main(["ingest", "set", "-o", "x.zarr"]) == 0
    assert main(["ingest", "more", "-o", "x.zarr", "--append"]) == 0
    out = capsys.readouterr().out
    assert "copies    13 samples of others" in out  # the black one is there as well
    assert main(["digest", "x.zarr"]) == 0
    assert "no such folder" in fails(capsys, "ingest", "more", "-o", "none.zarr", "--append")


def test_ingest_puts_named_sets_below_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXSIM_DATA", raising=False)
    assert main(["ingest", "digits"]) == 0
    assert "image set data/stores/digits.zarr" in capsys.readouterr().out


def test_show_a_run_draws_its_prototypes(digits_run, tmp_path, capsys):
    assert main(["show", str(digits_run), "--grid", str(tmp_path / "p.png")]) == 0
    out = capsys.readouterr().out
    for text in ("balanced", "metric: 2, sample: 899, class_name: 10", "1,798 rows", "float64"):
        assert text in out
    with Image.open(tmp_path / "p.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 60
    assert pixels.max() == 255


def test_explain_prints_the_distance_to_every_prototype(digits_run, capsys):
    arguments = ["explain", str(digits_run), "--split", "test", "--sample", "5"]
    assert main([*arguments, "--pixels", "2:4,0:8"]) == 0
    out = capsys.readouterr().out
    found = pipeline.explain(digits_run, "test", 5)
    for place, name in enumerate(found.class_names):
        l1, l2 = found.distances[:, place]
        assert any(line.split() == [name, f"{l1:.4f}", f"{l2:.4f}"] for line in out.splitlines()), (
            name
        )
    assert f"nearest by l2: {found.predicted['l2']}" in out
    assert out.splitlines()[-1].split() == ["3", *map(str, found.image[3])]
    written = pipeline.open_run(digits_run).distances.sel(sample=5).values
    assert np.array_equal(found.distances, written)
    assert main([*arguments, "--neighbours", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for metric, near in pipeline.explain(digits_run, "test", 5, neighbours=2).neighbours.items():
        for rank, n in enumerate(near, start=1):
            row = [metric, rank, n.split, n.sample, n.label_name, f"{n.distance:.4f}"]
            assert list(map(str, row)) in lines
    assert "neighbours is -1, expected how many" in fails(capsys, *arguments, "--neighbours=-1")


def test_digest_prints_what_the_manifest_recorded(digits_run, capsys):
    assert main(["digest", str(digits_run)]) == 0
    out = capsys.readouterr().out
    for value in pipeline.open_run(digits_run).manifest["digests"].values():
        assert f"sha256:{value}" in out


def test_digest_of_something_changed_fails(digits_run, capsys):
    table = next((digits_run / "predictions").iterdir())
    table.write_bytes(table.read_bytes()[:-100])
    assert "bytes were written" in fails(capsys, "digest", str(digits_run), code=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing.yml"], "nothing.yml: no such file"),
        (["run", "DIGITS", "--set", "clases=[3]"], "unknown key 'clases'; did you mean 'classes'?"),
        (["run", "DIGITS", "--set", "metrics=l3"], "'l3'"),
        (["run", "DIGITS", "--set", "allow_empty_classes=perhaps"], "'perhaps'"),
        (["run", "DIGITS", "--set", "device=gpu"], "expected auto, cpu, cuda, cuda:N"),
        (["run", "DIGITS", "--set", "images=digit"], "did you mean 'digits'?"),
        (["run", "DIGITS", "--set", "classes=[10]"], "class '10' is not in the image set"),
        (["run", "DIGITS", "--set", "evaluate=valid"], "no split 'valid', expected one of"),
        (["show", "nowhere"], "nowhere: no such folder"),
        (["digest", "."], "holds no manifest.json"),
        (["ingest", "digits", "-o", "d.zarr", "--shard", "0"], "shard"),
        (["ingest", "digits", "-o", "d.zarr", "--cluster", "moon"], "moon"),
        (["explain", "nowhere", "--split", "test", "--sample", "0"], "no such folder"),
        (["frobnicate"], "frobnicate"),
        (["run"], "'pixsim run' needs SOURCE"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exits_with_2(
    tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    words = [word.replace("DIGITS", str(ROOT / "workflows/digits.yml")) for word in arguments]
    assert said in fails(capsys, *words)
    assert not (tmp_path / "data" / "runs").exists()


def test_a_folder_in_use_exits_with_4_and_one_not_to_be_resumed_with_2(digits_run, capsys):
    job = str(ROOT / "workflows" / "digits.yml")
    with held(digits_run.parent / "other", "run"):
        message = fails(capsys, "run", job, "--output", "other", code=4)
    assert f"in use by process {os.getpid()} of " in message
    assert "was not to be resumed" in fails(capsys, "run", job, "--output", "run", "--no-resume")
    assert main(["run", job, "--output", "run", "--resume"]) == 0
    assert main(["run", job, "--output", "new", "--no-resume"]) == 0


def test_explain_refuses_what_is_not_there(digits_run, capsys):
    run = str(digits_run)
    line = fails(capsys, "explain", run, "--split", "test", "--sample", "899")
    assert "sample 899 of split 'test', expected 0 to 898" in line
    for pixels in ("8", "9:,0:8", "a:b,3", "-1:3,2"):
        line = fails(
            capsys, "explain", run, "--split", "test", "--sample", "0", f"--pixels={pixels}"
        )
        assert "--pixels" in line


def test_debug_shows_the_traceback(capsys):
    assert main(["--debug", "show", "nowhere"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_demo_takes_digits_where_fashion_mnist_cannot_be_had(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def nowhere(name):
        raise DatasetNotFoundError(f"'{name}' was not found")

    monkeypatch.setattr(demo, "open_dataset", nowhere)
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    assert "'fashion-mnist' was not found" in captured.err
    assert "demo on digits instead" in captured.err
    assert "run digits in" in captured.out
    assert "prototypes drawn in" in captured.out


@pytest.mark.datasets
def test_demo_on_the_real_files_prints_the_articles_number(
    real_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    assert "demo on fashion-mnist" in captured.err
    assert any(line.split()[:2] == ["balanced", "0.9175"] for line in captured.out.splitlines())


INTERRUPT = """
import os, signal, sys, time
from pipeline.jobs import job
from pipeline.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
original = job.EvaluatePartition.__call__
def interrupted(self, index):
    if index == 3:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    return original(self, index)
job.EvaluatePartition.__call__ = interrupted
sys.exit(main(["run", "job.yml", "--set", "cluster.workers=1"]))
"""


def test_ctrl_c_is_a_clean_message_and_the_run_says_that_it_is_incomplete(
    tmp_path, monkeypatch, capsys
):
    rng = np.random.default_rng(0)
    arrays = {
        split: (rng.integers(0, 255, (80, 4, 4), np.uint8), rng.integers(0, 2, 80).astype("i4"))
        for split in ("train", "test")
    }
    pipeline.ingest(from_arrays(arrays, ["no", "yes"]), tmp_path / "images.zarr", shard_samples=8)
    (tmp_path / "job.yml").write_text("images: images.zarr\noutput: run\n")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    said, last = done.stderr.strip().splitlines()[-2:]
    assert said.startswith("SIGINT: no new tasks; those that run may end")
    # the task that was told to stop itself came to its end
    assert last.startswith("pixsim: interrupted: run is incomplete, 4 of its prediction tables")
    assert "Traceback" not in done.stderr
    assert "incomplete" in fails(capsys, "show", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "job.yml"]) == 0
    assert main(["digest", str(tmp_path / "run")]) == 0


def test_a_real_sigint_while_importing_or_running_leaves_no_traceback(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", str(ROOT / "workflows" / "digits.yml")],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PIXSIM_DATA": "data"},
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()  # it says that it ingests: now it is at work
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode in (0, 3)
    assert "Traceback" not in first + rest


def test_names_cannot_steer_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    labels = np.array([0, 1], np.int32)
    source = from_arrays(
        {"train": (images, labels), "test": (images, labels)}, ["\x1b[31mred", "b"]
    )
    pipeline.ingest(source, "images.zarr")
    (tmp_path / "job.yml").write_text("images: images.zarr\noutput: run\n")
    assert main(["run", "job.yml"]) == 0
    assert main(["show", "images.zarr"]) == 0
    assert main(["explain", "run", "--split", "test", "--sample", "0"]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert r"\x1b[31mred" in captured.out
    assert "\x1b" not in fails(capsys, "run", "job.yml", "--set", 'classes=["\\e[2J"]')


def test_two_classes_of_one_name_are_refused(tmp_path):
    images, labels = np.zeros((2, 2, 2), np.uint8), np.array([0, 1])
    source = from_arrays({"train": (images, labels)}, ["a", "a"])
    with pytest.raises(ValueError, match="two classes named 'a'"):
        pipeline.ingest(source, tmp_path / "images.zarr")
