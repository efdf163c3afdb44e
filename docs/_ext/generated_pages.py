"""Write the parts of the reference that the code itself knows, before Sphinx reads its sources.

The command line is written from the app, the keys of a job from the models that read them, the
list of public functions from `pipeline.__all__`: what is new there appears by itself.
"""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Any
from unittest import mock

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import pipeline
from pipeline.config.cluster_settings import ClusterSettings, TlsSettings
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import Environment, JobSettings
from pipeline.config.search_settings import AuditChecks, NeighbourSettings

KEYS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("The job", "", JobSettings),
    ("Images", "images", ImageSettings),
    ("Neighbours", "neighbours", NeighbourSettings),
    ("Audit", "audit", AuditChecks),
    ("Cluster", "cluster", ClusterSettings),
    ("TLS", "cluster.tls", TlsSettings),
)
"""Heading, prefix of the keys in `--set`, and the model, of each table."""

# headings by the room that a function lives in, in the order of the page
ROOMS = {
    "ingestion": "Take in an image set",
    "sources": "Sources",
    "storage": "Read an image set",
    "ops": "Labelled arrays",
    "jobs": "Jobs",
    "report": "What there is, opened and shown",
    "config": "Settings",
    "execution": "Where tasks run",
    "terminal": "Tables in the terminal",
}
OTHERS = "Others"

HOW_TO = (
    "first-run", "own-images", "folders-and-archives", "tables-and-arrays", "job-file", "plan",
    "notebook", "scikit-learn", "xarray", "nearest-images", "without-a-test-split", "reports",
    "audit", "repair", "cluster", "gpus", "read-from-elsewhere",
)  # fmt: skip


def heading_of(name: str) -> str:
    """Return under which heading a public name stands: that of its room."""
    room = pipeline._HOMES[name].split(".")[0]
    if room == "estimators":
        return "Estimators"
    return ROOMS.get(room, OTHERS)


def api_page() -> str:
    """Return the page that lists every public name, in reStructuredText."""
    groups: dict[str, list[str]] = {}
    for name in pipeline.__all__:
        groups.setdefault(heading_of(name), []).append(f"pipeline.{name}")
    from pipeline.report import plots

    groups["Plots"] = [f"pipeline.report.plots.{name}" for name in plots.__all__
                       if callable(getattr(plots, name))]  # fmt: skip
    order = [*[*ROOMS.values()][:4], "Estimators", *[*ROOMS.values()][4:], "Plots", OTHERS]
    lines = [_title("Functions and classes", "="), (
        "Everything public is an attribute of `pipeline`. Arguments are checked when a function is "
        "called; what is wrong is an error of one line, a subclass of "
        "`pipeline.core.errors.PixsimError`. The examples are run as tests."
    ), ""]  # fmt: skip
    for heading in order:
        if heading in groups:
            names = [f"   {name}" for name in groups[heading]]
            lines += [_title(heading, "-"), ".. autosummary::", "   :toctree: api",
                      "   :nosignatures:", "", *names, ""]  # fmt: skip
    return "\n".join(lines)


def _title(text: str, mark: str) -> str:
    return f"{text}\n{mark * len(text)}\n"


def key_tables() -> str:
    """Return the tables of every key of a job, in Markdown."""
    parts = []
    for heading, prefix, model in KEYS:
        dots = f"{prefix}." if prefix else ""
        about = f"`{prefix}:` in a job file, `{dots}KEY` in `--set`.\n\n" if prefix else ""
        rows = [_row(name, field) for name, field in model.model_fields.items()]
        parts.append(f"## {heading}\n\n{about}{TABLE}" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def environment_table() -> str:
    """Return the table of environment variables, in Markdown."""
    rows = []
    for name, field in Environment.model_fields.items():
        default = "none" if field.default is None else f"`{field.default}`"
        rows.append(f"| `PIXSIM_{name.upper()}` | {_text(field)} | {default} |")
    return "| variable | meaning | default |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"


TABLE = "| key | meaning | values | default |\n| --- | --- | --- | --- |\n"


def _row(name: str, field: FieldInfo) -> str:
    text, told = _text(field), ""
    if "default: " in text:  # said in words, which say more than None
        text, _, told = text.partition("default: ")
        told, more, after = told.partition(". ")
        told, text = told.rstrip("."), text.rstrip("; ,") + ". " * bool(more) + after
        if not text.endswith("."):
            text += "."
    return f"| `{name}` | {text} | {_values(field)} | {told or _default(field)} |"


def _text(field: FieldInfo) -> str:
    if not field.description:
        raise ValueError("a key without an explanation")
    return " ".join(field.description.split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None or value in ({}, ()):
        return "none"
    if isinstance(value, BaseModel):
        return f"`{value.model_dump()['kind']}`"
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"{value:,}" if isinstance(value, int) else f"`{value}`"


def _values(field: FieldInfo) -> str:
    return ", ".join(dict.fromkeys(_kinds(field.annotation)))


def _kinds(kind: Any) -> list[str]:
    """Return what a value may be, in the words of YAML."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is type(None):
        return []
    if origin is typing.Annotated:
        return _kinds(inner[0])
    if origin is typing.Literal:
        return [f"`{value}`" for value in inner]
    if origin in (typing.Union, types.UnionType):
        return [word for each in inner for word in _kinds(each)]
    if origin is tuple:
        if len(inner) == 2 and inner[1] is not Ellipsis:
            return ["[number, number]"]
        return [f"{' or '.join(_kinds(inner[0]))}, or a list"]
    if origin is dict:
        return ["mapping"]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return ["text", "mapping"] if kind in (ImageSettings, ClusterSettings) else ["mapping"]
    names = {bool: "true or false", int: "whole number", float: "number", Path: "path or URL"}
    return [names.get(kind, "text")]


def command_line() -> str:
    """Return every command with its arguments, in Markdown."""
    from pipeline.commands import app

    # the usage of a command begins with how this process was called
    with mock.patch.object(sys, "argv", ["pixsim"]):
        text = app.generate_docs(output_format="markdown", usage_name="pixsim")
    # of the app itself only the list of commands, which the page introduces
    text = text[text.index("**Commands**") :].replace("**Commands**:\n\n", "", 1)
    return text.replace(" *[default: False]*", "").replace(" *[default: True]*", "")


def how_to_list(folder: Path) -> str:
    """Return the table of contents of the how-to pages, in their order; new ones come last."""
    there = {file.stem for file in folder.glob("*.md")} - {"index"}
    pages = [*filter(there.__contains__, HOW_TO), *sorted(there - {*HOW_TO})]
    return "```{toctree}\n:maxdepth: 1\n\n" + "\n".join(pages) + "\n```\n"


def write_pages(app: Any, _config: Any) -> None:
    """Write the pages, each only where it differs, or Sphinx would read it again."""
    folder = Path(app.srcdir) / "reference"
    pages = {
        "api.rst": api_page(),
        "_generated/keys.md": key_tables(),
        "_generated/environment.md": environment_table(),
        "_generated/commands.md": command_line(),
        "_generated/how-to.md": how_to_list(folder.parent / "how-to"),
    }
    for name, text in pages.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def skip_inherited(_app: Any, _what: str, name: str, _obj: Any, skip: bool, _options: Any) -> bool:
    """Leave out what scikit-learn puts into each estimator: its text links into its own pages."""
    return skip or (name.startswith("set_") and name.endswith("_request"))


def setup(app: Any) -> dict[str, Any]:
    """Have the pages written before Sphinx looks which there are."""
    app.connect("config-inited", write_pages)
    app.connect("autodoc-skip-member", skip_inherited)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
