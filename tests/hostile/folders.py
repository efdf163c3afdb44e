"""Folders: good images under strange names, and what is no image file under names of images."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from hostile.cases import small

STRANGE_NAMES = (
    b"a\nb", b"a\rb", b'"quoted"', b"'single'", b"<img src=x onerror=alert(1)>", b"--set", b"-rf",
    b"\xff\xfe", b"\x1b[2J", b"\x1b]0;owned\x07", b"\x7f\x08", b" ", b"a,b;c\td", b"$(id)", b"`id`",
    b"%s%n", b"{0}", b"*?[a]", b"~", b"..a", "\u202egnp".encode(), "\u00e9".encode(),
    "o\u0302".encode(), b"C:\\a", b"NUL", b"x" * 251, b"__proto__",
)  # fmt: skip


def write_strange_names(root: Path) -> int:
    """Write good images under strange names into strangely named classes; return how many."""
    names = [name for name in STRANGE_NAMES if not name.startswith(b".")]
    for number, name in enumerate(names):
        for folder in (b"plain", name):
            path = os.fsencode(root) + b"/train/" + folder
            Path(os.fsdecode(path)).mkdir(parents=True, exist_ok=True)
            Path(os.fsdecode(path + b"/" + name + b".png")).write_bytes(small(number))
    return 2 * len(names)


def write_specials(root: Path) -> dict[str, str]:
    """Write what is no image file under names of images; return what must be said of each."""
    folder = root / "train" / "cat"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"good{number}.png").write_bytes(small(number))
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
    for name, target in {
        "broken": "nowhere",
        "outside": "/etc/passwd",
        "loop": "loop.png",
        "device": "/dev/zero",
        "memory": "/proc/self/mem",
    }.items():
        (folder / f"{name}.png").symlink_to(target)
    (folder / "folder.png").mkdir()
    (folder / "round").symlink_to(root)
    (folder / "empty.png").touch()
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    if os.getuid():
        (folder / "locked.png").write_bytes(small())
        (folder / "locked.png").chmod(0)
    locked = {"locked.png": "Permission denied"} if os.getuid() else {}
    return locked | {
        "pipe.png": "is a pipe",
        "socket.png": "is a socket",
        "broken.png": "is a broken link",
        "outside.png": "begins with",
        "loop.png": "is a broken link",
        "device.png": "is a device",
        "memory.png": "",
        "empty.png": "",
        "sparse.png": "holds 1,099,511,627,776 bytes",
    }
