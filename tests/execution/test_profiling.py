"""Dask's performance report: made where it was asked for, refused where it cannot be."""

from __future__ import annotations

import pytest
from clusters_for_tests import small_job, small_store
from jobs_for_tests import Heard

import pipeline
from pipeline.core.errors import ConfigError
from pipeline.execution import compute


@pytest.mark.slow
def test_a_job_on_processes_keeps_dasks_report_and_says_where(tmp_path):
    small_store(tmp_path, samples=16)
    heard, page = Heard(), tmp_path / "profile.html"
    settings = small_job(tmp_path, "run", {"kind": "local", "workers": 1})
    pipeline.run_job(settings, heard, page)
    assert "<html" in page.read_text()[:500].lower()
    assert f"dask's performance report is in {page}" in heard.lines
    assert any(line.startswith("dashboard at http://127.0.0.1:") for line in heard.lines)


def test_a_report_that_cannot_be_made_is_refused_before_anything_is_started(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="not of threads"):
        compute.refuse_profile(tmp_path / "page.html", "threads")
    with pytest.raises(ConfigError, match=r"there is no folder .*nowhere; make it first"):
        compute.refuse_profile(tmp_path / "nowhere" / "page.html", "local")
    monkeypatch.setattr(compute, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install bokeh"):
        compute.refuse_profile(tmp_path / "page.html", "local")
