"""From a folder or a name to a result on the command line: run, init, what is said and mended."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.cli import main
from pipeline.core.errors import ConfigError
from pipeline.execution import launchers
from pipeline.storage import manifest


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")


def make_folder(folder, splits=("train", "val"), sizes=((5, 4),), count=12):
    """Write PNG files in SPLIT/CLASS; without splits, in CLASS."""
    rng = np.random.default_rng(0)
    for split in splits:
        for number in range(count):
            place = Path(folder) / split / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 100, sizes[number % len(sizes)], np.uint8)
            Image.fromarray(pixels + np.uint8(100 * (number % 2))).save(place / f"{number:02}.png")
    return folder


def printed(capsys, *words, code=0):
    """Run, and return what is printed to stdout and to stderr."""
    capsys.readouterr()
    assert main(list(words)) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


# sources -----------------------------------------------------------------------------------------


def test_a_folder_is_run_and_the_chosen_splits_are_said_in_a_line(capsys):
    make_folder("flowers")
    out, err = printed(capsys, "run", "flowers")
    assert "run flowers in data/runs/flowers" in out
    (line,) = [line for line in err.splitlines() if "chosen from the splits there are" in line]
    assert "prototypes from 'train', measured 'val'" in line
    run = pipeline.open_run("data/runs/flowers")
    assert (run.manifest["settings"]["fit"], run.manifest["settings"]["evaluate"]) == (
        "train", ["val"],
    )  # fmt: skip
    _, err = printed(capsys, "run", "flowers")
    assert "is complete already" in err
    again = pipeline.run_job(pipeline.make_job({"images": "flowers"}))
    assert again.manifest == run.manifest


def test_the_only_split_is_measured_without_the_image_itself_unless_another_is_named(capsys):
    make_folder("flowers", splits=("",))
    _, err = printed(capsys, "run", "flowers")
    assert "measured 'train', each image from its class without it" in err
    make_folder("two", splits=("train", "test", "val"))
    words = ["--fit", "test", "--evaluate", "val", "train", "--classes", "b", "a"]
    out, err = printed(capsys, "run", "two", *words, "--format", "json")
    assert "chosen" not in err
    content = json.loads(out)
    assert (content["fit"], content["evaluate"]) == ("test", ["val", "train"])
    assert content["classes"] == ["a", "b"]


def test_a_run_of_the_defaults_is_the_run_that_it_was_before_splits_were_chosen():
    settings = {"name": "digits", "images": "digits", "report": False}
    run = pipeline.run_job(settings)
    assert run.manifest["identity"] == (
        "4c167ad76879a6b2b902ac02ab4272f9dc4368e9e715dc66a84ca231e965cf7e"
    )
    assert (
        run.manifest["digests"]["run"]
        == "5d05f646d6f36b9df894a1f4a121cbeb56d17e9019812d42d7d4bd448beef776"
    )
    written = (run.path / "manifest.json").stat().st_mtime_ns
    again = pipeline.run_job(settings | {"fit": "train", "evaluate": "test"})
    assert (again.path / "manifest.json").stat().st_mtime_ns == written
    more = {"name": "m", "neighbours": {"k": 2}, "holdout": 0.2}
    held = pipeline.run_job(settings | more)
    assert held.manifest["identity"] == (
        "fe840d5050b046554425f898da0486b89e1da65678ce2634884febb7d644f27a"
    )


def test_an_audit_of_a_job_keeps_first_what_the_job_measures():
    make_folder("flowers", splits=("train", "valid", "test"))
    job = {"images": "flowers", "audit": {"k": 2}, "report": False}
    pipeline.run_job(job)
    found = pipeline.open_audit("data/runs/flowers/audit").manifest
    assert found["plan"]["checks"]["keep"] == [*found["settings"]["keep"], "valid"]
    assert found["settings"]["keep"] == ["test", "train"]
    Path("job.yml").write_text(json.dumps(job))
    audit = pipeline.load_audit("job.yml", output="data/runs/flowers/audit")
    assert pipeline.run_audit(audit).manifest["identity"] == found["identity"]


def test_a_plan_of_a_source_says_what_would_be_chosen_and_writes_nothing(capsys):
    make_folder("flowers")
    out, _ = printed(capsys, "plan", "flowers", "--set", "metrics=l1")
    assert "prototypes from 'train', measured 'val': chosen" in out
    content = json.loads(printed(capsys, "plan", "flowers", "--format", "json")[0])
    assert (content["fit"], content["evaluate"], content["ingested"]) == ("train", ["val"], False)
    assert not Path("data/stores").exists()


def test_a_source_that_is_not_there_is_refused_without_announcing_an_ingest(capsys):
    out, err = printed(capsys, "run", "nowhere", code=2)
    assert out == ""
    assert err.startswith("pixsim: images 'nowhere': there is no such file or folder")


# job files ---------------------------------------------------------------------------------------


def test_the_saved_job_is_the_same_run(capsys):
    make_folder("flowers", splits=("",))
    words = ["run", "flowers", "--classes", "b", "a", "--set", "images.mode=RGB"]
    out, _ = printed(capsys, *words, "--save-job", "f.yml")
    assert out.endswith("job in f.yml\n")
    assert Path("f.yml").read_text() == (
        "name: flowers\nimages:\n  source: flowers\n  mode: RGB\nclasses: [b, a]\nfit: train\n"
        "evaluate: train\noutput: data/runs/flowers\n"
    )
    again, err = printed(capsys, "run", "f.yml")
    assert "is complete already" in err
    assert again.splitlines()[-1] in out
    printed(capsys, *words, "--save-job", "f.yml")  # it holds this job
    before = Path("f.yml").read_bytes()
    _, err = printed(capsys, "run", "digits", "--save-job", "f.yml", code=2)
    assert "f.yml: exists and holds something else than this job" in err
    assert Path("f.yml").read_bytes() == before
    assert not Path("data/runs/digits").exists()  # refused before it was run


@pytest.mark.parametrize("source", ["flowers", "digits", "mixed", "store"])
def test_init_describes_what_is_there_in_a_file_that_runs_as_it_is(capsys, source):
    make_folder("flowers")
    make_folder("mixed", splits=("",), sizes=((5, 4), (5, 4), (7, 9)))
    if source == "store":
        pipeline.ingest("flowers", "store")
    out, _ = printed(capsys, "init", source)
    assert out == f"job in {source}.yml; pixsim run {source}.yml runs it\n"
    text = Path(f"{source}.yml").read_text()
    expected = {
        "flowers": ["24 images of 5 x 4, uint8", "train: 12 images, 6 of each of 2 classes"],
        "digits": ["1,797 images of 8 x 8", "10 classes: 0, 1, 2"],
        "mixed": ["heights 5 to 7, widths 4 to 9 among 12 looked at", "  resize: [5, 4]"],
        "store": ["24 images of 5 x 4, uint8", "val: 12 images, 6 of each of 2 classes"],
    }[source]
    for part in expected:
        assert part in text
    for key in pipeline.JobSettings.model_fields:  # each is there, after a comment
        assert re.search(rf"^# .*\n#?{key}:", text, re.MULTILINE), key
    printed(capsys, "run", f"{source}.yml")
    if source != "mixed":  # it is what the source alone stands for
        assert "is complete already" in printed(capsys, "run", source)[1]
    _, err = printed(capsys, "init", source, code=2)
    assert f"{source}.yml: exists already and was left as it is" in err
    # what stands behind a mark is the default: without the marks it is the same job
    plain = re.sub(r"^( *)#(?=(  )?\w+:)", r"\1", text, flags=re.MULTILINE)
    Path("plain.yml").write_text(plain)
    more = {"neighbours", "audit"}
    job, same = (pipeline.load_job(file) for file in (f"{source}.yml", "plain.yml"))
    assert same.model_dump(exclude=more) == job.model_dump(exclude=more)
    assert same.neighbours.k == 10


def test_init_sets_what_brings_images_of_several_modes_and_depths_to_one(capsys):
    make_folder("mixed", splits=("",))
    Image.new("RGB", (4, 5)).save("mixed/a/x.png")
    Image.fromarray(np.ones((5, 4), np.uint16)).save("mixed/b/x.png")
    out, _ = printed(capsys, "init", "mixed")
    assert out == "job in mixed.yml; pixsim run mixed.yml runs it\n"
    text = Path("mixed.yml").read_text()
    for line in (
        "\n  mode: L\n", "\n  depth: 8\n", "\n  #resize: null\n",
        "#   1 of 14 looked at are not grey: 'mode' brings all to it\n",
        "#   1 of 14 looked at are not 8 bits: 'depth' brings all to it\n",
    ):  # fmt: skip
        assert line in text
    printed(capsys, "run", "mixed.yml")


def test_init_keeps_a_size_that_was_asked_for_where_only_modes_differ(capsys):
    make_folder("mixed", splits=("",), sizes=((5, 4), (7, 9)))
    Image.new("RGB", (4, 5)).save("mixed/a/x.png")
    printed(capsys, "init", "mixed", "--set", "images.resize=3x2")
    text = Path("mixed.yml").read_text()
    assert "\n  resize: [3, 2]\n" in text
    assert "\n  mode: L\n" in text
    assert "13 images of 3 x 2" in text


def test_init_says_that_the_split_to_fit_is_to_be_set_where_none_can_be_chosen(capsys):
    make_folder("folds", splits=("fold0", "fold1", "fold2"))
    out, _ = printed(capsys, "init", "folds")
    assert out == "job in folds.yml; set fit first, then pixsim run folds.yml runs it\n"
    text = Path("folds.yml").read_text()
    assert text.startswith(
        "# A job of pixsim: set fit first, then 'pixsim run folds.yml' runs it. A key"
    )
    before, _, _ = text.partition("\n#fit: null\n")
    comment = " ".join(line.removeprefix("# ") for line in before.splitlines()[-3:])
    assert "To be set first, without the '#'" in comment
    assert "there are fold0, fold1, fold2." in comment
    printed(capsys, "run", "folds.yml", code=2)
    Path("folds.yml").write_text(text.replace("#fit: null", "fit: fold1"))
    printed(capsys, "run", "folds.yml")
    out, _ = printed(capsys, "init", "folds", "-o", "g.yml", "--set", "fit=fold0")
    assert out == "job in g.yml; pixsim run g.yml runs it\n"


@pytest.mark.parametrize("source", ["bare", "bare.zarr"])
def test_init_says_that_images_without_labels_cannot_be_run_but_audited(capsys, source):
    Path("bare").mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (5, 4), np.uint8)
        Image.fromarray(pixels).save(f"bare/{number:02}.png")
    pipeline.ingest("bare", "bare.zarr")
    out, _ = printed(capsys, "init", source)
    assert out == (
        f"job in bare.yml; {source} has no labels, so it cannot be run; pixsim audit bare.yml "
        "takes it\n"
    )
    header = Path("bare.yml").read_text().partition("\n#\n")[0].replace("\n# ", " ")
    assert "has no labels, so it cannot be run; 'pixsim audit bare.yml' takes it." in header
    assert "runs it" not in header
    printed(capsys, "audit", "bare.yml")
    printed(capsys, "run", "bare.yml", code=2)


# what can be mended ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "ingest", "audit"])
def test_images_of_several_sizes_are_refused_with_the_line_that_mends_it(capsys, command):
    make_folder("mixed", splits=("",), sizes=((7, 9), (5, 4), (5, 4)))
    _, err = printed(capsys, command, "mixed", code=2)
    (change,) = re.findall(r"--set (\S+) brings all images to the size that most have", err)
    assert change == ("" if command == "ingest" else "images.") + "resize=[5,4]"
    _, err = printed(capsys, command, "mixed", "--set", change)
    assert "not finished: it is made anew" in err
    store = manifest.read_manifest(Path("data/stores/mixed.zarr"), manifest.IMAGES)
    assert store["splits"]["train"]["shape"] == [5, 4]


def test_images_of_several_modes_are_refused_with_the_options_that_mend_it(capsys):
    make_folder("mixed", splits=("",))
    Image.new("RGB", (4, 5)).save("mixed/a/x.png")
    Image.new("RGB", (8, 5)).save("mixed/b/x.png")
    _, err = printed(capsys, "run", "mixed", code=2)
    (changes,) = re.findall(r"--set (.*) brings all images to", err)
    assert changes == "images.resize=[5,4] images.mode=L"
    printed(capsys, "run", "mixed", "--set", *changes.split())


def test_what_was_finished_is_replaced_only_when_asked_and_stays_until_the_new_is(capsys):
    make_folder("flowers")
    printed(capsys, "run", "flowers")
    before = pipeline.open_run("data/runs/flowers").manifest
    _, err = printed(capsys, "run", "flowers", "--set", "images.resize=3x2", code=2)
    assert "'source.conversion.resize' there is None, here" in err
    assert "or replace what is there (--overwrite)" in err
    assert pipeline.open_run("data/runs/flowers").manifest == before
    _, err = printed(capsys, "run", "flowers", "--overwrite", "--set", "images.resize=3x2")
    assert "until the new is complete the old is in data/stores/flowers.zarr/.work/" in err
    assert re.search(r"the old is in \S*/data/runs/flowers/\.work/replaced\n", err)
    run = pipeline.open_run("data/runs/flowers")
    assert run.manifest["digests"] != before["digests"]
    assert run.prototypes.sizes["y"] == 3
    for path in ("data/stores/flowers.zarr", "data/runs/flowers"):
        assert pipeline.verify(path) == []
        assert not (Path(path) / ".work").exists()
    _, err = printed(capsys, "run", "flowers", "--overwrite", "--set", "images.resize=3x2")
    assert "is complete already" in err
    _, err = printed(capsys, "ingest", "flowers", "--append", "--overwrite", code=2)
    assert "append and overwrite, expected one of the two" in err


def test_an_ingest_that_replaces_and_fails_leaves_the_old_store_complete(capsys):
    make_folder("flowers")
    old = pipeline.digest(pipeline.ingest("flowers"))
    (Path("flowers") / "train" / "a" / "bad.png").write_bytes(b"")
    words = ["ingest", "flowers"]
    assert "'source.listing'" in printed(capsys, *words, code=2)[1]
    printed(capsys, *words, "--overwrite", code=2)
    assert pipeline.digest("data/stores/flowers.zarr/.work/replaced") == old
    printed(capsys, *words, "--set", "max_bad=1")
    assert pipeline.verify("data/stores/flowers.zarr") == []


# what is printed ---------------------------------------------------------------------------------


@pytest.fixture
def made(capsys):
    """A store, two runs and an audit."""
    make_folder("flowers")
    store = str(pipeline.ingest("flowers", "s.zarr"))
    for name, metrics in {"one": "l1", "two": ["l1", "l2"]}.items():
        job = {"images": store, "output": name, "metrics": metrics, "report": False}
        pipeline.run_job(job | {"neighbours": {"k": 2}})
    pipeline.run_audit({"name": "a", "images": store, "output": "audit", "k": 2})
    capsys.readouterr()


COMMANDS = [
    ["run", "s.zarr", "-o", "two", "--set", "neighbours={k: 2}"], ["audit", "s.zarr", "-o", "b"],
    ["show", "s.zarr"], ["show", "two"], ["show", "audit"], ["plan", "s.zarr", "-o", "new"],
    ["compare", "one", "two"], ["explain", "two", "--split", "val", "--sample", "0"],
    ["explain", "two", "--split", "val", "--sample", "0", "--neighbours", "2"], ["datasets"],
    ["verify", "s.zarr"], ["digest", "two"], ["ingest", "flowers"], ["init", "flowers"],
    ["ingest", "flowers", "-o", "x.zarr", "--only", "plan"], ["report", "two"],
]  # fmt: skip


def test_every_command_prints_json_csv_or_nothing_and_notices_to_stderr(made, capsys):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for words in COMMANDS:
        out, _ = printed(capsys, *words, "--format", "json")
        content = json.loads(out, parse_constant=refuse)
        assert content, words
        again = [*words, "-o", "f2.yml"] if words[0] == "init" else words
        out, _ = printed(capsys, *again, "--format=csv")
        header, *rows = csv.reader(io.StringIO(out))
        assert len(set(header)) == len(header), words
        assert all(len(row) == len(header) for row in rows), words
        assert rows or words[0] == "verify", words
        again = [*words, "-o", "f3.yml"] if words[0] == "init" else words
        assert printed(capsys, *again, "--quiet") == ("", ""), words
    show = json.loads(printed(capsys, "show", "two", "--format", "json")[0])
    assert show == json.loads(json.dumps(pipeline.describe("two")))


def test_csv_has_every_row_and_digit(made, capsys):
    out, _ = printed(capsys, "run", "s.zarr", "-o", "two", "--set", "neighbours={k: 2}",
                     "--format", "csv")  # fmt: skip
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["table"] == "accuracy"]
    metrics = pipeline.open_run("two").metrics
    for metric in ("l1", "l2"):
        known = {row["class"]: float(row[metric]) for row in rows}
        assert known["all"] == metrics[metric]["accuracy"]
        assert known["b"] == metrics[metric]["per_class"]["b"]["accuracy"]


def test_a_quiet_command_says_what_is_wrong_all_the_same(capsys):
    out, err = printed(capsys, "run", "nowhere", "--quiet", code=2)
    assert out == ""
    assert len(err.splitlines()) == 1
    make_folder("flowers")
    out, err = printed(capsys, "run", "flowers", "-q", "--format", "json")
    assert json.loads(out)["name"] == "flowers"
    assert err == ""


def test_names_in_json_and_csv_cannot_steer_the_terminal(capsys):
    pixels, labels = np.arange(40, dtype=np.uint8).reshape(2, 5, 4), np.array([0, 1], np.int32)
    names = ['\x1b[31mred, "q"', "b\x9b\u202e"]
    pipeline.ingest(pipeline.from_arrays({"train": (pixels, labels)}, names), "s.zarr")
    out, _ = printed(capsys, "show", "s.zarr", "--format", "json")
    assert json.loads(out)["class_names"] == names
    text, _ = printed(capsys, "show", "s.zarr", "--format", "csv")
    assert '\\x1b[31mred, "q"' in [row["class"] for row in csv.DictReader(io.StringIO(text))]
    for character in "\x1b\x9b\u202e":
        assert character not in out + text


# scripts -----------------------------------------------------------------------------------------


def test_a_script_that_workers_would_run_again_is_refused_in_a_line(monkeypatch):
    class Script:
        __file__ = "script.py"

    monkeypatch.setitem(sys.modules, "__main__", Script)
    Path("script.py").write_text("import pipeline\npipeline.run_job('job.yml')\n")
    with pytest.raises(ConfigError, match='__name__ == "__main__"') as caught:
        pipeline.run_job({"images": "digits", "cluster": "local"})
    assert "\n" not in str(caught.value)
    Path("script.py").write_text("if __name__ == '__main__':\n    pass\n")
    launchers._refuse_unguarded()
