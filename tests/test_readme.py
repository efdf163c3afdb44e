"""The README and the documentation promise nothing that was not run."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xarray as xr
import yaml

import pipeline
from pipeline.cli import main
from pipeline.config.audit_settings import AuditSettings
from pipeline.config.cluster_settings import ClusterSettings, TlsSettings
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import Environment
from pipeline.config.search_settings import AuditChecks, NeighbourSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# what `make docs` makes is none of the pages that people write
MADE = {"_build", "_generated", "api"}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        page
        for page in DOCS.rglob("*.md")
        if not MADE & {*page.relative_to(DOCS).parts}
    ),
]  # fmt: skip
_BLOCK = re.compile(
    r"(?:^% (run|write [\w.-]+)\n)?^```(?:\{code-block\} )?(\w+)\n(.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return what is to be done with each block of a page (`run`, `write NAME`), language, text."""
    return [(found[1] or "", found[2], found[3]) for found in _BLOCK.finditer(page.read_text())]


def block(page: Path, language: str, containing: str) -> str:
    """Return the one block of a page in a language that holds some text."""
    (text,) = [
        text for _, spoken, text in blocks(page) if spoken == language and containing in text
    ]
    return text


def section(page: Path, heading: str) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    found = re.search(
        rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,2}} |\Z)", page.read_text(), re.M | re.S
    )
    assert found, f"{page.name} has no heading {heading!r}"
    return found[2]


README = ROOT / "README.md"
NOTEBOOK_PAGE = DOCS / "how-to" / "notebook.md"
JOB_PAGE = DOCS / "how-to" / "job-file.md"
FILES_PAGE = DOCS / "reference" / "files.md"
FOLLOWED = [page for page in PAGES if any(act for act, *_ in blocks(page))]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.datasets
def test_the_python_shown_first_gives_the_articles_number(
    real_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    shown = block(README, "python", "class_sums")
    assert shown == block(NOTEBOOK_PAGE, "python", "class_sums")
    exec(shown, {})
    assert capsys.readouterr().out.strip() == "0.9175"


@pytest.mark.datasets
def test_the_nearest_images_are_as_many_and_as_good_as_the_page_says(
    real_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    exec(block(DOCS / "how-to" / "nearest-images.md", "python", "neighbours"), {})
    assert capsys.readouterr().out.split() == ["0.9631", "935"]


@pytest.mark.datasets
def test_the_demo_prints_what_the_readme_and_the_tutorial_show(
    real_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    page = DOCS / "tutorial" / "index.md"
    first, shown = block(page, "text", "prototypes drawn in").split("...\n")
    assert first.strip() in captured.err
    assert captured.out.rstrip() == shown.rstrip()
    assert captured.out.startswith(block(README, "text", "run dress-vs-pullover"))
    l1, l2 = re.findall(r"^all +([\d.]+) +([\d.]+)$", captured.out, re.MULTILINE)[1]
    assert f"{l1} by `l1` and {l2} by `l2`" in README.read_text()


def test_the_job_file_shown_is_the_workflow():
    shown = yaml.safe_load(block(JOB_PAGE, "yaml", "dress-vs-pullover"))
    path = ROOT / "workflows" / "fashion_mnist_dress_vs_pullover.yml"
    assert shown == yaml.safe_load(path.read_text())
    assert pipeline.make_job(shown).name == "dress-vs-pullover"


@pytest.mark.parametrize(
    "model",
    [pipeline.JobSettings, ImageSettings, NeighbourSettings, AuditChecks, AuditSettings,
     ClusterSettings, TlsSettings, Environment],
    ids=lambda model: model.__name__,
)  # fmt: skip
def test_every_job_key_is_explained(model):
    """The reference is made of these; the class itself lists them no second time."""
    for key, field in model.model_fields.items():
        assert len((field.description or "").split()) > 2, key
        assert field.description.rstrip().endswith("."), key
    assert "Attributes\n" not in model.__doc__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_linked_file_exists(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        made = {"pixel-similarity.ipynb"}  # a copy of that of workflows
        if "://" not in target and Path(target).name not in made:
            assert (page.parent / target).exists(), target


def test_every_row_of_what_can_fail_is_pinned_by_a_test_that_exists():
    text = (DOCS / "explanation" / "what-can-fail.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)` \|$", row)
        assert re.search(rf"^def {name}\(", tests, re.MULTILINE), name


def test_every_cluster_shown_is_a_file_and_every_key_of_one_is_named():
    text = (DOCS / "how-to" / "cluster.md").read_text()
    named = set(re.findall(r"--cluster (\w+)`", text)) | {"scheduler"}
    assert named == {path.stem for path in (ROOT / "workflows" / "clusters").glob("*.yml")}
    for key in ClusterSettings.model_fields:
        assert f"`{key}`" in text, key


def named_in(text: str, names) -> None:
    for name in names:
        assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), name


def test_the_files_of_a_store_a_run_and_an_audit_are_described(tmp_path):
    job = {"name": "digits", "images": "digits", "neighbours": {"k": 2}, "holdout": "20%",
           "output": str(tmp_path / "run")}  # fmt: skip
    run = pipeline.run_job(pipeline.make_job(job))
    audit = pipeline.run_audit({"name": "a", "images": str(run.images), "k": 2,
                                "output": str(tmp_path / "audit")})  # fmt: skip
    page = FILES_PAGE.read_text()
    for path, heading in ((run.path, "A run"), (audit.path, "An audit")):
        there = {file.name for file in Path(path).iterdir()} - {"neighbours", "predictions"}
        named_in(page, there)
        for table in Path(path).rglob("*.parquet"):
            columns = {name.removeprefix("other_") for name in pq.read_schema(table).names}
            both = section(FILES_PAGE, "A run") + section(FILES_PAGE, heading)
            named_in(both, columns)
    images = section(FILES_PAGE, "An image set")
    named_in(images, pq.read_schema(Path(run.images) / "samples.parquet").names)
    with xr.open_zarr(run.images, group="train") as split:
        named_in(images, [*split.variables, *split.attrs])
    with xr.open_zarr(Path(run.path) / "prototypes.zarr") as prototypes:
        named_in(section(FILES_PAGE, "A run"), prototypes.data_vars)


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_a_page_can_be_followed_word_by_word(page, tmp_path, monkeypatch):
    """Run the blocks below `% run` in a fresh folder, with the files below `% write NAME`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIXSIM_DATA")
    names: dict[str, object] = {}
    for act, language, text in blocks(page):
        if act.startswith("write "):
            Path(act.removeprefix("write ")).write_text(text)
        elif act and language == "python":
            exec(text, names)
        elif act:
            for line in text.splitlines():
                follow(line)


def follow(line: str) -> None:
    """Run one line of a shell: pixsim in this process, which has imported what it needs."""
    command, _, otherwise = line.partition(" || ")
    words = shlex.split(command, comments=True)
    if words[:1] == ["pixsim"]:
        code = main(words[1:])
        command = f"(exit {code})"
    if words:
        subprocess.run(["bash", "-c", f"{command} || {otherwise or 'exit'}"], check=True)


def test_the_reference_is_made_of_what_there_is(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import generated_pages  # what `make docs` calls

    from pipeline.commands import app

    page = generated_pages.api_page()
    for name in pipeline.__all__:
        assert f"   pipeline.{name}\n" in page, name
    commands = generated_pages.command_line()
    assert set(re.findall(r"^## pixsim ([\w-]+)$", commands, re.MULTILINE)) == {
        name for name in app if not name.startswith("-")
    }
    assert "\npixsim verify [OPTIONS] PATH\n" in commands
    named_in(commands, ["output", "cluster", "without", "set", "repair"])
    keys = generated_pages.key_tables()
    for model in (pipeline.JobSettings, ImageSettings, ClusterSettings, AuditChecks):
        for key in model.model_fields:
            assert f"| `{key}` | " in keys, key


def test_broken_links_of_the_site_are_errors(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    import checked_links

    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="https://example.org/x">4</a><img src="https://example.org/y.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    wrong, outside = checked_links.broken_links(checked_links.read_pages(tmp_path))
    assert sorted(wrong) == [
        "a.html links to b.html#gone: no such place on that page",
        "a.html links to c.html: no such file",
        "a.html loads https://example.org/y.png",
    ]
    assert outside == ["https://example.org/x", "https://example.org/y.png"]
