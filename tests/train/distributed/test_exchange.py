"""Values and errors that the processes of a run exchange; here, threads with a store in memory."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from gpt2_jax.errors import DiskError, UserError
from gpt2_jax.train.distributed.processes import ALONE, PeerError, PeerLost, Processes


class Store:
    """jax's key-value store, without a coordinator."""

    def __init__(self):
        self.values, self._changed = {}, threading.Condition()
        self.is_gone = False

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: timed out")
            return self.values[key]

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            if self.is_gone:
                raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self._changed.notify_all()

    def key_value_delete(self, key):
        with self._changed:
            del self.values[key]

    def key_value_dir_get(self, key):
        with self._changed:
            return [(name, v) for name, v in self.values.items() if name.startswith(key)]


@pytest.fixture
def both():
    """Returns a function that calls a function in two processes, and what each call did."""
    store = Store()
    pair = [Processes(store, k, 2, heartbeat_seconds=1) for k in range(2)]

    def call(function):
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(function, processes) for processes in pair]
            return [one.exception() or one.result() for one in calls]

    call.store, call.pair = store, pair
    return call


def test_values_are_gathered_in_order_and_forgotten(both):
    for i in range(5):
        assert both(lambda p, i=i: p.gather("a", [p.index, i])) == [[[0, i], [1, i]]] * 2
    assert both(lambda p: p.broadcast("b", f"of {p.index}")) == ["of 0"] * 2
    kept = [key for key in both.store.values if "/a/" in key]
    assert len(kept) == 2  # of the last round


def test_names_are_independent(both):
    first = threading.Event()

    def work(p):
        if p.index == 0:
            first.wait(5)
            return p.gather("slow", p.index)
        with ThreadPoolExecutor(1) as thread:
            slow = thread.submit(p.gather, "slow", p.index)
            first.set()
            return slow.result()

    assert both(work) == [[0, 1]] * 2


def test_error_names_its_process_and_keeps_its_code(both):
    class Odd(UserError):
        exit_code = 7

    def work(p):
        with p.together("work"):
            if p.index == 1:
                raise Odd("no space")

    first, second = both(work)
    assert isinstance(first, PeerError) and str(first) == "process 1: no space"
    assert first.exit_code == second.exit_code == 7


def test_waiting_ends_with_the_reason_of_a_process_that_ended(both):
    both.pair[1].report_end("out of patience")
    with pytest.raises(PeerLost, match=r"process 1 has ended: out of patience; .*start all"):
        both.pair[0].barrier("never")


def test_error_of_jax_is_due_to_a_process_that_ended(both):
    both.pair[1].report_end("disk full")
    with pytest.raises(PeerLost, match="disk full"):
        both.pair[0].find_lost_peer()


def test_error_of_jax_in_all_processes_is_not_due_to_a_lost_one(both):
    assert both(lambda p: p.find_lost_peer()) == [None, None]


def test_error_of_jax_without_a_coordinator_is_due_to_its_loss(both):
    both.store.is_gone = True
    with pytest.raises(PeerLost, match="lost process 0"):
        both.pair[1].find_lost_peer()


def test_single_process_exchanges_nothing():
    assert ALONE.gather("a", object) == [object] and ALONE.is_main
    ALONE.check_alive()
    ALONE.find_lost_peer()
    with pytest.raises(DiskError), ALONE.together("a"):
        raise DiskError("no space")
