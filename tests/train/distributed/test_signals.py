"""Graceful shutdown on signals."""

import os
import signal

import pytest

from gpt2_jax.train.distributed.signals import SIGNALS, Stopped, StopSignal


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_sets_requested(number, capfd):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        stop.check()
        send(number)
        assert stop.requested == number.name
        with pytest.raises(Stopped, match=number.name):
            stop.check()
    assert signal.getsignal(number) is before
    assert number.name in capfd.readouterr().err


def test_signal_raises_within_immediate():
    with StopSignal() as stop:
        reached = []
        with pytest.raises(Stopped), stop.immediate():
            reached.append("before")
            send(signal.SIGTERM)
            reached.append("after")
        assert reached == ["before"]
        with pytest.raises(Stopped), stop.immediate():
            reached.append("not entered")
        assert reached == ["before"]


def test_second_interrupt_raises_keyboard_interrupt():
    with StopSignal():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_hangup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_closed_terminal_does_not_stop_the_handler(monkeypatch):
    def write(descriptor, text):
        raise OSError(5, "Input/output error")

    with StopSignal() as stop:
        monkeypatch.setattr(os, "write", write)
        send(signal.SIGHUP)
        monkeypatch.undo()
        assert stop.requested == "SIGHUP"
