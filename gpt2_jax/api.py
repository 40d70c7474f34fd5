"""The Python API: a trained model's logits, activations and text.

    from gpt2_jax.api import load_run

    model = load_run("runs/quickstart")
    logits_TV = model.logits("ROMEO:")
    stream_LTD = model.activations("ROMEO:").stream_LTD
    print(model.generate("ROMEO:", 100))

`load_huggingface("gpt2")` does the same for a Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from gpt2_jax.data.tokenizer import Tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.evaluate.text_generation import encode_prompts, generate_texts, make_generator
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model import diagnostics
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.train.storage.open_run import open_run

Prompt = str | Sequence[int]  # text, or token ids


@dataclass(frozen=True)
class Activations:
    """Activations of a model for one prompt, float32.

    Attributes:
      ids: the prompt's T token ids.
      embedding_TD: the residual stream before the first block.
      stream_LTD: the residual stream after each of L blocks; several streams are reduced to one.
      sublayer_LTD: by name (`attn`, `mlp`), the output of each sublayer after its norms and scales,
        which the connection combines with the stream.
      head_input_TD: the head's input, after the final norm.
    """

    ids: list[int]
    embedding_TD: np.ndarray
    stream_LTD: np.ndarray
    sublayer_LTD: dict[str, np.ndarray]
    head_input_TD: np.ndarray


@dataclass(frozen=True)
class LanguageModel:
    """A model with its weights and tokenizer; returned by `load_run` and `load_huggingface`.

    Attributes:
      model_def: the architecture; `model_def.bind(params)` is the Flax module. params: the weights.
      tokenizer: text to ids and back. step: the training step of the weights.
      window: maximum number of tokens that the model sees at once.
      generator: continues batches of token ids.
    """

    model_def: ModelDef = field(repr=False)
    params: Any = field(repr=False)
    tokenizer: Tokenizer
    step: int
    window: int
    generator: Generator = field(repr=False)

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the token ids of a prompt; empty text stands for the start of a document.

        Raises:
          UserError: if the text cannot be encoded, or an id is not in the vocabulary.
        """
        if isinstance(prompt, str):
            return encode_prompts(self.tokenizer, [prompt])[0]
        ids, n_ids = [int(i) for i in prompt], self.model_def.cfg.vocab_size
        if not ids or not all(0 <= i < n_ids for i in ids):
            raise UserError(f"a list of ids needs at least one id, each from 0 to {n_ids - 1}")
        return ids

    def logits(self, prompt: Prompt) -> np.ndarray:
        """Returns float32 next-token logits (T, V) for each token of a prompt.

        Raises:
          UserError: if the prompt is longer than the window.
        """
        return self.generator.logits([self._within_window(prompt)])[0]

    def activations(self, prompt: Prompt) -> Activations:
        """Returns the residual stream and the output of every sublayer for a prompt.

        Raises:
          UserError: if the prompt is longer than the window.
        """
        ids = self._within_window(prompt)
        result = diagnostics.activations(self.model_def, self.params, np.array([ids]), self.step)
        result = jax.tree.map(lambda x: np.asarray(x, np.float32), result)
        return Activations(
            ids,
            result.embedding_BTD[0],
            result.stream_LBTD[:, 0],
            {name: x_LBTD[:, 0] for name, x_LBTD in result.sublayer_LBTD.items()},
            result.head_input_BTD[0],
        )

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 100,
        *,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> str:
        """Returns a sampled continuation of a prompt of any length.

        Args:
          temperature: divides the logits; 0 for greedy decoding.
          top_k: samples from the k most likely tokens; 0 for all.
          top_p: samples from the smallest set of tokens with at least this total probability.
          repetition_penalty: above 1, makes tokens that already occurred less likely.
          stop: strings at which generation ends; not included in the result.

        Raises:
          UserError: naming an argument that is out of range.
        """
        params = SamplingParams(repetition_penalty, temperature, top_k, top_p)
        params.check()
        ids = self.encode(prompt)
        return generate_texts(
            self.generator, self.tokenizer, [ids], max_new_tokens, params, seed, tuple(stop)
        )[0]

    def _within_window(self, prompt: Prompt) -> list[int]:
        ids = self.encode(prompt)
        if len(ids) > self.window:
            raise UserError(f"the prompt has {len(ids)} tokens; the limit is {self.window}")
        return ids


def load_run(workdir: str | Path, step: int | str | None = None) -> LanguageModel:
    """Loads the model of a run directory onto the first jax device.

    Args:
      step: of the checkpoint; `best` for the best by `train.best_by`, None for the latest.

    Raises:
      UserError: if there is no run or no such checkpoint.
    """
    run = open_run(str(workdir), step, devices=1)
    if run.config.model.architecture != "decoder":
        raise UserError(
            f"{workdir} has model.architecture={run.config.model.architecture}, but only a decoder "
            "continues a text"
        )
    generator, tokenizer = make_generator(run)
    window = run.config.data.seq_len
    return LanguageModel(run.model_def, run.params, tokenizer, run.step, window, generator)


def load_huggingface(
    model: str, *, tokenizer: str | None = None, allow_pickle: bool = False
) -> LanguageModel:
    """Loads a GPT-2 checkpoint in Hugging Face format.

    To train it further, import it as a run with `gpt2-jax import`.

    Args:
      model: a folder, or a name on the Hugging Face hub.
      tokenizer: as `data.tokenizer`; None for the checkpoint's own.
      allow_pickle: whether pytorch_model.bin may be read, with weights only.

    Raises:
      UserError: naming a field or tensor that is not supported.
    """
    with TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        import_model(model, str(workdir), tokenizer, allow_pickle)
        return load_run(workdir)
