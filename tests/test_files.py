"""Atomic writes, and one-line disk errors."""

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gpt2_jax.errors import DiskError, UserError
from gpt2_jax.files import (
    check_creatable,
    disk_errors,
    open_lock,
    plain_path,
    read_file,
    remove_temporary,
    write_atomic,
)

FULL = "No space left on device"


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, FULL, "x"),
        ValueError("NOT_FOUND: writing [os_error_code='28']"),  # tensorstore
        RuntimeError(f"Error while serializing: I/O error: {FULL} (os error 28)"),  # safetensors
        RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "No space" })'),
    ],
)
def test_full_disk_is_a_disk_error(error):
    with pytest.raises(DiskError, match=f"weights.*{FULL}") as caught, disk_errors("weights"):
        raise error
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("error", [ValueError("code: 28"), UserError("mine"), KeyError("os error")])
def test_other_errors_are_not_changed(error):
    with pytest.raises(type(error)) as caught, disk_errors("weights"):
        raise error
    assert caught.value is error


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def full(handle):
        raise OSError(28, FULL)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=FULL):
        write_atomic(tmp_path / "a", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_only_temporary_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: os._exit)
    write_atomic(tmp_path / "a.json", "new")  # as if killed before the rename
    names = {".env", ".a.tmp", "b.0123abcd.tmp", ".c.0123abcd.tmp.txt"}
    for name in names:
        (tmp_path / name).write_text("mine")
    assert len(list(tmp_path.iterdir())) == len(names) + 1
    remove_temporary(tmp_path, time.time() - 3600)  # another process may be writing it
    assert len(list(tmp_path.iterdir())) == len(names) + 1
    remove_temporary(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == names


def test_check_creatable_leaves_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_creatable(Path("new/sub"))
    (tmp_path / "file").write_text("")
    for path in (Path("new/file"), Path("other/../file/sub"), Path("new/" + "x" * 300)):
        with suppress(OSError):
            check_creatable(path)
        assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(OSError, match="file"):
        check_creatable(Path("other/../file/sub"))


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "nothing", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            read_file(tmp_path / name)
    with pytest.raises(UserError, match="pipe is not a regular file"):
        open_lock(tmp_path / "pipe")


def test_glob_safe_path(tmp_path, monkeypatch):
    folder = tmp_path / "a[1] *"
    folder.mkdir()
    with plain_path(tmp_path) as same, plain_path(folder) as plain:
        assert same == tmp_path and plain.samefile(folder) and not set("[]*") & set(str(plain))
    assert not plain.exists() and folder.exists()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(UserError, match="TMPDIR"), plain_path(folder):
        pass
