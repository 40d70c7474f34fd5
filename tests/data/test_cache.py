"""The cache folder, without a home directory or write permission, and cached hashes."""

import hashlib
import os
import pwd

import pytest

from gpt2_jax import files
from gpt2_jax.errors import UserError


def no_entry(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_cache_of_a_user_without_home_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / f"gpt2_jax-{os.getuid()}"
    assert files.cache_dir() == folder / ".cache" / "gpt2_jax"
    assert os.path.expanduser("~/.cache/huggingface") == f"{folder}/.cache/huggingface"
    assert folder.stat().st_mode & 0o777 == 0o700 and not (tmp_path / "~").exists()
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    (tmp_path / "gpt2_jax-12345").mkdir()
    with pytest.raises(UserError, match=r"HOME.*another user"):
        files.cache_dir()


def test_read_only_cache_still_hashes(tmp_path, monkeypatch):
    def refuse(path, *_, **how):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(files.Path, "write_text", refuse)
    (tmp_path / "a").write_bytes(b"abc")
    assert files.cached_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize("content", [b"", b"0" * 63, b"\xff" * 64, None])
def test_damaged_hash_cache_entry_is_replaced(tmp_path, monkeypatch, content):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_bytes(b"abc")
    expected = files.cached_sha256(tmp_path / "a")
    (memo,) = (tmp_path / "cache/gpt2_jax/hashes").iterdir()
    memo.unlink()
    memo.mkdir() if content is None else memo.write_bytes(content)
    assert files.cached_sha256(tmp_path / "a") == expected
    assert content is None or memo.read_text() == expected
