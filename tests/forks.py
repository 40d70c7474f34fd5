"""Command lines run in forks of one process, so that each costs no start and no imports."""

import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from tests.tools import ROOT, environment

# What the commands import, but not the commands: those define their flags when they are run.
PRELOADED = ("gpt2_jax.train.loop", "gpt2_jax.evaluate.perplexity", "gpt2_jax.evaluate.writing")


class Commands:
    """`run("train", "--help")` runs train.py as a process of its own would."""

    def __init__(self, tmp: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT,
            env=environment(tmp),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, *argv: str) -> SimpleNamespace:
        """Returns `returncode`, `stdout` and `stderr` of the command."""
        self.process.stdin.write(json.dumps([module, *argv]) + "\n")
        self.process.stdin.flush()
        return SimpleNamespace(**json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def run_forked(module: str, *argv: str) -> dict:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            run_here(module, list(argv))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = [file.seek(0) or file.read().decode() for file in (out, err)]
    return {"returncode": code, "stdout": texts[0], "stderr": texts[1]}


def run_here(module: str, argv: list[str]) -> None:
    """Runs the command in this process and ends it with the command's exit code."""
    code: object = 1
    try:
        sys.argv = [module, *argv]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    for name in PRELOADED:
        __import__(name)
    for line in sys.stdin:
        print(json.dumps(run_forked(*json.loads(line))), flush=True)
