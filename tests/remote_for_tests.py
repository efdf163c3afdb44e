"""What tests of URLs share: secrets, weather, a bucket for each, and what is put into it."""

from __future__ import annotations

import contextlib
import pickle
import traceback
import urllib.parse

import pytest
from object_store import BUCKET, KEY, SECRET
from sources_for_tests import make_arrays

import pipeline
from pipeline.core import paths

TOKEN = "pixsim/session+token=of&tests"
QUERY_TOKEN = "query-token-0f-tests"
PASSWORD = "pa55word/of tests"
SECRETS = [
    spelling
    for secret in (KEY, SECRET, TOKEN, QUERY_TOKEN, PASSWORD)
    for spelling in (secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""))
]
# what becomes of one request after the other, again and again
STORM = [
    *["ok"] * 7,
    503,
    *["ok"] * 9,
    500,
    *["ok"] * 11,
    "dropped",
    *["ok"] * 13,
    "slow",
    503,
    503,
]
ARRAYS = make_arrays({"train": 21, "test": 9})
SHARD = 8


def found_secrets(text):
    return sorted({secret for secret in SECRETS if secret in text})


class Remote:
    """A bucket of its own for a test; `url("a")` is a place in it."""

    number = 0

    def __init__(self, weather, options):
        Remote.number += 1
        self.weather, self.options = weather, options
        self.folder = f"{BUCKET}/{Remote.number}"
        self.files = paths.locate(f"s3://{self.folder}", options).fs

    def url(self, name):
        return f"s3://{self.folder}/{name}"

    def put(self, folder, name):
        self.files.put(str(folder), f"{self.folder}/{name}", recursive=True)
        return self.url(name)

    def copy_of(self, url):
        """Copy a folder of the bucket into the place of this test."""
        name, old = url.rpartition("/")[2], url.removeprefix("s3://")
        self.files.copy(old, f"{self.folder}/{name}", recursive=True)
        return self.url(name)

    def names(self, place=""):
        start = len(self.folder) + 1
        self.files.invalidate_cache()
        return [name[start:] for name in self.files.find(f"{self.folder}/{place}".rstrip("/"))]


@contextlib.contextmanager
def refused(kind, match):
    """Expect an error that tells what to do, and in which no secret is seen."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    error = caught.value
    texts = [str(error), repr(error), "".join(traceback.format_exception(error))]
    error.__context__ = None  # as an error leaves a worker; dask would send it along
    again = pickle.loads(pickle.dumps(error))
    assert not found_secrets("".join([*texts, str(again), repr(again)]))


def job(images, store, output, **settings):
    content = {"source": str(images), "store": str(store), "shard": 5}
    return pipeline.make_job(
        {"name": "r", "images": content, "output": str(output), "distances": "write", **settings}
    )
