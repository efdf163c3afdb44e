"""How a job tells how far it is: plain lines in a log, bars on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pipeline.execution import progress
from pipeline.execution.progress import LogReporter, SilentReporter, TerminalReporter, make_reporter

TIME = r"\d\d:\d\d:\d\d "


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def log():
    stream = io.StringIO()
    return LogReporter(stream), lambda: stream.getvalue().splitlines()


def test_a_log_line_is_the_time_and_the_message_and_nothing_else(log):
    reporter, lines = log
    reporter.say("ingesting [bold]digits[/bold] into data/stores/digits.zarr :smile:")
    (line,) = lines()
    assert re.fullmatch(
        TIME + re.escape("ingesting [bold]digits[/bold] into data/stores/digits.zarr :smile:"), line
    )


def test_a_log_says_each_phase_once_where_it_is_quick(log, clock):
    reporter, lines = log
    with reporter.phase("ingest", 3, 30_000_000) as phase:
        for _ in range(3):
            clock.now += 1
            phase.advance()
    (line,) = lines()
    assert re.fullmatch(TIME + r"ingest: 3 partitions in 3\.0 s, 10 MB/s", line)


def test_a_long_phase_is_told_of_every_now_and_then_with_what_is_left(log, clock):
    reporter, lines = log
    with reporter.phase("distances", 100, 1_000_000_000) as phase:
        for _ in range(100):
            clock.now += 2
            phase.advance()
    *between, last = lines()
    assert 1 <= len(between) <= 200 / progress.LOG_SECONDS
    for line in between:
        found = re.fullmatch(
            TIME + r"distances: (\d+) of 100 partitions, 5 MB/s, (\d+) s left", line
        )
        assert found, line
        done, left = map(int, found.groups())
        assert left == 2 * (100 - done)
    assert re.fullmatch(TIME + r"distances: 100 partitions in 200\.0 s, 5 MB/s", last)


@pytest.mark.parametrize(("partitions", "words"), [(0, "0 partitions"), (1, "1 partition in")])
def test_any_number_of_partitions_is_said_in_words_that_fit(log, clock, partitions, words):
    reporter, lines = log
    with reporter.phase("fit", partitions) as phase:
        for _ in range(partitions):
            phase.advance()
    (line,) = lines()
    assert f"fit: {words}" in line
    assert "MB/s" not in line


def test_a_phase_that_fails_is_not_said_to_be_done(log, clock):
    reporter, lines = log

    def failing():
        with reporter.phase("ingest", 3) as phase:
            phase.advance()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert lines() == []


def test_each_line_is_out_before_the_next(tmp_path):
    path = tmp_path / "log"
    with path.open("w") as stream:
        LogReporter(stream).say("first")
        assert path.read_text().endswith(" first\n")


def test_silence_is_silent(capsys):
    reporter = SilentReporter()
    reporter.say("hello")
    with reporter.phase("ingest", 3, 10) as phase:
        phase.advance()
        phase.advance(2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_messages_as_they_are_and_a_bar_with_its_count():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system=None)
    reporter = TerminalReporter(console)
    reporter.say("ingesting [bold]x[/bold]")
    with reporter.phase("ingest [red]x[/red]", 3) as phase:
        phase.advance()
        phase.advance(2)
    text = stream.getvalue()
    assert "ingesting [bold]x[/bold]" in text
    assert "ingest [red]x[/red]" in text
    assert "3/3" in text


def test_without_a_terminal_there_are_log_lines_on_standard_error(capsys, monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    reporter = make_reporter()
    assert isinstance(reporter, LogReporter)
    with reporter.phase("ingest", 1) as phase:
        phase.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(TIME + r"ingest: 1 partition in .*\n", err)
    assert "\x1b" not in err


def test_on_a_terminal_there_are_bars(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(make_reporter(), TerminalReporter)
