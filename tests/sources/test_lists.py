"""Lists of image files: columns, places, and what a list from elsewhere may not name."""

from __future__ import annotations

import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import grey, put, remote, write_files

from pipeline.core.blocks import UNREADABLE
from pipeline.core.errors import ConfigError, RemoteError, SourceError
from pipeline.sources import notes, sample_index
from pipeline.sources.encoded import open_encoded
from pipeline.sources.fetch import host_of
from pipeline.sources.lists import ListReader
from pipeline.storage import blobs

__all__ = ["remote"]


def opened(tmp_path, path, columns=None, root=None, **options):
    reader = ListReader({None: [path]}, columns or {}, root=root, **options)
    return open_encoded(reader, tmp_path / "listing")


def values(source, split="train"):
    block = source.read(split, 0, source.splits()[split].count)
    assert block.problems == {}
    return block.images[:, 0, 0].tolist()


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    return write_files(folder, {f"{n}.png": (None, grey(n)) for n in range(10)})


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("path,label\n3.png,b\n1.png,a\n3.png,b\n", None),
        ("label;file\r\nb;3.png\r\na;1.png\r\nb;3.png\r\n", None),
        ("id\tfilename\tclass\n0\t3.png\tb\n1\t1.png\ta\n2\t3.png\tb", None),
        ("\ufeffname,category\n3.png,b\n1.png,a\n./3.png,b\n", None),
        ('"image","target"\n"3.png","b"\n"1.png","a"\n"3.png","b"\n', None),
        ("name,label,a,b\nx,y,3.png,b\nx,y,1.png,a\nx,y,3.png,b\n", {"path": "a", "label": "b"}),
    ],
)  # fmt: skip
def test_columns_have_usual_names_or_given_ones_and_the_order_stays(tmp_path, root, text, columns):
    source = opened(tmp_path, put(root / "list.csv", text), columns)
    assert values(source) == [3, 1, 3]
    assert source.class_names == ("a", "b")
    assert source.read("train", 0, 3).labels.tolist() == [1, 0, 1]


def test_splits_stand_in_the_order_of_their_first_appearance(tmp_path, root):
    rows = [(7, "test"), (1, "train"), (3, ""), (2, "test"), (5, "dev")]
    text = "path,split\n" + "".join(f"{n}.png,{split}\n" for n, split in rows)
    source = opened(tmp_path, put(root / "list.csv", text), split="rest")
    assert list(source.splits()) == ["test", "train", "rest", "dev"]
    assert [values(source, s) for s in source.splits()] == [[7, 2], [1], [3], [5]]
    reader = ListReader({"all": [root / "list.csv"]})
    assert list(open_encoded(reader, tmp_path / "l").splits()) == ["all"]


def test_a_parquet_list_may_have_any_type_of_text_and_integers(tmp_path, root):
    paths = [f"{n}.png" for n in range(10)]
    for column in (
        pa.array(paths),
        pa.array(paths, pa.large_string()),
        pa.array(paths).dictionary_encode(),
        pa.array([path.encode() for path in paths]),
    ):
        table = pa.table({"file": column, "label": pa.array(range(10), pa.uint8())})
        pq.write_table(table, root / "list.parquet", row_group_size=3)
        source = opened(tmp_path, root / "list.parquet")
        assert values(source) == list(range(10))
        assert source.read("train", 0, 10).labels.tolist() == list(range(10))


def test_names_may_hold_commas_newlines_and_bytes_that_are_no_text(tmp_path, root):
    names = [b"a,b.png", b'say "x".png', b"two\nlines.png", b"\xff.png"]
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(root), name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(grey(number))
    rows = [b'"' + name.replace(b'"', b'""') + b'"\n' for name in names]
    source = opened(tmp_path, put(root / "list.csv", b"path\n" + b"".join(rows)))
    assert values(source) == [0, 1, 2, 3]
    assert source.read("train", 3, 4).origins == ["\\xff.png"]


def test_a_list_of_this_machine_may_name_any_file_and_urls(tmp_path, root, remote):
    write_files(remote, {"1.png": (None, grey(42))})
    (tmp_path / "up.png").write_bytes(grey(43))
    names = [str(root / "1.png"), "../up.png", "memory://bucket/set/1.png", f"file://{root}/2.png"]
    source = opened(tmp_path, put(root / "list.csv", "path\n" + "\n".join(names)))
    assert values(source) == [1, 43, 42, 2]
    assert source.read("train", 2, 3).origins == ["memory://bucket/set/1.png"]


def test_paths_are_relative_to_the_root_given(tmp_path, root, remote):
    write_files(remote, {"1.png": (None, grey(42))})
    path = put(tmp_path / "list.csv", "path\n1.png\n")
    assert values(opened(tmp_path, path, root=root)) == [1]
    assert values(opened(tmp_path, path, root=remote)) == [42]


@pytest.mark.parametrize("local_root", [False, True])
def test_a_list_from_elsewhere_does_not_reach_into_this_machine(tmp_path, root, remote, local_root):
    secret = tmp_path / "secret.png"
    secret.write_bytes(grey(99))
    write_files(remote, {"1.png": (None, grey(1))})
    names = [
        "1.png", str(secret), f"file://{secret}", f"FILE://{secret}", "../secret.png",
        f"local://{secret}", f"simplecache::file://{secret}", f"a/../../{secret.name}",
        f"memory://x::file://{secret}", f"file:{secret}", f"reference://{secret}",
        f"filecache://{secret}", f"dir://{secret}",
    ]  # fmt: skip
    path = put(remote / "list.csv", "path\n" + "\n".join(names))
    source = opened(tmp_path, path, root=root if local_root else None)
    block = source.read("train", 0, len(names))
    assert list(block.problems) == list(range(1, len(names)))
    assert {p.status for p in block.problems.values()} == {UNREADABLE}
    assert block.images[0].all()
    assert not block.images[1:].any()


def test_a_list_from_elsewhere_may_name_urls(tmp_path, remote):
    write_files(remote, {"1.png": (None, grey(1))})
    path = put(remote / "list.csv", "path\nmemory://bucket/set/1.png\n1.png\n")
    assert values(opened(tmp_path, path)) == [1, 1]


def test_what_opens_one_host_is_not_sent_to_another():
    assert host_of("https://a.org/x/list.csv") == host_of("https://a.org/y.png")
    assert host_of("https://a.org/x") != host_of("https://a.org.evil.com/x")
    assert host_of("https://a.org/x") != host_of("http://a.org/x")


def test_queries_and_passwords_are_not_shown(tmp_path, root):
    text = "path\n1.png\nftp://me:secret@host/1.png?key=secret\n"
    block = opened(tmp_path, put(root / "list.csv", text)).read("train", 0, 2)
    assert block.origins == ["1.png", "ftp://host/1.png"]
    assert "secret" not in block.problems[1].detail


def test_the_signature_of_a_url_is_not_shown_when_its_server_fails(tmp_path, root, monkeypatch):
    path = put(root / "list.csv", "path\n1.png\nhttp://127.0.0.1:9/1.png?sig=abcdefgh\n")
    source = ListReader({None: [path]})
    monkeypatch.setattr(blobs, "FIRST_PAUSE_SECONDS", 0)
    with pytest.raises(RemoteError) as caught:
        open_encoded(source, tmp_path / "listing")
    assert "127.0.0.1:9/1.png" in str(caught.value)
    assert "abcdefgh" not in str(caught.value)


def test_missing_files_folders_and_empty_paths_are_listed(tmp_path, root):
    (root / "folder.png").mkdir()
    text = "path,label\n1.png,a\ngone.png,a\n,a\nfolder.png,a\nx\0.png,a\n"
    block = opened(tmp_path, put(root / "list.csv", text)).read("train", 0, 5)
    assert {n: p.detail for n, p in block.problems.items()} == {
        1: "no such file",
        2: "has no path",
        3: "is a folder, expected a file",
        4: "is no path: it holds a NUL",
    }


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", SourceError, "is empty"),
        ("a,b\n1,2\n", ConfigError, "has no column path, file, .* but a, b"),
        ("path,label\n1.png\n", SourceError, "is no proper CSV table"),
        ("path,label\n", SourceError, "holds no samples"),
    ],
)
def test_a_table_that_is_no_list_is_refused(tmp_path, root, text, error, message):
    with pytest.raises(error, match=message):
        opened(tmp_path, put(root / "list.csv", text))


def test_a_column_that_is_not_there_is_refused_with_the_nearest(tmp_path, root):
    path = put(root / "list.csv", "path,label\n1.png,a\n")
    with pytest.raises(ConfigError, match="no column 'labels' for the label; did you mean 'label'"):
        opened(tmp_path, path, {"label": "labels"})
    with pytest.raises(SourceError, match=r"gone\.csv: is not there"):
        opened(tmp_path, root / "gone.csv")


@pytest.mark.slow
def test_a_long_list_takes_no_more_memory_than_a_short_one(tmp_path, root):
    def peak(count):
        rows = "".join(f"memory://bucket/{n}.png,{n % 10}\n" for n in range(count))
        path = put(root / "list.csv", "path,label\n" + rows)
        del rows
        tracemalloc.start()
        pool = pa.total_allocated_bytes()
        with sample_index.writing(tmp_path / "listing") as writer:
            for split, batch in ListReader({None: [path]}).batches(notes.Notes()):
                writer.add(split, batch)
            writer.finish("list", notes.Notes())
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sample_index.index(tmp_path / "listing")["splits"] == [["train", count]]
        assert pa.total_allocated_bytes() - pool < 2**24
        return most

    few = peak(20_000)
    assert peak(100_000) < 1.5 * few


def test_several_lists_have_their_own_folders(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        write_files(tmp_path / name, {"x.png": (None, grey(value))})
        put(tmp_path / name / "list.csv", "path\nx.png\n")
    reader = ListReader({"train": [tmp_path / "a" / "list.csv", tmp_path / "b" / "list.csv"]})
    assert values(open_encoded(reader, tmp_path / "listing")) == [1, 2]


def test_a_changed_image_changes_the_provenance(tmp_path, root):
    path = put(root / "list.csv", "path\n1.png\n")
    before = opened(tmp_path, path).provenance
    assert opened(tmp_path, path).provenance == before
    (root / "1.png").write_bytes(grey(1) + b"more")
    assert opened(tmp_path, path).provenance != before


@pytest.mark.parametrize(
    "content", ["7\n3\n7\n5\n", "\ufeff7\r\n3\r\n7\r\n5", "class\n7\n3\n7\n5\n"]
)
def test_labels_alone_are_those_of_the_images_of_a_folder_by_their_names(tmp_path, content):
    root = write_files(tmp_path / "val", {f"{n}.png": (None, grey(n)) for n in range(4)})
    path = put(tmp_path / "truth.txt", content)
    with pytest.raises(ConfigError, match=r"single value on each line, .*say root=FOLDER"):
        opened(tmp_path, path)
    source = opened(tmp_path, path, root=root)
    assert values(source) == [0, 1, 2, 3]
    assert source.class_names == ("3", "5", "7")
    assert source.read("train", 0, 4).labels.tolist() == [2, 0, 2, 1]
    assert "holds labels alone, for the images in" in source.remarks[0]
    with pytest.raises(SourceError, match="has 2 lines of labels alone, for 4 images"):
        opened(tmp_path, put(path, "7\n3\n"), root=root)
