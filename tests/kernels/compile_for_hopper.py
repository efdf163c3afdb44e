"""Compile every kernel for an H100, which needs no GPU; print what of registers did not fit.

Run by `test_triton_compiled` in a process of its own, in which Triton does not interpret.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipeline.core.accumulators import CHUNK, DEPTH
from pipeline.kernels import triton as sweeps
from pipeline.kernels import triton_sums as sums
from pipeline.kernels import triton_tiles as tiles

PIXELS = {"u8": "*u8", "u16": "*u16"}
OPTIONS = ("num_warps", "num_stages")
# numbers that are multiples of 16 where images are laid out for it
EVEN = {"words", "plane_words", "chunk", "x_step", "y_step", "depth", "x_row", "y_row"}


def variants():
    """Yield name, kernel, types of arguments, what is compiled in, and how."""
    for bits, image in PIXELS.items():
        given = {"images": image, "order": "*i64", "edges": "*i64", "sums": "*i64",
                 "squares": "*i64"}  # fmt: skip
        yield f"sums of {bits}", sums._add_classes, given, {"WIDE": bits == "u16", **sums.SUMS}
        given = {"images": image, "positions": "*i64", "high": "*u8", "counts": "*i32"}
        shift = 0 if bits == "u8" else 8
        for low in (False, True):
            chosen = {"LOW": low, "SHIFT": shift, **sums._COUNTS}
            yield f"counts of {bits}, {low=}", sums._count_values, given, chosen
        given = {"images": image, "limbs": "*i64", "denominators": "*i64", "out": "*i64",
                 "squares": "*i64"}  # fmt: skip
        chosen = {"L1": True, "L2": True, "ONE": bits == "u8", **sweeps._WIDE}
        yield f"wide sweep of {bits}", sweeps._measure_wide, given, chosen
    for pairs, one, out in ((1, True, "*i32"), (1, False, "*i32"), (2, False, "*i64")):
        given = {"images": "*i32", "planes": "*i32", "denominators": "*i64", "out": out,
                 "squares": "*i64"}  # fmt: skip
        chosen = {"L1": True, "L2": True, "PAIRS": pairs, "ONE": one, "ASM": True, **sweeps.BYTES}
        yield f"sweep, {pairs=}, {one=}", sweeps._measure_bytes, given, chosen
    yield from _searches()


def _searches():
    common = {"GROUP": tiles.GROUP, "ASM": True}
    for squared, halves, wide in (
        (False, False, False), (False, False, True), (False, True, False), (True, True, True),
    ):  # fmt: skip
        given = {"x": "*i64", "y": "*i64", "skip": "*i64", "far": "i64",
                 "minima": "*i64" if wide else "*i32"}  # fmt: skip
        chosen = {"SQUARED": squared, "HALVES": halves, "WIDE": wide, "BAND": tiles._BAND,
                  "UNROLLED": tiles.UNROLLED, **common}  # fmt: skip
        chosen |= tiles._WIDE_DIFFERENCES if wide or halves else tiles.DIFFERENCES
        name = f"tile of differences, {squared=}, {halves=}, {wide=}"
        yield name, tiles._tile_differences, given, chosen
    for wide in (False, True):
        given = {"x": "*i8", "y": "*i8", "x_norms": "*i64", "y_norms": "*i64", "skip": "*i64",
                 "far": "i64", "minima": "*i64" if wide else "*i32"}  # fmt: skip
        chosen = {"WIDE": wide, "DEPTH": DEPTH, "GROUP": tiles.GROUP, "BAND": tiles._BAND}
        chosen |= tiles._WIDE_PRODUCTS if wide else tiles.PRODUCTS
        yield f"tile of products, {wide=}", tiles._tile_products, given, chosen
    for squared, halves, flipped in ((False, False, False), (True, False, True),
                                     (False, True, False), (True, True, False)):  # fmt: skip
        given = {"x": "*i64", "y": "*i64", "first": "*i64", "second": "*i64", "skip": "*i64",
                 "far": "i64", "out": "*i64"}  # fmt: skip
        chosen = {"SQUARED": squared, "HALVES": halves, "FLIPPED": flipped, "SIGNS": tiles._SIGNS,
                  "CHUNK": CHUNK // tiles.WORD, **common, **tiles._PAIRS}  # fmt: skip
        yield f"pairs, {squared=}, {halves=}", tiles._compare_pairs, given, chosen


def compile_one(kernel, given, chosen):
    """Return machine code for an H100."""
    options = {key: chosen[key] for key in OPTIONS if key in chosen}
    compiled_in = {key: value for key, value in chosen.items() if key in kernel.arg_names}
    types, even = {}, {}
    for at, name in enumerate(kernel.arg_names):
        types[name] = "constexpr" if name in compiled_in else given.get(name, "i32")
        if types[name].startswith("*") or name in EVEN:
            even[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, compiled_in, even)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


def stack_bytes(code: bytes) -> int:
    """Return the bytes of registers that a kernel keeps in memory instead; 0 where none tells."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.exists():
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        words = [str(program), "--dump-resource-usage", str(path)]
        said = subprocess.run(words, capture_output=True, text=True).stdout
    return max(map(int, re.findall(r"STACK:(\d+)", said)), default=0)


if __name__ == "__main__":
    for name, kernel, given, chosen in variants():
        stack = stack_bytes(compile_one(kernel, given, chosen))
        print(f"{stack} {name}", flush=True)  # noqa: T201
