"""Greedy text compared with transformers' `generate`, for prompts of several lengths in a batch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gpt2_jax.evaluate.generate import Generator
from gpt2_jax.evaluate.sampling import GREEDY, SamplingParams
from gpt2_jax.interop.import_model import import_model
from gpt2_jax.train.storage.open_run import open_run
from tests.peers.test_transformers import SHAPES, theirs

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("changes", [SHAPES[0], SHAPES[1], SHAPES[7], SHAPES[9]])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_greedy_text_equals_that_of_transformers(tmp_path, changes, penalty):
    model = theirs(**changes)
    model.save_pretrained(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), str(tmp_path / "run"))
    run = open_run(str(tmp_path / "run"), devices=1)
    random = np.random.default_rng(0)
    prompts = [random.integers(1, model.config.vocab_size, n).tolist() for n in (1, 9, 5, 9)]
    generator = Generator(run.model_def, run.params, step=0, window=24)
    choice = (
        GREEDY if penalty == 1.0 else SamplingParams(repetition_penalty=penalty, temperature=0.0)
    )
    got = generator.generate(prompts, 15, choice)
    for prompt, ids in zip(prompts, got, strict=True):
        want = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=15,
            do_sample=False,
            repetition_penalty=penalty,
            pad_token_id=0,
        )
        assert ids == want[0, len(prompt) :].tolist()
    assert len({tuple(ids) for ids in got}) == 4
