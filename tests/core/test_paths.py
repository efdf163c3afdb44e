"""Paths and URLs: what a text names, what opens it, and what is never shown."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from stores_for_tests import memory
from upath import UPath

from pipeline.core import errors, paths
from pipeline.core.errors import ConfigError, RemoteError, StoreError
from pipeline.core.paths import locate, shown
from pipeline.storage import atomic

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"


@pytest.fixture(autouse=True)
def _nothing_concealed(monkeypatch):
    monkeypatch.setattr(errors, "_secrets", frozenset())


def test_texts_and_paths_name_places(tmp_path):
    assert locate("data/set") == Path("data/set")
    assert locate(str(tmp_path)) == locate(tmp_path) == locate(f"file://{tmp_path}") == tmp_path
    assert not paths.is_remote(locate("a:b/c"))
    remote = memory()
    assert paths.is_remote(remote)
    assert locate(remote) == remote
    assert remote.absolute() == remote


def test_a_place_travels_with_its_options():
    path = locate("memory://bucket/a", {"skip_instance_cache": True, "label": "x"})
    again = pickle.loads(pickle.dumps(path / "b"))
    assert str(again) == "memory://bucket/a/b"
    assert paths.options_of(again) == {"skip_instance_cache": True, "label": "x"}
    assert hash(again) == hash(path / "b")
    assert paths.options_of(Path("x")) == {}


@pytest.mark.parametrize(("protocol", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_package_is_named_with_what_installs_it(protocol, package, monkeypatch):
    for name in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RemoteError, match=rf"{protocol}://.*pip install {package}"):
        locate(f"{protocol}://container/a")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(RemoteError, match="nonsense://a/b"):
        locate("nonsense://a/b")


@pytest.mark.parametrize(("url", "text"), [
    ("s3://bucket/a/b", "s3://bucket/a/b"),
    ("s3://bucket/image?.png", "s3://bucket/image?.png"),
    ("https://user:pass@host:80/a?sig=x&y=z", "https://host:80/a"),
    ("https://host/a@b/c", "https://host/a@b/c"),
    ("sftp://user@host/a", "sftp://host/a"),
    ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
    ("zip://a/b.png::https://u:p@host/x.zip?token=1", "zip://a/b.png::https://host/x.zip"),
    ("data/what?/a@b", "data/what?/a@b"),
])  # fmt: skip
def test_a_place_is_shown_without_user_password_and_query(url, text):
    assert shown(url) == text


@pytest.mark.parametrize("options", [
    {"key": SECRET},
    {"secret": SECRET},
    {"client_kwargs": {"aws_secret_access_key": SECRET}},
    {"connection_string": f"AccountName=a;AccountKey={SECRET};EndpointSuffix=b"},
    {"headers": {"Authorization": f"Bearer {SECRET}"}},
    {"proxies": [f"http://user:{SECRET.replace('/', '%2F')}@proxy:80"]},
    {"something_new": SECRET},
])  # fmt: skip
def test_what_is_secret_of_options_is_hidden_everywhere(options, tmp_path):
    path = locate("memory://bucket/a", options)
    texts = [str(path), repr(path), repr(path / "b"), str(StoreError(f"{path}: {SECRET}"))]
    texts += [repr(ConfigError(SECRET)), errors.printable(f"a {SECRET} b"), errors.hide(SECRET)]
    atomic.write_json(tmp_path / "a.json", {"x": [SECRET, {"y": f"-{SECRET}-"}]})
    texts.append((tmp_path / "a.json").read_text())
    encoded = SECRET.replace("/", "%2F").replace("+", "%2B")
    texts.append(errors.hide(f"https://host/?q={encoded}&r={SECRET}"))
    for text in texts:
        assert SECRET not in text
        assert encoded not in text
    assert errors.hide("a b") == "a b"


def test_what_is_secret_of_a_url_is_hidden_and_its_path_is_bare():
    password = SECRET.replace("/", "%2F")
    url = f"https://somebody:{password}@host.example/a/b.zip?X-Amz-Signature=0f1e2d3c"
    path = locate(url)
    assert str(path) == "https://host.example/a/b.zip"
    text = errors.hide(f"{url} {SECRET} 0f1e2d3c somebody")
    assert not [word for word in (SECRET, "0f1e2d3c", "somebody") if word in text]
    assert "host.example/a/b.zip" in text


def test_harmless_options_and_words_stay_readable(tmp_path):
    options = {
        "endpoint_url": "http://127.0.0.1:9000", "anon": False, "token": "anon", "key": "abc",
        "client_kwargs": {"region_name": "us-east-1", "verify": True}, "secret": "test",
        "config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "virtual"}},
    }  # fmt: skip
    locate("memory://bucket/a?version=1234", options)
    text = "us-east-1 http://127.0.0.1:9000 anon true abc virtual s3v4 latest tests 1234"
    assert errors.hide(text) == text
    assert errors.hide("key test.") == "key ***."  # a short secret, as a whole word
    # but what is stored must stay what it is: splits are named like that
    record = {"splits": ["test", "train"], "digest": "0a" * 32}
    atomic.write_json(tmp_path / "a.json", record)
    assert atomic.read_json(tmp_path / "a.json") == record


def test_secrets_are_hidden_with_quotes_and_letters_that_json_spells_otherwise(tmp_path):
    secret = 'pass"word\\ü-long'
    locate("memory://bucket/a", {"password": secret})
    atomic.write_json(tmp_path / "a.json", {"x": f"a {secret} b"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": "a *** b"}
    assert errors.hide(json.dumps({"x": secret})) == '{"x": "***"}'


def test_a_process_that_is_sent_a_place_hides_its_secrets_too(tmp_path):
    packed = tmp_path / "place"
    packed.write_bytes(pickle.dumps(locate("memory://bucket/a", {"secret": SECRET})))
    script = (
        "import pickle, pathlib, sys; from pipeline.core.errors import StoreError;"
        f"path = pickle.loads(pathlib.Path({str(packed)!r}).read_bytes());"
        "print(path, repr(path), StoreError(path.storage_options['secret']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(paths.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert "memory://bucket/a" in done.stdout, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "***" in done.stdout


def test_an_error_of_a_remote_place_shows_no_cause():
    with pytest.raises(RemoteError) as caught, paths.remote_errors("s3://bucket/a"):
        raise OSError(errno.EIO, SECRET)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_path_that_the_user_made_is_taken_with_its_options():
    path = locate(UPath("memory://bucket/a", secret=SECRET, label="x"), {"label": "y"})
    assert str(path) == "memory://bucket/a"
    assert paths.options_of(path) == {"secret": SECRET, "label": "y"}
    assert errors.hide(SECRET) == "***"


def test_query_and_password_of_a_web_address_open_it_as_options():
    path = locate("https://me:p%40ss@host:81/x.tar.gz?sig=a%2Fb&n=1", {"headers": {"A": "b"}})
    assert (str(path), path.name, path.suffix) == ("https://host:81/x.tar.gz", "x.tar.gz", ".gz")
    assert paths.options_of(path) == {
        "params": "sig=a%2Fb&n=1", "headers": {"Authorization": "Basic bWU6cEBzcw==", "A": "b"},
    }  # fmt: skip
    again = pickle.loads(pickle.dumps(path.parent / "y"))
    assert str(again) == "https://host:81/y"
    assert paths.options_of(again) == paths.options_of(path)
    assert "bWU6cEBzcw==" not in errors.hide("Basic bWU6cEBzcw==")
