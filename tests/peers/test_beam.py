"""Beam search compared with transformers' `generate`, on the logits of a random Marian model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import MarianConfig, MarianMTModel
from transformers.modeling_outputs import BaseModelOutput

from gpt2_jax.model.beam import BeamParams, beam_search
from tests.model.reordering import reordering

pytestmark = pytest.mark.peers

PAD, END, N_IDS, LENGTH, N_BEAMS = 39, 0, 40, 12, 5


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in
             (("layers", 2), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    config = MarianConfig(
        vocab_size=N_IDS,
        d_model=16,
        max_position_embeddings=32,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        forced_eos_token_id=None,
        init_std=0.3,
        **sizes,
    )
    made = MarianMTModel(config).eval()
    made.final_logits_bias[0, END] = 2.0
    return made


def source():
    rng = np.random.default_rng(0)
    ids_BS = rng.integers(1, N_IDS - 1, (6, 9))
    mask_BS = np.arange(9) < np.array([9, 3, 5, 9, 1, 7])[:, None]
    return torch.tensor(np.where(mask_BS, ids_BS, PAD)), torch.tensor(mask_BS.astype(int))


def searched(model, params):
    """Runs our search on their logits, recomputed for the whole text at each step."""
    ids_BS, mask_BS = source()
    with torch.no_grad():
        memory = model.model.encoder(ids_BS, mask_BS).last_hidden_state
    memory, mask = (x.repeat_interleave(params.n_beams, 0) for x in (memory, mask_BS))

    def logits(texts_NT, n):
        texts = torch.tensor(np.array(texts_NT)[:, : int(n)], dtype=torch.long)
        with torch.no_grad():
            out = model(
                encoder_outputs=BaseModelOutput(memory),
                attention_mask=mask,
                decoder_input_ids=texts,
            )
        return out.logits[:, -1].numpy()

    def step(caches, tokens_N):
        texts_NT, n = caches
        texts_NT = texts_NT.at[:, n].set(tokens_N)
        shape = jax.ShapeDtypeStruct((len(tokens_N), N_IDS), jnp.float32)
        return jax.pure_callback(logits, shape, texts_NT, n + 1), (texts_NT, n + 1)

    n_rows = len(ids_BS)
    return beam_search(
        reordering(step, lambda caches, rows_N: (caches[0][rows_N], caches[1])),
        (jnp.zeros((n_rows * params.n_beams, LENGTH + 1), jnp.int32), jnp.int32(0)),
        jnp.full(n_rows, PAD),
        jnp.full(n_rows, LENGTH),
        params,
        length=LENGTH,
        end=END,
    )


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.5, -1.0])
def test_hypotheses_equal_those_of_transformers(model, alpha):
    ids_BS, mask_BS = source()
    want = model.generate(
        ids_BS,
        attention_mask=mask_BS,
        num_beams=N_BEAMS,
        num_return_sequences=N_BEAMS,
        length_penalty=alpha,
        early_stopping="never",
        max_new_tokens=LENGTH,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    got = searched(model, BeamParams(N_BEAMS, alpha))
    scores = want.sequences_scores.numpy().reshape(-1, N_BEAMS)
    np.testing.assert_allclose(got.scores_BK, scores, rtol=1e-4)
    theirs_BKT = want.sequences.numpy().reshape(*scores.shape, -1)[..., 1:]
    lengths = set()
    for row, slot in np.ndindex(*scores.shape):
        n = int(got.lengths_BK[row, slot])
        assert got.ids_BKT[row, slot, :n].tolist() == theirs_BKT[row, slot, :n].tolist()
        assert n == LENGTH or theirs_BKT[row, slot, n - 1] == END
        lengths.add(n)
    assert len(lengths) > 1


def test_one_beam_equals_greedy_search(model):
    ids_BS, mask_BS = source()
    want = model.generate(ids_BS, attention_mask=mask_BS, max_new_tokens=LENGTH, do_sample=False)
    got = searched(model, BeamParams(1))
    for row, n in enumerate(got.lengths_BK[:, 0]):
        assert got.ids_BKT[row, 0, :n].tolist() == want[row, 1 : 1 + n].tolist()
    assert len(set(got.lengths_BK[:, 0].tolist())) > 1
