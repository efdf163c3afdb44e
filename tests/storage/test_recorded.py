"""Stores and runs that exist stay readable: some written by an earlier version, kept as they were.

`data/recorded.tar.xz` holds what pixsim 0.1.0 wrote, with format 2 of its manifests, with two
classes of images of 4 x 4 pixels in shards of two:

- `plain.zarr`, 5 training and 3 test images, and `run`, made on it: l1 and l2, distances written;
- `compacted.zarr`, the same images less one that could not be used;
- `appending.zarr`, the same images, and an append of 4 more that was killed before its commit.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from sources_for_tests import Faulty

import pipeline
from pipeline.cli import main
from pipeline.core.errors import ConflictError
from pipeline.execution.progress import LogReporter
from pipeline.sources.arrays import from_arrays
from pipeline.storage import manifest

ARCHIVE = Path(__file__).parent / "data" / "recorded.tar.xz"
NAMES = ("cat", "dog")
SHARD = 2
DIGESTS = {
    "plain.zarr": "ffac1257cc16d122a771e0b016ddd391b077b343fb04ee941d48cdfe5007f595",
    "compacted.zarr": "0af63529b48a486931e965dd65b6661149afeae7bfb45815e209d9eeb658532e",
    "appending.zarr": "ffac1257cc16d122a771e0b016ddd391b077b343fb04ee941d48cdfe5007f595",
    "run": "c2f406501288fc4acf823a46223b86693dfd35c3a3a57f2c99e5349f63a9ee2e",
}


def _arrays(counts, seed):
    rng = np.random.default_rng(seed)
    return {
        split: (
            rng.integers(0, 256, (count, 4, 4), np.uint8),
            np.arange(count, dtype=np.int32) % len(NAMES),
        )
        for split, count in counts.items()
    }


BASE, MORE = _arrays({"train": 5, "test": 3}, 1), _arrays({"train": 2, "test": 2}, 2)
BAD = ("train", 1)
GROWN = {
    split: tuple(map(np.concatenate, zip(BASE[split], MORE[split], strict=True))) for split in BASE
}


@pytest.fixture
def recorded(tmp_path):
    """The recorded folders, unpacked for a test to write to."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def _state(path):
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


def _holds(path, arrays):
    return all(
        np.array_equal(pipeline.open_images(path, split)[name].values, values)
        for split, pair in arrays.items()
        for name, values in zip(("image", "label"), pair, strict=True)
    )


def _job(folder):
    return pipeline.make_job(
        {
            "name": "pets", "images": str(folder / "plain.zarr"), "output": str(folder / "run"),
            "distances": "write", "report": False, "metrics": ["l1", "l2"],
        }
    )  # fmt: skip


@pytest.mark.parametrize("name", DIGESTS)
def test_a_recorded_folder_has_the_digest_that_it_had(recorded, name):
    before = _state(recorded / name)
    assert list(pipeline.digest(recorded / name).values())[-1] == DIGESTS[name]
    assert pipeline.describe(recorded / name)
    assert _state(recorded / name) == before


@pytest.mark.parametrize("name", sorted(DIGESTS.keys() - {"appending.zarr"}))
def test_a_recorded_folder_verifies(recorded, name, capsys):
    assert main(["verify", str(recorded / name)]) == 0
    assert "is whole" in capsys.readouterr().out


def test_its_images_are_those_that_were_written(recorded):
    assert _holds(recorded / "plain.zarr", BASE)
    assert _holds(recorded / "appending.zarr", BASE)
    assert _holds(recorded / "compacted.zarr", Faulty(BASE, {BAD}, names=NAMES).good())


def test_the_same_ingest_recognises_a_recorded_store(recorded):
    for name, source in (
        ("plain.zarr", from_arrays(BASE, NAMES)),
        ("compacted.zarr", Faulty(BASE, {BAD}, names=NAMES)),
    ):
        before, said = _state(recorded / name), io.StringIO()
        pipeline.ingest(source, recorded / name, SHARD, reporter=LogReporter(said), max_bad=1)
        assert "complete already" in said.getvalue()
        assert _state(recorded / name) == before
    with pytest.raises(ConflictError, match="holds another image set"):
        pipeline.ingest(from_arrays(MORE, NAMES), recorded / "plain.zarr", SHARD)


def test_a_run_is_opened_and_recognised_as_finished(recorded):
    before, said = _state(recorded / "run"), io.StringIO()
    run = pipeline.run_job(_job(recorded), LogReporter(said))
    assert "complete already" in said.getvalue()
    assert _state(recorded / "run") == before
    assert len(run.predictions.compute()) == 2 * len(BASE["test"][0])
    assert run.distances.shape == (2, len(BASE["test"][0]), len(NAMES))
    # the same job on the same images by the code of now
    again = pipeline.run_job(_job(recorded).model_copy(update={"output": recorded / "again"}))
    assert pipeline.digest(again.path) == pipeline.digest(recorded / "run")


@pytest.mark.parametrize("name", ["plain.zarr", "appending.zarr"])
def test_images_are_appended_to_a_recorded_store(recorded, name):
    path = recorded / name
    pipeline.ingest(from_arrays(MORE, NAMES), path, SHARD, append=True)
    assert _holds(path, GROWN)
    assert not pipeline.verify(path)
    made = pipeline.ingest(from_arrays(GROWN, NAMES), recorded / "made.zarr", SHARD)
    assert pipeline.digest(path) == pipeline.digest(made)
    assert not (path / ".append").exists()


def test_damage_to_a_recorded_run_is_repaired(recorded):
    before = _state(recorded / "run")
    content = manifest.read_manifest(recorded / "run", manifest.RUN)
    content["images"]["path"] = str(recorded / "plain.zarr")  # it was moved
    manifest.put_manifest(recorded / "run", content)
    (recorded / "run" / "predictions" / "part-000000.parquet").write_bytes(b"torn")
    assert main(["verify", str(recorded / "run")]) == 1
    pipeline.verify(recorded / "run", repair=True)
    assert not pipeline.verify(recorded / "run")
    assert pipeline.digest(recorded / "run")["run"] == DIGESTS["run"]
    assert set(_state(recorded / "run")) == set(before)
