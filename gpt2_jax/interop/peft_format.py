"""LoRA and DoRA of a GPT-2 as tensors and fields in the format of Hugging Face's `peft`.

peft stores one update per module, and GPT-2's `c_attn` holds q, k and v. Our updates of rank r of n
of these three matrices are one of rank n r there: A has the n matrices A one above the other, and B
is block-diagonal. Its alpha is n times ours, so that alpha / rank is the same.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import numpy as np

from gpt2_jax.config.tune_section import TuneConfig
from gpt2_jax.errors import UserError, quoted
from gpt2_jax.interop.families.gpt2 import BLOCK, PREFIX, ROWS, THEIR_BLOCK
from gpt2_jax.interop.layouts import Tensors
from gpt2_jax.tuning.definition import LowRankModel
from gpt2_jax.tuning.lora import by_kernel, subtree

PEFT_PREFIX = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
NAME = re.compile(
    re.escape(PEFT_PREFIX + PREFIX) + r"(h\.\d+\.\w+\.\w+)" + r"(\.lora_\w+(?:\.weight)?)"
)
# Their name of each kernel of a block, by the keys of its layer in our parameter tree.
MODULES = {
    tuple(row.path.removeprefix(BLOCK).split(".")[:-1]): row.names[0]
    .removeprefix(THEIR_BLOCK)
    .removesuffix(".weight")
    for row in ROWS
    if row.path.endswith(".kernel")
}
# Fields of adapter_config.json that change the result; an adapter is refused if one is set.
UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias",
    "modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
# Initial values for which peft does not change the base model.
PLAIN_INITS = (True, False, "gaussian", "orthogonal")


def to_peft(model: LowRankModel, params: Any, base: str | None) -> tuple[Tensors, dict[str, Any]]:
    """Returns the tensors of adapter_model.safetensors, and the fields of adapter_config.json.

    Args:
      params: of the run, with its updates. base: where peft finds the base model; None if unknown.
    """
    tune, tensors = model.tune, Tensors()
    ranks: dict[str, int] = {}
    for keys, group in by_kernel(model.updated).items():
        module = MODULES[keys[2:]]
        n_parts = group[0].shape[group[0].qkv_axis] if group[0].part is not None else 1
        added = {m.part or 0: jax.device_get(subtree(params, m.lora_keys)) for m in group}
        kernel = np.asarray(jax.device_get(subtree(params, keys)["kernel"]))
        ranks[module] = tune.rank * len(added)
        for layer in range(group[0].n_rows):
            rows = {
                part: {k: x[layer] for k, x in values.items()} for part, values in added.items()
            }
            name = f"{PEFT_PREFIX}{PREFIX}h.{layer}.{module}"
            tensors |= _joined(name, rows, kernel[layer], group[0].info.n_in, n_parts)
    return tensors, _fields(tune, ranks, base)


def _fields(tune: TuneConfig, ranks: dict[str, int], base: str | None) -> dict[str, Any]:
    """Returns the fields of adapter_config.json, from the rank of each module."""
    patterns = {module: rank for module, rank in ranks.items() if rank != tune.rank}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": True,
        "lora_dropout": 0.0,
        "r": tune.rank,
        "lora_alpha": tune.alpha,
        "rank_pattern": patterns,
        "alpha_pattern": {m: tune.alpha * rank / tune.rank for m, rank in patterns.items()},
        "target_modules": sorted(ranks),
        "use_dora": tune.method == "dora",
        "use_rslora": False,
    }


def _joined(
    name: str,
    parts: dict[int, dict[str, np.ndarray]],
    kernel: np.ndarray,
    n_in: int,
    n_parts: int,
) -> Tensors:
    """Returns the tensors of one module, from the updates of the matrices in it.

    Args:
      parts: by the index of the matrix. kernel: of the module, one layer.
      n_in: its number of input axes. n_parts: the number of matrices in it.
    """
    rank = next(iter(parts.values()))["a"].shape[-1]
    n_inputs = math.prod(kernel.shape[:n_in])
    kernel_IO = kernel.reshape(n_inputs, -1)
    width = kernel_IO.shape[1] // n_parts
    b = np.zeros((n_parts * width, rank * len(parts)), np.float32)
    magnitude = np.linalg.norm(kernel_IO, axis=0)
    for position, (part, added) in enumerate(sorted(parts.items())):
        rows, columns = slice(part * width, (part + 1) * width), slice(position * rank, None)
        b[rows, columns][:, :rank] = added["b"].reshape(rank, width).T
        if "m" in added:
            magnitude[rows] = added["m"].reshape(-1)
    a = [added["a"].reshape(n_inputs, rank).T for _, added in sorted(parts.items())]
    out = {name + A: np.concatenate(a), name + B: b}
    if "m" in next(iter(parts.values())):
        out[name + MAGNITUDE] = magnitude
    return {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}


def apply_peft(weights: Tensors, adapter: Tensors, fields: dict[str, Any]) -> Tensors:
    """Returns the tensors of a GPT-2 checkpoint with an adapter added to its matrices.

    Args:
      weights: of the base model. adapter, fields: as returned by `to_peft`.

    Raises:
      UserError: naming the field or tensor that is not supported.
    """
    _check_fields(fields)
    modules: dict[str, Tensors] = {}
    for name, value in adapter.items():
        found = NAME.fullmatch(name)
        if found is None or found[2] not in (A, B, MAGNITUDE):
            raise UserError(
                f"the adapter's tensor {name} is not supported: it is not LoRA of GPT-2"
            )
        modules.setdefault(found[1], {})[found[2]] = value.astype(np.float32)
    out = dict(weights)
    for module, added in modules.items():
        prefix = PREFIX if f"{PREFIX}{module}.weight" in weights else ""
        name = f"{prefix}{module}.weight"
        if name not in weights or A not in added or B not in added:
            raise UserError(
                f"the adapter lacks a tensor of {module}, or the base model has no {name}"
            )
        out[name] = _updated(module, weights[name].astype(np.float32), added, fields)
    return out


def _updated(module: str, w_IO: np.ndarray, added: Tensors, fields: dict[str, Any]) -> np.ndarray:
    a_RI, b_OR = added[A], added[B]
    if (a_RI.shape[1:], b_OR.shape[:1]) != (w_IO.shape[:1], w_IO.shape[1:]) or (
        a_RI.shape[0] != b_OR.shape[1]
    ):
        raise UserError(
            f"the adapter's {module} has A {a_RI.shape} and B {b_OR.shape}, which do not fit the "
            f"base model's {w_IO.shape}; is it an adapter of another model?"
        )
    alpha, rank = _alpha(module, fields), a_RI.shape[0]
    scale = alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)
    w_IO = w_IO + scale * (b_OR @ a_RI).T
    if not fields.get("use_dora"):
        return w_IO
    if MAGNITUDE not in added:
        raise UserError(f"adapter_config.json has use_dora, but {module} has no {MAGNITUDE[1:]}")
    return w_IO * (added[MAGNITUDE] / np.linalg.norm(w_IO, axis=0))


def _alpha(module: str, fields: dict[str, Any]) -> float:
    """Returns alpha of a module; `alpha_pattern` has regular expressions, as peft matches them."""
    for pattern, alpha in (fields.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", PREFIX + module):
            return float(alpha)
    return float(fields.get("lora_alpha", 8))


def _check_fields(fields: dict[str, Any]) -> None:
    where = "adapter_config.json: "
    if fields.get("peft_type") != "LORA":
        raise UserError(f"{where}peft_type={quoted(fields.get('peft_type'))}; it must be LORA")
    if fields.get("bias", "none") != "none":
        raise UserError(f"{where}bias={quoted(fields['bias'])} is not supported; it must be none")
    if fields.get("init_lora_weights", True) not in PLAIN_INITS:
        raise UserError(
            f"{where}init_lora_weights={quoted(fields['init_lora_weights'])} is not supported: it "
            "changes the base model; convert the adapter with peft first"
        )
    if wrong := next((name for name in UNSUPPORTED if fields.get(name)), None):
        raise UserError(f"{where}{wrong}={quoted(fields[wrong])} is not supported")
