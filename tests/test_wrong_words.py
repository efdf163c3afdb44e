"""Words of the command line that mean nothing, and a command that is stopped before it begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.cli import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--set", "metrics=l1", "a"], "give it before --set, which takes all words"),
        (
            ["run", "a", "--fit", "x", "y"],
            "got 'x' and 'y'; expected such as '--fit x --evaluate y'",
        ),
        (["run", "a", "--output", "x", "y"], "--output takes one value, got 'x' and 'y'"),
        (["run", "a", "--fit", "x", "--fit", "y"], "--fit is given twice"),
        (["run", "a", "b"], "'b' is one argument too many"),
        (["run", "a", "--output"], "'pixsim run': --output needs a value"),
        (["run", "a", "--classes"], "'classes' is [] (list): expected at least 1"),
        (["audit", "a", "--fit", "x"], "has no --fit, an option of run, plan"),
        (["run", "a", "--outptu", "x"], "Did you mean --output?"),
        (["digits"], "'digits' is no command; did you mean 'pixsim run digits'?"),
        (["explain", "a", "--split", "x"], "--sample is missing"),
        (["explain", "a", "--split", "x", "--sample", "1.5"], "'1.5', expected a whole number"),
        (["ingest", "digits", "--shard", "1.5"], "'1.5', expected a whole number"),
        (["run", ""], "an empty name, expected a folder of images"),
        (["plan", "fashion-mnits"], "no such file or folder, nor a data set of that name; did you"),
        (["run", "mine.yml"], "'pixsim init SOURCE' writes a job file"),
        (["compare"], "no runs, expected two or more"),
    ],
)
def test_what_is_wrong_is_said_with_the_form_that_works(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("pixsim: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not list(tmp_path.iterdir())


WHILE_IMPORTING = (
    "sys.meta_path.insert(0, type('F', (), {'find_spec': staticmethod(lambda name, *_:"
    " stop() if name == 'cyclopts' else None)}))"
)
WHILE_READING = "import pipeline; pipeline.find_job = stop"


@pytest.mark.parametrize("line", [WHILE_IMPORTING, WHILE_READING])
def test_ctrl_c_before_anything_is_begun_is_one_line(line):
    code = (
        "import sys, signal\n"
        "def stop(*_): signal.raise_signal(signal.SIGINT)\n"
        f"{line}\n"
        "from pipeline.cli import main\n"
        "sys.exit(main(['run', 'digits']))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.startswith("pixsim: interrupted")
    assert ended.stderr.count("\n") == 1
