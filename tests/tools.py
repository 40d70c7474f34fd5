"""Shared helpers: tiny configs, text, processes."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

from gpt2_jax.config import Config, replace, resolve
from gpt2_jax.config.check import check
from gpt2_jax.model.definition import define_model
from tests.forkserver import Forked

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
WORDS = "the a of residual norm stream gate depth layer width attends reads adds scales"


def make_text(n_chars: int, seed: int = 0) -> str:
    """Returns sentences of a few words, determined by the seed."""
    random_ = random.Random(seed)
    words, out, length = WORDS.split(), list[str](), 0
    while length < n_chars:
        out.append(" ".join(random_.choices(words, k=random_.randint(3, 9))) + ".\n")
        length += len(out[-1])
    return "".join(out)[:n_chars]


# A task whose models have an architecture.
TASK_OF = {"decoder": "lm", "encoder": "mlm", "encoder_decoder": "translate"}


def tiny(**changes):
    """Returns a resolved config of two layers, width 16, vocabulary 11; changes by dotted name."""
    defaults = {
        "model.n_layer": 2,
        "model.n_head": 2,
        "model.n_embd": 16,
        "model.n_positions": 12,
        "model.vocab_size": 11,
        "model.vocab_multiple": 8,
        "data.seq_len": 12,
        "train.batch_size": 8,
        "train.steps": 20,
        "optimizer.peak_lr": 1e-2,
    }
    given = {name.replace("__", "."): value for name, value in changes.items()}
    if architecture := given.get("model.architecture"):
        defaults["task.name"] = TASK_OF[architecture]
    config = replace(Config(), defaults | given)
    check(config)
    return resolve(config, 1)


def tiny_model(target=None, **changes):
    """Returns the definition of the `tiny` model, and initial parameters with noise."""
    import jax

    config = tiny(**changes)
    model = define_model(config.model, config.placement, target)
    # Without jit, so that the models of all tests share the small programs that draw values.
    return model, noisy(model.init(jax.random.key(0)))


def noisy(params, scale: float = 0.1, seed: int = 7):
    """Returns parameters with normal noise added, so that zeros and ones hide nothing."""
    import jax

    rng = np.random.default_rng(seed)  # jax would compile one program per shape
    noise = lambda x: (scale * rng.standard_normal(x.shape)).astype(np.float32)
    return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x) + noise(x)), params)


def environment(tmp: Path, **extra: str) -> dict[str, str]:
    """Returns the environment of a child process, with its own cache and without wandb."""
    shared = ("JAX_COMPILATION", "JAX_PERSISTENT")
    dropped = ("WANDB", "XLA", "JAX", "TF_CPP")  # jax sets the last when it is imported
    kept = {
        k: v for k, v in os.environ.items() if k.startswith(shared) or not k.startswith(dropped)
    }
    base = {
        "XDG_CACHE_HOME": str(tmp / "cache"),
        "HOME": str(tmp),
        "WANDB_MODE": "disabled",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    return kept | base | extra


def start(*command, tmp: Path, **options) -> subprocess.Popen:
    """Starts one of the project's Python programs; `options` are Popen's."""
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": environment(tmp)}
    usual |= {"cwd": ROOT, "text": True, "stdin": subprocess.DEVNULL}
    given = usual | options
    at_start = [_read_at_start(env) for env in (given["env"], usual["env"])]
    forks = sys.platform == "linux" and given.keys() == usual.keys() and at_start[0] == at_start[1]
    forks = forks and not _has_other_code(given["env"])
    process = Forked if forks else subprocess.Popen
    return process([sys.executable, *map(str, command)], **given)


def _read_at_start(env: dict[str, str]) -> dict[str, str]:
    """Returns the variables that Python and jax read only at startup, too early for a fork."""
    names = (k for k in env if k.startswith(("JAX", "LANG", "LC_", "PYTHON")))
    return {k: env[k] for k in names if k != "PYTHONPATH"}


def _has_other_code(env: dict[str, str]) -> bool:
    """Returns whether a process imports another copy of the package than this one."""
    paths = [Path(path) for path in env.get("PYTHONPATH", "").split(os.pathsep)]
    return any(path != ROOT and (path / "gpt2_jax").exists() for path in paths)


def run(*command, tmp: Path, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess:
    """Runs one of the project's Python programs to its end."""
    env = environment(tmp, **extra)
    with start(*command, tmp=tmp, env=env, stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def one_line_error(done) -> str:
    """Asserts that a process ended with a one-line input error, and returns the line."""
    assert done.returncode == 2, done.stdout + done.stderr
    status = "preparing"
    lines = [line for line in done.stderr.split("\n") if line and not line.startswith(status)]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]
