"""The report of a run: one page that can be mailed, and shows the most telling things first.

It reads what the run has written and the few images that it shows, and computes nothing but sums of
counts. The page holds everything: it may load nothing, and says so to the browser.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError
from pipeline.core.paths import locate, options_of
from pipeline.report.opened import Run, open_run
from pipeline.report.page_content import Findings
from pipeline.report.page_sections import Page, make_environment, part_of
from pipeline.report.shown_samples import open_image_set
from pipeline.storage import manifest
from pipeline.storage.atomic import require_file, write_text
from pipeline.storage.locks import held
from pipeline.storage.run_files import REPORT_FILE


@checked
def write_report(
    run: Path | str,
    output: Path | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report of a finished run again.

    Parameters
    ----------
    run
        The folder of the run, or its URL.
    output
        The file to write; default: `report.html` in the folder, whose digest the manifest has.
    storage_options
        fsspec's options for the URLs of the run and of its image set; default: credentials from
        the environment.

    Returns
    -------
    The file. Where the image set has gone, or has changed, the report is made without images.

    Raises
    ------
    StoreError
        Where the folder is no finished run, or one of an earlier version without highlights.
    DamagedError
        Where something that the report shows was changed.
    InUseError
        Where another process holds the folder.
    """
    opened = open_run(run, storage_options)
    if output is not None:
        if output.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"{output}: a report is a page, expected a name ending in .html")
        require_file(output, "--output")
        write_text(output, render_report(opened))
        return output
    with held(opened.path, "report"):
        opened = open_run(opened.path, storage_options)
        content = add_report(opened, opened.manifest)
        manifest.put_manifest(opened.path, content, opened.manifest)
    return opened.path / REPORT_FILE


def add_report(run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the report into a run's locked folder; return its manifest with the report in.

    Parameters
    ----------
    run
        The run; its manifest need not be there yet.
    content
        What the manifest says, or will say.
    """
    file = run.path / REPORT_FILE
    write_text(file, render_report(run, content))
    hashes = {**content["files"], REPORT_FILE: manifest.file_hash(file)}
    return {**content, "files": hashes}


def render_report(run: Run, content: Mapping[str, Any] | None = None) -> str:
    """Return the page of a run.

    Parameters
    ----------
    run
        The run.
    content
        Its manifest, where that is not written yet.
    """
    known = dict(content or run.manifest)
    shown = replace(run, unwritten=known)
    findings = Findings(known, shown.metrics, shown.highlights)
    path = locate(known["images"]["path"], run.storage_options or options_of(run.path))
    images, missing = open_image_set(path, known["images"]["digest"])
    page = Page(shown, findings, images, missing)
    template = make_environment().get_template("report.html.j2")
    script, style = part_of("report.js"), part_of("report.css")
    return template.render(
        **page.context(), style=style, script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
