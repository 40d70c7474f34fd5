"""Connects the processes of a run, and ends this one if it loses another."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import jax
from jax._src import distributed

from gpt2_jax.errors import (
    EXIT_PEER_LOST,
    EXIT_STOPPED,
    UserError,
    printable,
    shortened,
    without_credentials,
)
from gpt2_jax.track.console import is_line_open
from gpt2_jax.train.distributed.launch import Launch
from gpt2_jax.train.distributed.processes import ALONE, PeerLost, Processes
from gpt2_jax.train.distributed.signals import Stopped, StopSignal

SHUTDOWN_SECONDS = 10
BAD_CAST = b"St8bad_cast"


@contextmanager
def connected(
    launch: Launch | None, heartbeat_seconds: int, connect_seconds: int, stop: StopSignal
) -> Iterator[Processes]:
    """Connects to the other processes, and disconnects once all of them have left the context.

    If the processes cannot be connected, or the context raises, prints what happened and ends this
    process: at an ordinary exit, jax would wait for processes that may never end.

    Args:
      launch: None to train alone.
      heartbeat_seconds: after this long without a heartbeat, a process counts as lost.
      connect_seconds: how long to wait until all processes have started.
      stop: an entered stop signal, which may end the wait.
    """
    if launch is None:
        yield ALONE
        return
    processes = ALONE
    try:
        with stop.immediate():
            processes = _connect(launch, heartbeat_seconds, connect_seconds)
        yield processes
        processes.barrier("end")
    except BaseException as error:
        end_process(_cause(error, processes), processes)
    jax.distributed.shutdown()


def _connect(launch: Launch, heartbeat_seconds: int, connect_seconds: int) -> Processes:
    if launch.index == 0:
        _check_port(launch.coordinator)
    lost = PeerLost(
        f"lost another process of the run: its connection closed, or it had no heartbeat for "
        f"{heartbeat_seconds} s"
    )
    end = lambda: _say_and_exit(lost, EXIT_PEER_LOST)
    _end_on_uncaught_cast(end)
    initialize = partial(
        jax.distributed.initialize,
        launch.coordinator,
        launch.count,
        launch.index,
        local_device_ids=launch.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=connect_seconds,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    with _heartbeat_callback(lambda status: end()):
        error = _error_in_thread(initialize)
    if error is not None:
        # An error of the connection arrives as std::bad_cast: see `_end_on_uncaught_cast`.
        detail = "" if "bad_cast" in str(error) else f": {shortened(error, 100)}"
        raise UserError(
            f"process {launch.index} of {launch.count} could not join the others at "
            f"{launch.coordinator} (it waits up to {connect_seconds} s{detail}); start all "
            "processes, each with its own --process_id, and check that they can reach this address"
        )
    store = distributed.global_state.client
    return Processes(store, launch.index, launch.count, heartbeat_seconds)


def _error_in_thread(function: Callable[[], None]) -> Exception | None:
    """Calls a function in a thread, so that Python can handle signals; returns its exception."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            function()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="connect", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    return errors[0] if errors else None


def _check_port(coordinator: str) -> None:
    """Refuses a coordinator's port that another program listens on.

    jax would share it with another coordinator, and connect processes of different runs.
    """
    port = int(coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as after a recent run
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError as error:
            raise UserError(
                f"port {port} of the coordinator {coordinator} cannot be used: {error.strerror}; "
                "pass another port in --coordinator_address, or JAX_COORDINATOR_PORT"
            ) from None


@contextmanager
def _heartbeat_callback(callback: Callable[[Any], None]) -> Iterator[None]:
    """Makes jax call a function when another process is lost, instead of aborting this one."""
    library = distributed._jax
    create = library.get_distributed_runtime_client

    def with_callback(*args: Any, **options: Any) -> Any:
        return create(*args, missed_heartbeat_callback=callback, **options)

    library.get_distributed_runtime_client = with_callback
    try:
        yield
    finally:
        library.get_distributed_runtime_client = create


_kept: list[Any] = []  # functions that C++ may call until the process ends


def _end_on_uncaught_cast(end: Callable[[], None]) -> None:
    """Calls a function when C++ ends the process because it cannot call jax's heartbeat callback.

    jaxlib has the callback but cannot convert its argument to Python (seen in 0.10 and 0.11), so
    a thread of its own throws std::bad_cast. Any other uncaught exception ends as usual.
    Without libstdc++ nothing changes, and a loss ends the process by SIGABRT with a long message.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libstdc++.so.6")
        set_terminate = library._ZSt13set_terminatePFvvE
        type_of_exception = library.__cxa_current_exception_type
        set_terminate.restype = type_of_exception.restype = ctypes.c_void_p

        def handler() -> None:
            info = type_of_exception()  # a std::type_info: the virtual table, then the name
            name = info and ctypes.c_char_p.from_address(info + ctypes.sizeof(ctypes.c_void_p))
            if name and name.value == BAD_CAST:
                end()
            os.abort()

        _kept.append(ctypes.CFUNCTYPE(None)(handler))
        set_terminate(_kept[-1])


def _cause(error: BaseException, processes: Processes) -> BaseException:
    """Returns the loss of another process if that is why jax raised, else the error itself."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        try:
            processes.find_lost_peer()
        except PeerLost as found:
            return found
    return error


def end_process(error: BaseException, processes: Processes) -> None:
    """Reports an error to the user and to the other processes, and ends this one."""
    reason, code = shortened(error) or type(error).__name__, getattr(error, "exit_code", 1)
    if isinstance(error, KeyboardInterrupt):
        error, code = UserError("interrupted"), 130
    if isinstance(error, Stopped):
        error, code = UserError(f"stopped by {error} before training began"), EXIT_STOPPED
    if not isinstance(error, UserError):
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    with suppress(jax.errors.JaxRuntimeError):  # the coordinator may be gone
        processes.report_end(reason)
    if isinstance(error, UserError):
        _say_and_exit(error, code)
    os._exit(code)


def _say_and_exit(error: UserError, code: int) -> None:
    """Writes one line to the standard error and ends the process, from any thread."""
    with suppress(OSError):
        begin = "\n" * is_line_open()  # the line says what another thread is doing
        line = f"{begin}error: {printable(without_credentials(str(error)))}\n"
        os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(code)
