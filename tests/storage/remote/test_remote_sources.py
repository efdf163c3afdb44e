"""Images that come from a bucket or from a web server."""

from __future__ import annotations

import contextlib
import http.server
import io
import re
import shutil
import tarfile
import threading
import traceback
import urllib.parse
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from remote_for_tests import PASSWORD, QUERY_TOKEN, Remote, found_secrets, refused
from sources_for_tests import NAMES

import pipeline
from pipeline.core.errors import PixsimError, SourceError


def pack(folder, target, names):
    with tarfile.open(target, "w") as archive:
        for name in names:
            archive.add(folder / name, name)


def labelled_files(folder, split):
    return [
        (path, NAMES.index(path.parent.name)) for path in sorted((folder / split).rglob("*.png"))
    ]


@pytest.fixture(scope="module")
def kinds(pictures, tmp_path_factory):
    """A folder with the same pictures as sources of every kind; kind -> settings."""
    root = tmp_path_factory.mktemp("kinds")
    found = {split: labelled_files(pictures, split) for split in ("train", "test")}
    names = [path.relative_to(pictures).as_posix() for files in found.values() for path, _ in files]
    pack(pictures, root / "set.tar", names)
    for part, start in enumerate(range(0, len(found["train"]), 9)):
        with tarfile.open(root / f"w-{part:04d}.tar", "w") as archive:
            for number, (path, label) in enumerate(found["train"][start : start + 9]):
                for suffix, data in (("png", path.read_bytes()), ("cls", f"{label}".encode())):
                    info = tarfile.TarInfo(f"{start + number:05d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    for split, files in found.items():
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path, _ in files],
            "label": [label for _, label in files],
        }
        pq.write_table(pa.table(columns), root / f"{split}.parquet", row_group_size=10)
        rows = [f"set/{path.relative_to(pictures).as_posix()},{label}" for path, label in files]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    arrays = {
        f"{split}_{what}": np.array(values)
        for split, files in found.items()
        for what, values in {
            "images": [np.array(Image.open(path)) for path, _ in files],
            "labels": [label for _, label in files],
        }.items()
    }
    np.savez_compressed(root / "set.npz", **arrays)
    shutil.copytree(pictures, root / "set")
    both = ("train", "test")
    return root, {
        "folder": {"source": "{root}/set"},
        "tar": {"source": "{root}/set.tar"},
        "webdataset": {"source": "{root}/w-{{0000..0002}}.tar"},
        "pattern": {"source": "{root}/w-*.tar"},
        "parquet": {"splits": {split: "{root}/" + split + ".parquet" for split in both}},
        "list": {"splits": {split: "{root}/" + split + ".csv" for split in both}},
        "npz": {"source": "{root}/set.npz"},
    }


KINDS = ["folder", "tar", "webdataset", "pattern", "parquet", "list", "npz"]


def at(settings, root):
    """Return the settings of a source for a root."""
    if isinstance(settings, dict):
        return {key: at(value, root) for key, value in settings.items()}
    return settings.format(root=root)


@pytest.fixture(scope="module")
def uploaded(server, kinds):
    """The root of the sources in the bucket."""
    there = Remote(*server)
    return there.put(f"{kinds[0]}/", "kinds")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_a_bucket_is_the_one_on_a_disk(kind, kinds, uploaded, remote, tmp_path):
    root, settings = kinds
    here = pipeline.ingest(at(settings[kind], root), tmp_path / "here.zarr", 7)
    images = pipeline.make_images(
        at(settings[kind], uploaded) | {"storage_options": remote.options}
    )
    there = pipeline.ingest(images, tmp_path / "there.zarr", 7)
    assert pipeline.digest(there) == pipeline.digest(here)
    source = pipeline.open_source(images)
    shown = [repr(source), repr(images), str(images.model_dump()), images.model_dump_json()]
    assert not found_secrets("".join(shown) + repr(dict(source.provenance)))
    for path in [item for item in there.rglob("*") if item.is_file()]:
        assert not found_secrets(path.read_bytes().decode("latin-1")), path
    content = str(pq.read_table(there / "samples.parquet").to_pydict())
    assert not found_secrets(content)


class _Web(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of them, to those who know the token or the password."""

    ranges = True
    seen: ClassVar[list] = []
    left: ClassVar[list] = [-1]  # requests until access ends

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        name, _, query = self.path.partition("?")
        self.seen.append((self.command, name))
        self.left[0] -= 1
        token = urllib.parse.parse_qs(query).get("token", [""])[0]
        known = token == QUERY_TOKEN or "Basic" in self.headers.get("Authorization", "")
        if not known or not self.left[0]:
            self.left[0] += not self.left[0]  # from now on
            self.send_error(403)
            return
        file = Path(self.translate_path(name))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.ranges:
            start, stop = int(part[1]), int(part[2] or len(data) - 1) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def web(folder, ranges=True):
    def handler(*arguments):
        return type("Web", (_Web,), {"ranges": ranges})(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site(kinds):
    with web(kinds[0]) as address:
        yield address


@pytest.mark.parametrize("name", ["set.tar", "set.npz", "train.parquet"])
@pytest.mark.parametrize("secret", ["query", "password"])
def test_files_of_the_web_are_those_on_a_disk(name, secret, kinds, site, tmp_path):
    url = f"{site}/{name}?token={QUERY_TOKEN}&x=1"
    if secret == "password":
        user = urllib.parse.quote(PASSWORD, safe="")
        url = f"{site}/{name}".replace("://", f"://somebody:{user}@")
    settings = pipeline.make_images(url)
    there = pipeline.ingest(settings, tmp_path / "there.zarr", 7)
    here = pipeline.ingest(str(kinds[0] / name), tmp_path / "here.zarr", 7)
    assert pipeline.digest(there) == pipeline.digest(here)
    described = repr(pipeline.describe(there)) + repr(settings.model_dump_json())
    assert not found_secrets(described + repr(pipeline.open_source(settings)))
    for path in [item for item in there.rglob("*") if item.is_file()]:
        assert not found_secrets(path.read_bytes().decode("latin-1")), path


def test_a_listing_that_is_kept_holds_no_secret(site, tmp_path):
    url = f"{site}/set.tar?token={QUERY_TOKEN}"
    pipeline.plan_ingest(url, tmp_path / "a.zarr")
    kept = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]
    assert any("listing" in path.parts for path in kept)
    for path in kept:
        assert not found_secrets(path.read_bytes().decode("latin-1")), path


def test_a_web_server_that_refuses_is_named_at_once(site, tmp_path):
    for name in ("set.tar", "set.npz", "train.parquet"):
        _Web.seen.clear()
        wrong = QUERY_TOKEN[::-1]
        with refused(PixsimError, f"{site}/{name}") as caught:
            pipeline.ingest(f"{site}/{name}?token={wrong}", tmp_path / "a.zarr")
        assert wrong not in "".join(traceback.format_exception(caught.value))
        assert len(_Web.seen) < 10


@pytest.mark.parametrize(
    "name",
    ["set.tar", *(pytest.param(n, marks=pytest.mark.slow) for n in ("set.npz", "train.parquet"))],
)
def test_access_that_ends_half_way_is_one_error_without_secrets(site, tmp_path, name):
    found = []
    for requests in range(2, 40):
        _Web.left[0] = requests
        try:
            pipeline.ingest(f"{site}/{name}?token={QUERY_TOKEN}", tmp_path / "a.zarr")
            break
        except PixsimError as error:
            found.append((str(error), repr(error) + "".join(traceback.format_exception(error))))
        finally:
            _Web.left[0] = -1
    assert len(found) > 4
    assert all(site in text for text, _ in found)
    assert not found_secrets(str(found))


def test_a_web_server_without_parts_of_files_is_named(kinds, tmp_path):
    with (
        web(kinds[0], ranges=False) as address,
        refused(SourceError, rf"{address}/set\.tar: this server sends whole files"),
    ):
        pipeline.ingest(f"{address}/set.tar?token={QUERY_TOKEN}", tmp_path / "a.zarr")
