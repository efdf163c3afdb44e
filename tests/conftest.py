"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline.kernels.backends import has_cuda_driver

# before anything imports Triton: without a GPU its kernels run on the CPU, one by one
if not has_cuda_driver():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# examples take as long as the machine lets them, and are the same for everybody
settings.register_profile(
    "pixsim",
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pixsim")

_FIGURE, _ME = "figure", os.getpid()
PLAIN = "<!doctype html><title>a report without pictures</title>"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make faults` asks for."""
    group = parser.getgroup("faults")
    group.addoption("--faults", choices=["short", "full"], default="short", help="how many faults")
    group.addoption("--faults-seed", type=int, default=0, help="which of them, where drawn by lot")


def pytest_configure(config: pytest.Config) -> None:
    """Make PIXSIM_DATASETS absolute, since tests change the working directory."""
    if folder := os.environ.get("PIXSIM_DATASETS"):
        os.environ["PIXSIM_DATASETS"] = str(Path(folder).resolve())


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of every later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _unflushed():
    """Spare the disk: tests end processes, not machines, and what the kernel has is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path, monkeypatch):
    """Keep stores, downloads and runs of a test in its own folder."""
    monkeypatch.setenv("PIXSIM_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("PIXSIM_CATALOG", raising=False)


@pytest.fixture(autouse=True)
def _no_lock_is_left():
    """Fail a test that leaves a lock behind, whose heart would beat in the tests after it."""
    yield
    locks = sys.modules.get("pipeline.storage.locks")
    left = [] if locks is None else [key for key in locks._held if locks._held[key].process == _ME]
    for key in left:
        lock = locks._held.pop(key)
        lock._done.set()
    assert not left, f"holds {', '.join(left)} still"


@pytest.fixture(autouse=True, scope="module")
def drawn_reports():
    """Have runs of this process write a page without pictures: drawing them takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.report.page.render_report", lambda run, content=None: PLAIN)
        patch.setattr("pipeline.report.audit_page.render_audit", lambda audit, content=None: PLAIN)
        yield


@pytest.fixture(scope="session")
def real_datasets() -> Path:
    """The folder with the real MNIST and Fashion-MNIST files."""
    folder = os.environ.get("PIXSIM_DATASETS")
    if not folder:
        pytest.skip("needs the real files in the folder PIXSIM_DATASETS, which is not set")
    return Path(folder)


@pytest.fixture
def figure(record_property):
    """Return what notes a figure, by what it is of, to be printed after all tests."""
    return lambda what, text: record_property(_FIGURE, (what, text))


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the figures that tests noted."""
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    noted = [
        tuple(value)
        for report in reports
        for key, value in report.user_properties
        if key == _FIGURE
    ]
    if not noted or terminalreporter.config.getoption("--faults") == "short":
        return
    terminalreporter.section("figures")
    width = max(len(what) for what, _ in noted)
    for what, text in noted:
        terminalreporter.write_line(f"{what:{width}}  {text}")
