"""Files as streams of UTF-8 bytes, whatever their compression and Unicode encoding."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, Any

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_CHUNK = 1 << 20
_LARGEST_WINDOW = 1 << 31  # what `zstd --long=31` needs
# UTF-32's little-endian mark begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file, decompressed as its suffix says; several members or frames are one text."""
    match path.suffix.lower():
        case ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        case ".bz2":
            return bz2.open(path, "rb")
        case ".xz":
            return lzma.open(path, "rb")
        case ".zst":
            return io.BufferedReader(_Zstd(path), _CHUNK)
        case _:
            return open(path, "rb")


def open_text(path: Path) -> IO[bytes]:
    """Opens a text file as UTF-8 bytes without a byte order mark.

    A byte order mark names the encoding and is not text; a file without one is read as UTF-8.
    """
    file = open_binary(path)
    try:
        mark, encoding = next(
            ((mark, name) for mark, name in _MARKS if _starts_with(file, mark)), (b"", "utf-8")
        )
        if encoding != "utf-8":
            return io.BufferedReader(_Recoded(file, encoding), _CHUNK)
        file.read(len(mark))
        return file
    except BaseException:
        file.close()
        raise


def _starts_with(file: Any, mark: bytes) -> bool:
    return bool(file.peek(len(mark))[: len(mark)] == mark)


class _Recoded(io.RawIOBase):
    """The UTF-8 bytes of a file in another encoding."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding, newline="")
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._ready:
            self._ready = memoryview(self._text.read(_CHUNK).encode())
        now, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(now)] = now
        return len(now)

    def close(self) -> None:
        self._text.close()
        super().close()


class _Zstd(io.RawIOBase):
    """The content of all frames of a .zst file.

    The library's own stream reader takes a truncated frame for the end of the file.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._file = open(path, "rb")
        self._library = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
        self._frame = self._library.decompressobj()
        self._begun = False
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._file.read(_CHUNK >> 4)
            if not self._packed:
                if self._begun:
                    raise EOFError("the compressed file ends within a frame")
                return 0
            self._ready = memoryview(self._frame.decompress(self._packed))
            self._begun = True
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame, self._begun = self._library.decompressobj(), False
        now, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(now)] = now
        return len(now)

    def close(self) -> None:
        self._file.close()
        super().close()
