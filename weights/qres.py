"""Reads Qt binary resource files (`*.rcc`), in which gcompris keeps its pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator


def read_qres(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (path, content) of every file in a Qt binary resource file (`*.rcc`), depth first, in stored order.

    Layout, all big-endian (Qt's `qtbase/src/tools/rcc/rcc.cpp` writes it): magic `qres`; u32 version, offsets of the
    tree, the data and the names, and from version 3 on u32 flags. A node of the tree: u32 name offset, u16 flags, then
    for a folder (flag 2) u32 number of children and u32 index of the first; for a file u16 territory, u16 language,
    u32 data offset; from version 2 on u64 time of change. A name: u16 length, u32 hash, UTF-16. Data: u32 length,
    bytes; with flag 1 those are u32 unpacked length and a zlib stream, with flag 4 a Zstandard frame.

    Raises ValueError for anything that is no such file, or is cut off.
    """
    if blob[:4] != b"qres":
        raise ValueError(f"not a Qt resource file: it starts with {blob[:4]!r}, not with b'qres'")
    try:
        version, tree, data, names = struct.unpack_from(">4I", blob, 4)
        yield from _walk(blob, version, tree, data, names)
    except (struct.error, zlib.error, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"damaged Qt resource file: {error}") from error


def _walk(blob: bytes, version: int, tree: int, data: int, names: int) -> Iterator[tuple[str, bytes]]:
    node_size = 14 + (8 if version >= 2 else 0)

    def name(offset: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + offset)
        return _slice(blob, names + offset + 6, 2 * length).decode("utf-16-be")

    def visit(index: int, folder: str, depth: int) -> Iterator[tuple[str, bytes]]:
        at = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", blob, at)
        path = folder if index == 0 else f"{folder}/{name(name_offset)}"
        if flags & 2:
            if depth > 64:
                raise ValueError("damaged Qt resource file: folders nest without end")
            count, first = struct.unpack_from(">II", blob, at + 6)
            for child in range(first, first + count):
                yield from visit(child, path, depth + 1)
            return
        (offset,) = struct.unpack_from(">I", blob, at + 10)
        (length,) = struct.unpack_from(">I", blob, data + offset)
        content = _slice(blob, data + offset + 4, length)
        if flags & 1:
            content = zlib.decompress(content[4:])
        elif flags & 4:
            content = _zstd(content)
        yield path, content

    yield from visit(0, "", 0)


def _slice(blob: bytes, start: int, length: int) -> bytes:
    part = blob[start : start + length]
    if len(part) != length:
        raise ValueError(f"damaged Qt resource file: {length} bytes wanted at {start}, it has {len(blob)}")
    return part


def _zstd(content: bytes) -> bytes:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        try:
            import zstandard  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            raise ValueError("a block packed with Zstandard needs `pip install zstandard`") from None
        return bytes(zstandard.ZstdDecompressor().decompressobj().decompress(content))
    return bytes(zstd.decompress(content))
