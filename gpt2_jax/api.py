"""The Python API: a trained model's logits, activations and text.

    from gpt2_jax.api import load_run

    model = load_run("runs/quickstart")
    logits_TV = model.logits("ROMEO:")
    stream_LTD = model.activations("ROMEO:").stream_LTD
    print(model.generate("ROMEO:", 100))

`load_huggingface("gpt2")` opens a checkpoint of Hugging Face in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError
from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import SamplingParams
from gpt2_jax.evaluate.text_generation import encode_prompts, generate_texts
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.model import diagnostics
from gpt2_jax.model.definition import ModelDef
from gpt2_jax.train.open_run import open_run

Prompt = str | Sequence[int]  # text, or token ids


@dataclass(frozen=True)
class Activations:
    """What a model computes for one prompt, float32.

    Attributes:
      ids: of the prompt's T tokens.
      embedding_TD: the residual stream before the first block.
      stream_LTD: the residual stream after each of L blocks, or what several streams add up to.
      sublayer_LTD: the output of each sublayer, by its name (`attn`, `mlp`), with its norms and
        scales: what the block's connection receives.
      head_input_TD: what the head reads, after the final norm.
    """

    ids: list[int]
    embedding_TD: np.ndarray
    stream_LTD: np.ndarray
    sublayer_LTD: dict[str, np.ndarray]
    head_input_TD: np.ndarray


@dataclass(frozen=True)
class LanguageModel:
    """A model with its weights and its tokenizer; made by `load_run` or `load_huggingface`.

    Attributes:
      model_def: the architecture, whose `bind(params)` is the Flax module. params: its weights.
      tokenizer: text to ids and back. step: steps that the weights were trained for.
      window: tokens that the model sees at most.
      generator: continues batches of token ids.
    """

    model_def: ModelDef = field(repr=False)
    params: Any = field(repr=False)
    tokenizer: Tokenizer
    step: int
    window: int
    generator: Generator = field(repr=False)

    def encode(self, prompt: Prompt) -> list[int]:
        """Returns the token ids of a prompt; an empty text is the start of a document.

        Raises:
          UserError: if it is not text, or has an id that is not in the vocabulary.
        """
        if isinstance(prompt, str):
            return encode_prompts(self.tokenizer, [prompt])[0]
        ids, n_ids = [int(i) for i in prompt], self.model_def.cfg.vocab_size
        if not ids or not all(0 <= i < n_ids for i in ids):
            raise UserError(f"a prompt needs one id or more, each from 0 to {n_ids - 1}")
        return ids

    def logits(self, prompt: Prompt) -> np.ndarray:
        """Returns the logits (T, V) of the token after each token of a prompt, float32.

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
        found = diagnostics.activations(self.model_def, self.params, np.array([ids]), self.step)
        whole = jax.tree.map(lambda x: np.asarray(x, np.float32), found)
        return Activations(
            ids,
            whole.embedding_BTD[0],
            whole.stream_LBTD[:, 0],
            {name: x_LBTD[:, 0] for name, x_LBTD in whole.sublayer_LBTD.items()},
            whole.head_input_BTD[0],
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
        """Returns the text that follows a prompt, of any length.

        Args:
          temperature: divides the logits; 0 takes the likeliest token.
          top_k: draws among this many likeliest tokens; 0 for all.
          top_p: draws among the fewest likeliest tokens that hold this much probability.
          repetition_penalty: makes tokens that are in the text less likely if above 1.
          stop: texts before which generation ends.

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
            raise UserError(f"the prompt has {len(ids)} tokens; the model sees {self.window}")
        return ids


def load_run(workdir: str | Path, step: int | str | None = None) -> LanguageModel:
    """Returns the model of a run directory, on the first of jax's devices.

    Args:
      step: of the checkpoint; `best` for the lowest validation loss, None for the latest.

    Raises:
      UserError: if there is no run, or no such checkpoint.
    """
    run = open_run(str(workdir), step, devices=1)
    tokenizer, window = load_tokenizer(run.config.data.tokenizer), run.config.data.seq_len
    end = None if tokenizer.name.startswith("ids:") else tokenizer.end_of_text
    generator = Generator(run.model_def, run.params, run.step, window, end)
    return LanguageModel(run.model_def, run.params, tokenizer, run.step, window, generator)


def load_huggingface(
    model: str, *, tokenizer: str | None = None, allow_pickle: bool = False
) -> LanguageModel:
    """Returns the model of a GPT-2 checkpoint of Hugging Face.

    To train it further, import it as a run: `gpt2-jax import`.

    Args:
      model: a folder, or a name on the hub.
      tokenizer: as `data.tokenizer`; None for the checkpoint's own.
      allow_pickle: whether pytorch_model.bin may be read, as weights alone.

    Raises:
      UserError: naming the field or tensor that does not fit.
    """
    with TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        import_model(model, str(workdir), tokenizer, allow_pickle)
        return load_run(workdir)
