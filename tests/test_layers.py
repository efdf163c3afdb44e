"""The layers: a module imports only from those above it, and heavy things only where needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import pipeline

PACKAGE = Path(pipeline.__file__).parent

# One line a layer: base, storage, kernels, operations, jobs, faces.
LAYERS = """
    errors urls places versions patterns processes files lock_files lock_holders locks memory
    threads schema doors settings yaml_files image_settings cluster_settings config exact digests
    partitions ranges progress fencing durability manifest classes objects
    sources sources.label_forms sources.labels
    conversion decoding_parts decoding_jpeg decoding_pillow decoding_boxes decoding_png
    decoding_tiff decoding decoders
    sources.kept sources.cursors sources.layout sources.words sources.listing sources.fetch
    sources.tree_layout sources.tree_doubts sources.tree sources.columns
    sources.encoded sources.folder sources.tar_streams sources.tar_members sources.webdataset
    sources.tar sources.list_paths sources.list_columns sources.parquet sources.text_tables
    sources.lists
    sources.given sources.arrays converted packing sources.parts sources.stored_arrays
    sources.array_names sources.numpy_splits sources.numpy_files sources.idx sources.groups
    sources.meaning sources.labelled_parts
    sources.labelled
    sources.torchvision_classes sources.torchvision_splits sources.torchvision datasets
    shards chunked store content recorded results tables completeness checkpoints
    kernels.vectors kernels kernels.cpu kernels.torch
    reduction prototype median distance predictions metrics highlights closeness
    dask_defaults draining cluster_defaults kubernetes_spec cluster_kinds clients worker_signals
    computing profiling adding cluster
    opening origins samples duplicates compaction ingest_plan footprint succession ingest_steps
    appending ingestion
    pictures markup image_set runs plan fit steps verification
    explanation plot_style image_plots result_plots matrix_plots plots
    report_pictures report_content shown_samples report
    job mending repair outlook description grids demo terminal explained cli
"""
ORDER = LAYERS.split()

ONLY_IN = {
    "zarr": {"chunked", "objects"},
    "pyarrow": {
        "tables", "sources.columns", "sources.listing", "sources.lists", "sources.parquet",
        "sources.list_columns", "sources.text_tables",
    },
    "torch": {"kernels.torch"},
    "torchvision": {"sources.torchvision", "sources.torchvision_classes"},
    "numba": {"kernels.cpu", "kernels.vectors"},
    "llvmlite": {"kernels.vectors"},
    "numcodecs": {"shards"},
    "google_crc32c": {"shards"},
    "PIL": {
        "conversion", "decoding_parts", "decoding_jpeg", "decoding_pillow", "decoding_boxes",
        "decoding_png", "decoding_tiff", "decoders", "sources.torchvision_splits", "pictures",
        "grids", "markup", "report_pictures",
    },
    "matplotlib": {
        "plot_style", "image_plots", "result_plots", "matrix_plots", "explained",
        "report_pictures",
    },
    "jinja2": {"report"},
    "cyclopts": {"cli"},
}  # fmt: skip
# what the readers of images use that only some images need, or not every Pillow has
WHEN_NEEDED = {
    "conversion": {"torchvision.transforms.v2"},
    "decoding_jpeg": {"torch", "torchvision.io"},
    "decoding_boxes": {"PIL.AvifImagePlugin"},
}
OPERATIONS = {
    "classes", "reduction", "prototype", "median", "distance", "predictions", "metrics",
    "highlights", "closeness",
}  # fmt: skip


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


def test_every_module_has_its_place():
    assert sorted(modules()) == sorted(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", [name for name in ORDER if name != "cli"])
def test_a_module_imports_only_from_modules_above_it(name):
    above = {f"pipeline.{other}" for other in ORDER[: ORDER.index(name)]}
    mine = {found for found in imported(modules()[name]) if found.split(".")[0] == "pipeline"}
    assert mine <= above, f"{name} imports {sorted(mine - above)}"


def test_the_command_line_goes_through_the_public_names():
    mine = {found for found in imported(modules()["cli"]) if found.split(".")[0] == "pipeline"}
    assert mine == {"pipeline", "pipeline.errors"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_each_heavy_library_has_one_door(library):
    importers = {
        name
        for name, path in modules().items()
        if any(found.split(".")[0] == library for found in imported(path))
    }
    assert importers == ONLY_IN[library]


def test_kernels_know_neither_dask_nor_xarray_nor_paths():
    for name in ("kernels", "kernels.cpu", "kernels.torch"):
        roots = {found.split(".")[0] for found in imported(modules()[name])}
        assert not roots & {"dask", "xarray", "pathlib", "os"}, name


def test_operations_know_no_paths():
    for name in OPERATIONS:
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
    for name in ORDER:
        __import__(f"pipeline.{name}")
    for name in pipeline.__all__:
        assert callable(getattr(pipeline, name)), name


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


def test_modules_loaded_when_needed_keep_to_the_layers_too():
    found = {name: loaded_when_needed(path) for name, path in modules().items()}
    assert found.pop("kernels") == {"pipeline.kernels.cpu", "pipeline.kernels.torch"}
    for name, loaded in found.items():
        above = {f"pipeline.{other}" for other in ORDER[: ORDER.index(name)]}
        assert {m for m in loaded if m.startswith("pipeline")} <= above, name
        others = loaded - WHEN_NEEDED.get(name, set())
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
