"""Terminal output: printing never fails, and phases are named as they happen."""

import io
import os
import sys

import pytest

from gpt2_jax.track.console import forgiving_output, say, status


def broken_pipe():
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    return open("/dev/full", "w")


def closed_file():
    stream = open(os.devnull, "w")
    stream.close()
    return stream


@pytest.mark.parametrize("broken", [broken_pipe, full_disk, closed_file])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_broken_stream_does_not_stop_a_run(monkeypatch, name, broken):
    stream = broken()
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        with pytest.raises((OSError, ValueError)):
            print("x" * 100_000, file=stream, flush=True)
        with forgiving_output():
            for _ in range(3):
                print("x" * 100_000, file=getattr(sys, name), flush=True)
            print("left in the buffer", file=getattr(sys, name))
            with status("working"):
                say("a line")
        assert getattr(sys, name) is stream
        if not stream.closed:
            stream.flush()  # as Python does when it exits, with exit code 120 if that fails


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_missing_stream_does_not_stop_a_run(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    with forgiving_output():
        assert not getattr(sys, name).isatty()
        print("x", file=getattr(sys, name), flush=True)


def test_characters_missing_from_the_encoding_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    with forgiving_output():
        print("a…b")
    assert raw.getvalue() == b"a\\u2026b\n"


def test_phase_is_named_before_it_begins_and_timed_afterwards(capsys):
    with status("compiling"):
        assert capsys.readouterr().err == "compiling… "
    assert capsys.readouterr().err.endswith(" s\n")


def test_line_printed_during_a_phase_is_on_its_own_line(capsys):
    with status("compiling"):
        say("wandb: offline")
    first, second, last = capsys.readouterr().err.splitlines()
    assert (first, second) == ("compiling… ", "wandb: offline")
    assert last.startswith("compiling… ") and last.endswith(" s")


def test_failed_phase_ends_its_line(capsys):
    with pytest.raises(ValueError), status("compiling"):
        raise ValueError
    assert capsys.readouterr().err == "compiling… \n"
