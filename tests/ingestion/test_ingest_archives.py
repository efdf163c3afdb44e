"""One image set as a folder and as archives: the same store, by any reader, broken off or not."""

from __future__ import annotations

import zipfile

import pytest
from image_files_for_tests import make_folder, write_tar, write_zip

import pipeline
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import BadSamplesError
from pipeline.sources.archives import ArchiveFetcher

FORMS = ("folder", "tar", "tgz", "zip", "shards", "tars.zip", "zips.tgz")


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Return one image set in several forms, by name."""
    root = tmp_path_factory.mktemp("forms")
    folder = make_folder(root / "folder")
    pairs = [
        (str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*.png"))
    ]
    splits = {s: [p for p in pairs if p[0].startswith(s)] for s in ("test", "train")}
    (root / "shards").mkdir()
    within = [write_tar(root / f"{s}.tar", some) for s, some in splits.items()]
    for split, some in splits.items():
        for n in range(2):
            write_zip(root / "shards" / f"{split}-{n}.zip", some[n::2])
    zips = [write_zip(root / f"{s}.zip", some, zipfile.ZIP_STORED) for s, some in splits.items()]
    return {
        "folder": folder,
        "tar": write_tar(root / "a.tar", pairs),
        "tgz": write_tar(root / "a.tgz", pairs, "w:gz"),
        "zip": write_zip(root / "a.zip", pairs),
        "shards": root / "shards",
        "tars.zip": write_zip(root / "tars.zip", [(p.name, p.read_bytes()) for p in within]),
        "zips.tgz": write_tar(
            root / "zips.tgz", [(p.name, p.read_bytes()) for p in zips], "w:gz"
        ),
    }  # fmt: skip


def digest_of(store):
    return pipeline.describe(store)["digest"]


@pytest.mark.parametrize("form", FORMS)
def test_the_digest_is_that_of_the_folder_whatever_the_shards(forms, tmp_path, form):
    expected = digest_of(pipeline.ingest(str(forms["folder"]), tmp_path / "folder.zarr"))
    for shard in (4, 1000):
        images = {"source": str(forms[form]), "shard": shard}
        assert digest_of(pipeline.ingest(images, tmp_path / f"{shard}.zarr")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "zips.tgz"])
def test_worker_processes_read_the_same(forms, tmp_path, form):
    images = {"source": str(forms[form]), "shard": 4}
    one = pipeline.ingest(images, tmp_path / "one.zarr")
    two = pipeline.ingest(images, tmp_path / "two.zarr", cluster=ClusterSettings(workers=2))
    assert digest_of(one) == digest_of(two)


@pytest.mark.parametrize("form", ["zip", "tars.zip", "zips.tgz"])
def test_an_ingest_that_broke_off_is_resumed_and_a_damaged_store_is_mended(
    forms, tmp_path, form, monkeypatch
):
    images, store = {"source": str(forms[form]), "shard": 4}, tmp_path / "s.zarr"
    whole = digest_of(pipeline.ingest(images, tmp_path / "whole.zarr"))
    calls, real = [], ArchiveFetcher._fetch_raw

    def failing(self, rows, files, limit):
        calls.append(len(rows))
        if len(calls) == 7:
            raise RuntimeError("the disk made a noise")
        return real(self, rows, files, limit)

    with monkeypatch.context() as patch:
        patch.setattr(ArchiveFetcher, "_fetch_raw", failing)
        with pytest.raises(RuntimeError):
            pipeline.ingest(images, store)
    assert digest_of(pipeline.ingest(images, store)) == whole
    files = (path for path in (store / "train").rglob("*") if path.is_file())
    shard = max(files, key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-3])
    assert pipeline.verify(store)
    pipeline.verify(store, repair=True)
    assert pipeline.verify(store) == []
    assert digest_of(store) == whole


def test_what_cannot_be_read_of_a_zip_archive_is_listed(forms, tmp_path):
    data = bytearray(forms["zip"].read_bytes())
    data[data.index(b"PK\3\4") + 60] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(BadSamplesError, match=r"a\.zip:"):
        pipeline.ingest(str(tmp_path / "a.zip"), tmp_path / "s.zarr")
