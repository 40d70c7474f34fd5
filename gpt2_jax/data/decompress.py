"""Files as streams of UTF-8 bytes, whatever their compression and Unicode encoding."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable
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
            return _framed(path, bz2.BZ2Decompressor, _at_most_a_chunk)
        case ".xz":
            return _framed(path, lzma.LZMADecompressor, _at_most_a_chunk)
        case ".zst":
            import zstandard

            library = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW)
            return _framed(path, library.decompressobj, lambda frame, data: frame.decompress(data))
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


def _framed(path: Path, new: Callable[[], Any], unpack: Callable[[Any, bytes], bytes]) -> IO[bytes]:
    return io.BufferedReader(_Frames(path, new, unpack), _CHUNK)


def _at_most_a_chunk(frame: Any, data: bytes) -> bytes:
    """Unpacks so much at a time that a file of one repeated character needs no more memory."""
    return bytes(frame.decompress(data, _CHUNK))


class _Frames(io.RawIOBase):
    """The content of all frames (of bz2 and xz: streams) of a compressed file.

    The readers of the libraries take a truncated zstd frame, or a damaged second stream of bz2 or
    xz, for the end of the file.

    Args:
      new: returns a decompressor of one frame. unpack: passes it bytes, and returns the text's.
    """

    def __init__(
        self, path: Path, new: Callable[[], Any], unpack: Callable[[Any, bytes], bytes]
    ) -> None:
        self._file = open(path, "rb")
        self._new, self._unpack = new, unpack
        self._frame = new()
        self._n_frames, self._begun = 0, False
        self._packed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._feed():
                return 0
        now, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(now)] = now
        return len(now)

    def _feed(self) -> bool:
        """Unpacks the next bytes of the file; returns whether there were any.

        Raises:
          EOFError: if the file ends within a frame.
        """
        if getattr(self._frame, "needs_input", True):  # else it holds back part of the text
            self._packed = self._packed or self._file.read(_CHUNK >> 4)
            if self._n_frames and not self._begun:
                self._packed = self._packed.lstrip(b"\0") or self._after_padding()
            if not self._packed:
                if self._begun or not self._n_frames:
                    raise EOFError("the compressed file ends within a frame")
                return False
        self._ready = memoryview(self._unpack(self._frame, self._packed))
        self._begun, self._packed = True, b""
        if self._frame.eof:
            self._packed = self._frame.unused_data
            self._frame, self._begun = self._new(), False
            self._n_frames += 1
        return True

    def _after_padding(self) -> bytes:
        """Returns the next bytes after the zeros that may follow a frame; nothing at the end."""
        while data := self._file.read(_CHUNK >> 4):
            if data := data.lstrip(b"\0"):
                return data
        return b""

    def close(self) -> None:
        self._file.close()
        super().close()
