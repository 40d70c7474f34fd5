"""Opens compressed files, and text files in any Unicode encoding as a stream of UTF-8 bytes."""

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
_MAX_ZSTD_WINDOW = 1 << 31  # as written by `zstd --long=31`
# UTF-32 is first: its little-endian mark starts with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file, decompressing it by its suffix; multiple members or frames are concatenated."""
    match path.suffix.lower():
        case ".gz":
            return io.BufferedReader(gzip.open(path, "rb"))
        case ".bz2":
            return _open_frames(path, bz2.BZ2Decompressor, _decompress_chunk)
        case ".xz":
            return _open_frames(path, lzma.LZMADecompressor, _decompress_chunk)
        case ".zst":
            import zstandard

            library = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
            decompress = lambda frame, data: frame.decompress(data)
            return _open_frames(path, library.decompressobj, decompress)
        case _:
            return open(path, "rb")


def open_text(path: Path) -> IO[bytes]:
    """Opens a text file as UTF-8 bytes without a byte order mark.

    The byte order mark determines the encoding; the default is UTF-8.
    """
    file: Any = open_binary(path)
    try:
        for mark, encoding in _BYTE_ORDER_MARKS:
            if file.peek(len(mark)).startswith(mark):
                if encoding != "utf-8":
                    return io.BufferedReader(_Utf8Reader(file, encoding), _CHUNK)
                file.read(len(mark))
                break
        return file
    except BaseException:
        file.close()
        raise


class _ChunkReader(io.RawIOBase):
    """Base class of raw streams that produce their content in chunks of any size."""

    def __init__(self) -> None:
        self._chunk = memoryview(b"")

    def _next_chunk(self) -> bytes:
        """Returns the next bytes, empty at the end of the stream."""
        raise NotImplementedError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._chunk = self._chunk or memoryview(self._next_chunk())
        now, self._chunk = self._chunk[: len(buffer)], self._chunk[len(buffer) :]
        buffer[: len(now)] = now
        return len(now)


class _Utf8Reader(_ChunkReader):
    """The content of a file in another encoding as UTF-8 bytes."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        super().__init__()
        self._text = io.TextIOWrapper(file, encoding, newline="")

    def _next_chunk(self) -> bytes:
        return self._text.read(_CHUNK).encode()

    def close(self) -> None:
        self._text.close()
        super().close()


def _open_frames(
    path: Path, new: Callable[[], Any], decompress: Callable[[Any, bytes], bytes]
) -> IO[bytes]:
    return io.BufferedReader(_FrameReader(path, new, decompress), _CHUNK)


def _decompress_chunk(frame: Any, data: bytes) -> bytes:
    """Decompresses at most one chunk, to bound the memory for a highly compressed file."""
    return bytes(frame.decompress(data, _CHUNK))


class _FrameReader(_ChunkReader):
    """The decompressed content of all frames (for bz2 and xz: streams) of a file.

    The libraries' own readers mistake a truncated zstd frame, or a damaged second bz2 or xz stream,
    for the end of the file.

    Args:
      new: returns a decompressor for one frame.
      decompress: passes bytes to a decompressor and returns its output.

    Raises:
      EOFError: when reading a file that ends within a frame.
    """

    def __init__(
        self, path: Path, new: Callable[[], Any], decompress: Callable[[Any, bytes], bytes]
    ) -> None:
        super().__init__()
        self._file = open(path, "rb")
        self._new, self._decompress = new, decompress
        self._frame = new()
        self._n_frames, self._in_frame = 0, False
        self._input = b""

    def _next_chunk(self) -> bytes:
        while self._read_input():
            chunk = self._decompress(self._frame, self._input)
            self._in_frame, self._input = True, b""
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame, self._in_frame = self._new(), False
                self._n_frames += 1
            if chunk:
                return chunk
        return b""

    def _read_input(self) -> bool:
        """Reads the next input for the decompressor; returns whether there may be more output."""
        if not getattr(self._frame, "needs_input", True):  # it has unreturned output
            return True
        self._input = self._input or self._file.read(_CHUNK >> 4)
        if self._n_frames and not self._in_frame:
            self._input = self._input.lstrip(b"\0") or self._skip_padding()
        if not self._input and (self._in_frame or not self._n_frames):
            raise EOFError("the compressed file ends within a frame")
        return bool(self._input)

    def _skip_padding(self) -> bytes:
        """Returns the next bytes after any zero padding; empty at the end of the file."""
        while data := self._file.read(_CHUNK >> 4):
            if data := data.lstrip(b"\0"):
                return data
        return b""

    def close(self) -> None:
        self._file.close()
        super().close()
