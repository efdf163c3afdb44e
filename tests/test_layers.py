"""The rooms: a package imports only from those above it, and heavy things only where needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent

# a package imports from those before it; what lies beside the packages, from all
ORDER = (
    "core", "config", "storage", "images", "sources", "kernels", "ops", "estimators", "execution",
    "ingestion", "report", "jobs",
)  # fmt: skip
TOP = {"terminal", "output", "printing", "options", "commands", "cli", "accessor"}
LONGEST_MODULE, LONGEST_FUNCTION = 400, 60  # lines

# the rooms or modules that import a library
ONLY_IN = {
    "zarr": {"storage"},
    "pyarrow": {
        "storage.tables", "sources.sample_index", "sources.tables", "sources.parquet",
        "sources.text_tables", "sources.pixel_tables", "sources.lists",
    },
    "torch": {
        "kernels.torch", "kernels.transfers", "kernels.triton", "kernels.triton_nearest",
        "kernels.triton_sums", "kernels.triton_tiles",
    },
    "triton": {"kernels.triton", "kernels.triton_sums", "kernels.triton_tiles"},
    "torchvision": {"sources.torchvision", "sources.torchvision_sets"},
    "numba": {
        "kernels.cpu_nearest", "kernels.cpu_sums", "kernels.cpu_histograms",
        "kernels.cpu_distances", "kernels.cpu_predictions", "kernels.cpu_differences",
        "kernels.search_vectors", "kernels.sketches", "kernels.vectors", "kernels.words",
    },
    "llvmlite": {
        "kernels.cpu_histograms", "kernels.search_vectors", "kernels.vectors", "kernels.words",
    },
    "numcodecs": {"storage.shards", "storage.zarr_names"},
    "google_crc32c": {"storage.shards"},
    "PIL": {"images", "report", "sources.torchvision_sets"},
    "imagecodecs": {"images"},
    "matplotlib": {"report", "accessor"},  # there its types alone
    "jinja2": {"report"},
    "cyclopts": {"cli", "commands", "options"},
    "sklearn": {"estimators"},
}  # fmt: skip
# what only some images or data sets need, or not every Pillow has
WHEN_NEEDED = {
    "sources.catalog": {"sklearn.datasets"},
    "images.pillow_formats": {"PIL.AvifImagePlugin"},
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


@cache
def imported(path: Path) -> set[str]:
    """Every module that a file imports, `pipeline.x` in full where a submodule is meant."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            known = {f"pipeline.{name}" for name in modules()}
            names |= {name if name in known else node.module for name in whole}
    return names


def room_of(name: str) -> str:
    return name.split(".")[0]


def ours(path: Path) -> set[str]:
    """The modules of this package that a file imports or loads, without the package's name."""
    names = imported(path) | loaded_when_needed(path)
    return {name.removeprefix("pipeline.") for name in names if name.startswith("pipeline.")}


def test_every_module_lies_in_a_room_that_says_what_belongs_there():
    assert {room_of(name) for name in modules()} == {*ORDER, *TOP}
    for room in ORDER:
        text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
        first, rest = text.split("\n\n", 1)
        assert first.count(". ") == 0, room
        assert rest.count(".") >= 2, room


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_from_rooms_above_it(room):
    allowed = {*ORDER[: ORDER.index(room) + 1]}
    for name, path in modules().items():
        if room_of(name) == room:
            wrong = {other for other in ours(path) if room_of(other) not in allowed}
            assert not wrong, f"{name} imports {sorted(wrong)}"


@pytest.mark.parametrize("room", ORDER)
def test_no_modules_of_a_room_import_each_other_in_a_circle(room):
    inside = {name: path for name, path in modules().items() if room_of(name) == room}
    graph = {name: ours(path) & set(inside) for name, path in inside.items()}
    if room == "kernels":  # it loads the device that is asked for
        graph["kernels.backends"] = set()
    TopologicalSorter(graph).prepare()


def test_the_description_of_the_rooms_names_what_is_there():
    text = (PACKAGE.parent / "docs" / "explanation" / "architecture.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [*ORDER]
    named = re.findall(rf"`((?:{'|'.join(ORDER)})\.\w+)", text)
    assert named
    assert {*named} <= {*modules()}


def test_no_module_and_no_function_is_too_long_to_read():
    for path in [*modules().values(), *Path(__file__).parent.rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= LONGEST_MODULE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                example = (ast.get_docstring(node) or "").partition("\n\nExamples\n")[1:]
                lines = node.end_lineno - node.lineno + 1 - "".join(example).count("\n")
                assert lines <= LONGEST_FUNCTION, f"{path}: {node.name}"


def test_the_command_line_goes_through_the_public_names():
    known = {"pipeline", "pipeline.core.errors", "pipeline.output"}
    results = {"pipeline.printing", "pipeline.options"}
    for name, more in {"commands": results, "cli": {"pipeline.commands"}}.items():
        mine = {found for found in imported(modules()[name]) if found.split(".")[0] == "pipeline"}
        assert mine == known | more


@pytest.mark.parametrize("library", ONLY_IN)
def test_each_heavy_library_has_one_door(library):
    importers = {
        name
        for name, path in modules().items()
        if any(found.split(".")[0] == library for found in imported(path))
    }
    doors = {name if name in ONLY_IN[library] else room_of(name) for name in importers}
    assert doors == ONLY_IN[library]


def test_kernels_know_neither_dask_nor_xarray_nor_paths():
    for name in [name for name in modules() if room_of(name) == "kernels"]:
        roots = {found.split(".")[0] for found in imported(modules()[name])}
        assert not roots & {"dask", "xarray", "pathlib", "os"}, name


def test_operations_know_no_paths():
    for name in [name for name in modules() if room_of(name) == "ops"]:
        roots = {found.split(".")[0] for found in imported(modules()[name])}
        assert not roots & {"pathlib", "os", "zarr", "pyarrow"}, name


@pytest.mark.parametrize(
    "script",
    [
        "import pipeline",
        "import pipeline.cli",
        "from pipeline.cli import main; assert main(['--help']) == 0",
        "from pipeline.cli import main; assert main(['run', '--help']) == 0",
    ],
)
def test_import_and_help_load_nothing_heavy(script):
    heavy = "{'torch', 'torchvision', 'dask', 'xarray', 'zarr', 'numba', 'pyarrow', 'numpy'}"
    check = f"{script}; import sys; print('heavy:', sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_every_public_name_is_there_and_documented():
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pipeline.nothing


def test_a_public_name_stays_a_function_after_every_module_was_imported():
    for name in modules():
        __import__(f"pipeline.{name}")
    for name in pipeline.__all__:
        assert callable(getattr(pipeline, name)), name


@cache
def loaded_when_needed(path: Path) -> set[str]:
    """Every module that a file names in a call of `importlib.import_module`."""
    return {
        node.args[0].value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "import_module"
        and isinstance(node.args[0], ast.Constant)
    }


def test_what_is_loaded_when_needed_is_none_of_the_heavy_libraries():
    for name, path in modules().items():
        others = loaded_when_needed(path) - WHEN_NEEDED.get(name, set())
        assert not {m.split(".")[0] for m in others} & set(ONLY_IN), name


def test_type_checkers_see_the_public_names_where_they_live():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    homes = {
        alias.name: node.module.removeprefix("pipeline.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline.")
        for alias in node.names
    }
    assert homes == pipeline._HOMES
