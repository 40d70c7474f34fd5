"""Compiles a train step in another process, which can be stopped and may crash.

TPU and GPU compilers are C++ libraries: they end the process on some errors, write to stderr, and
cannot be interrupted. `python -m gpt2_jax.scale.compiler` is that process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_jax.errors import UserError
from gpt2_jax.placements import modules
from gpt2_jax.scale.figures import Figures, figures_of
from gpt2_jax.scale.targets import Machine, absent_devices, parse_target

# Only the compiler is used, so a second process that loads libtpu does no harm, and libtpu need
# not ask the cloud which machine this is.
ABSENT = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


@dataclass(frozen=True)
class TooLarge:
    """A step that the compiler refuses because it does not fit.

    Attributes:
      needed: bytes that it would need at least, None if the compiler does not say.
      reason: the compiler's message.
    """

    needed: int | None
    reason: str


class TookTooLong(UserError):
    """The compiler was stopped after the timeout."""


def compile_elsewhere(
    machine: Machine, config: dict[str, Any], changes: dict[str, Any], timeout: float
) -> Figures | TooLarge:
    """Compiles the train step of a config in another process.

    Args:
      config: resolved, as `config.json` stores it. changes: fields to change, by dotted name.
      timeout: seconds after which the process is stopped.

    Raises:
      TookTooLong: after the timeout.
      UserError: if the config is invalid or the compiler fails.
    """
    request = {"target": machine.name, "config": config, "changes": changes}
    env = os.environ | (ABSENT if machine.chip else {})
    childs, ours = os.pipe()
    command = [sys.executable, "-m", "gpt2_jax.scale.compiler", str(childs)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=env,
            timeout=timeout,
            pass_fds=(childs,),
        )
    except subprocess.TimeoutExpired:
        raise TookTooLong(
            f"compiling for {machine.name} took longer than {timeout:g} s; raise --timeout, or set "
            "model.unroll=False, which compiles a single block"
        ) from None
    finally:
        os.close(childs)
        os.close(ours)
    answer = _last_line(done.stdout)
    if "error" in answer:
        raise UserError(answer["error"])
    if "too_large" in answer:
        return TooLarge(**answer["too_large"])
    if "figures" in answer:
        return Figures.from_json(answer["figures"])
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    raise UserError(
        f"the compiler for {machine.name} failed with exit code {done.returncode}: "
        f"{lines[-1].strip()[:300]}"
    )


def _last_line(output: str) -> dict[str, Any]:
    try:
        return json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):  # it crashed before it answered
        return {}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of a request as JSON values."""
    from gpt2_jax.config.convert import from_dict
    from gpt2_jax.config.table import replace
    from gpt2_jax.train.compiled_step import TooLittleMemory, compile_step
    from gpt2_jax.train.distributed.mesh import configure_devices

    machine, module = parse_target(request["target"]), request["config"]["placement"]["module"]
    try:
        if module is not None:  # the command that asks has loaded it too
            modules.load(module, "placement.module")
        config = replace(from_dict(request["config"], Path("config")), request["changes"])
        devices = None
        if machine.chip is None:
            configure_devices(config.train, config.mesh)
        else:
            devices = absent_devices(machine)
        step = compile_step(config, devices)
    except TooLittleMemory as error:
        return {"too_large": {"needed": needed_bytes(error.reason), "reason": error.reason}}
    except UserError as error:
        return {"error": str(error)}
    memory = machine.chip.memory if machine.chip else local_memory(step.mesh.size)
    figures = figures_of(step, config.train, config.data.seq_len, memory, machine.per_host)
    return {"figures": figures.to_json()}


def needed_bytes(reason: str) -> int | None:
    """Returns the bytes that a program needs, from XLA's message that it is too large."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds|Used ([\d.]+)([KMG]) of", reason)
    if found is None:
        return None
    number, unit = found[1] or found[3], found[2] or found[4]
    return int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])


def local_memory(n_devices: int) -> int | None:
    """Returns the memory of each of this machine's devices; those of a CPU share the host's."""
    import jax

    from gpt2_jax.config.capacity import machine_bytes

    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    host = machine_bytes()
    return int(host / n_devices) if host < float("inf") else None


def end_with_parent(pipe: int) -> None:
    """Ends this process when its parent ends, however that happens.

    Args:
      pipe: the reading end of a pipe that the parent keeps open and writes nothing to.
    """

    def wait() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    print(json.dumps(answer(json.load(sys.stdin))))
