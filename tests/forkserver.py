"""Python processes forked from one that has already imported jax, which saves time.

They are ordinary processes, with their own signals, exit codes and open files. The server has not
started a jax backend or any thread, so each process starts its own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import tempfile
from functools import cache

PRELOADED = (
    "gpt2_jax.config.check",
    "gpt2_jax.evaluate.text_generation",
    "gpt2_jax.train.loop",
    "matplotlib.backends.backend_agg",
    "scipy.stats",
)
SIZE = 4  # bytes of each number on the socket


class Forked(subprocess.Popen):
    """`subprocess.Popen([sys.executable, ...], cwd=..., env=...)`, forked by the server.

    Of Popen's other options, only those of the standard streams are supported.
    """

    def _execute_child(self, args, *rest):
        (cwd, env), pipes = rest[4:6], rest[9:15]
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect(_address())
        request = json.dumps({"args": args[1:], "cwd": str(cwd), "env": env}).encode()
        streams = [pipes[0], pipes[3], pipes[5]]
        streams = [given if given != -1 else own for own, given in enumerate(streams)]
        socket.send_fds(self._server, [len(request).to_bytes(SIZE, "big")], streams)
        self._server.sendall(request)
        self.pid = _number(self._server)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags):
        self._server.setblocking(not wait_flags & os.WNOHANG)
        try:
            return self.pid, _number(self._server)
        except BlockingIOError:
            return 0, 0

    def _internal_poll(self, *_, **__):
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self._handle_exitstatus(status)
        return self.returncode


def _number(stream: socket.socket) -> int:
    data = stream.recv(SIZE, socket.MSG_WAITALL)
    if len(data) < SIZE:
        raise RuntimeError("the server of processes has ended")
    return int.from_bytes(data, "big")


@cache
def _address() -> str:
    """Starts the server, which ends with this process, and returns its socket's path."""
    path = os.path.join(tempfile.mkdtemp(), "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.forkserver", path],
        cwd=os.path.dirname(os.path.dirname(__file__)),
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # otherwise numpy starts threads
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def end():
        server.stdin.close()
        server.wait()

    atexit.register(end)
    assert server.stdout.readline() == b"ready\n"
    return path


def serve(path: str) -> list[str]:
    """Forks at each request; returns only in the child, with the command to run."""
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(50)
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        os.write(1, b"ready\n")
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    os._exit(0)
                elif key.fileobj is not listener:
                    _report_end(selector, key)
                else:
                    command = _fork(selector, listener.accept()[0])
                    if command is not None:
                        return command


def _fork(selector: selectors.BaseSelector, client: socket.socket) -> list[str] | None:
    """Returns the command in the child, None in the server."""
    size, streams, _, _ = socket.recv_fds(client, SIZE, 3)
    request = json.loads(client.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, client))
        client.sendall(pid.to_bytes(SIZE, "big"))
        return None
    client.close()
    for own, given in enumerate(streams):
        os.dup2(given, own)
        os.close(given)
    # Reopen the standard streams as Python does at startup: they may be files instead of pipes.
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in paths if path and path not in sys.path]
    return request["args"]


def _report_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, client = key.data
    selector.unregister(key.fileobj)
    os.close(key.fileobj)
    status = os.waitpid(pid, 0)[1]
    with contextlib.suppress(OSError):  # the client may have gone
        client.sendall(status.to_bytes(SIZE, "big"))
    client.close()


def execute(command: list[str]) -> None:
    """Runs a Python command line, given without `python`."""
    kind, *words = command
    if kind == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = command
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # otherwise each process would visit, and so copy, all objects when it ends
    execute(serve(sys.argv[1]))
