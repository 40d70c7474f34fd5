"""Distillation: a model also learns the predictions of another one, its teacher.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax.model.definition import ModelDef


@dataclass(frozen=True)
class Teacher:
    """A trained model, without its parameters, and how its predictions count.

    Attributes:
      step: training step of its parameters.
      weight: its share w of the loss. temperature: T, which divides the logits.
    """

    model_def: ModelDef
    step: int
    weight: float
    temperature: float


@dataclass(frozen=True)
class BoundTeacher:
    """A teacher with its parameters.

    Attributes:
      model_def: the definition to bind them with, inside a `shard_map` that of one device.
    """

    teacher: Teacher
    model_def: ModelDef
    params: Any

    def mixed(self, nll_BT: jax.Array, logits_BTV: jax.Array, inputs_BT: jax.Array) -> jax.Array:
        """Returns (1 - w) nll + w T^2 KL(teacher at T || student at T), (B, T).

        Without dropout in the teacher. T^2 keeps the gradient's size independent of T.
        """
        teacher = self.teacher
        theirs = self.model_def.bind(self.params)(inputs_BT, step=teacher.step)
        kl_BT = divergence(
            jax.lax.stop_gradient(theirs), logits_BTV, teacher.temperature, real_ids(self.model_def)
        )
        w = teacher.weight
        return (1.0 - w) * nll_BT + w * teacher.temperature**2 * kl_BT


def real_ids(model_def: ModelDef) -> int:
    """Returns the vocabulary size without padding."""
    assert model_def.cfg.vocab_size is not None
    return model_def.cfg.vocab_size


def divergence(
    teacher_BTV: jax.Array, student_BTV: jax.Array, temperature: float, n_ids: int
) -> jax.Array:
    """Returns KL(teacher || student) of the first `n_ids` logits over a temperature, (B, T)."""
    teacher, student = (
        jax.nn.log_softmax(x[..., :n_ids].astype(jnp.float32) / temperature)
        for x in (teacher_BTV, student_BTV)
    )
    return (jnp.exp(teacher) * (teacher - student)).sum(-1)
