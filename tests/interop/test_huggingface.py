"""Import and export without torch: names, shapes, types, files and errors."""

import json
import os
import shutil
import socket
import struct
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from gpt2_jax import config as configs
from gpt2_jax.data import hub
from gpt2_jax.data.mixture import short_source
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.tokenizer import load_tokenizer
from gpt2_jax.errors import DiskError, UserError
from gpt2_jax.interop import checkpoint_files
from gpt2_jax.interop.export_model import export_model
from gpt2_jax.interop.families import family_of, gpt2
from gpt2_jax.interop.families.family import dropout_note
from gpt2_jax.interop.import_model import import_model, read_config
from gpt2_jax.model.heads import LM
from gpt2_jax.train.pretrained import check_source, find_source
from gpt2_jax.train.storage.open_run import open_run
from gpt2_jax.train.storage.rundir import RunDirectory
from tests import tools
from tests.interop import checkpoints
from tests.model.test_sort_fixture import read


def logits(workdir, tokens):
    run = open_run(str(workdir))
    return run.model_def.bind(run.params)(tokens)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    import_model(str(checkpoints.write(folder / "theirs")), str(folder / "run"))
    return folder


def test_unresponsive_hub_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HUB_TIMEOUT_SECONDS", 0.1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=f"--model=some/model.*{url} does not respond"):
            import_model("some/model", str(tmp_path / "run"))
        with pytest.raises(UserError, match=f"source hf:some/data@train: {url} does not respond"):
            open_source("hf:some/data@train")
    with pytest.raises(UserError, match=f"source hf:some/data@train: {url} cannot be reached"):
        open_source("hf:some/data@train")  # the port is closed now
    assert not list(tmp_path.iterdir())


def test_training_killed_before_its_first_step_can_restart(imported, tmp_path):
    """config.json is written before run.json lists the start."""
    folder = shutil.copytree(imported / "run", tmp_path / "run")
    directory = RunDirectory(str(folder))
    config = configs.replace(directory.read_config(), {"optimizer.peak_lr": 1e-5})
    corpus = SimpleNamespace(content_hash=lambda: "hash", source_hashes=dict, labels=())
    directory.claim(config, corpus, load_tokenizer(config.data.tokenizer))
    check_source(find_source(config, RunDirectory(str(folder))))


def test_import_of_a_trained_model_reproduces_its_logits(tmp_path):
    """The sorting model in Hugging Face's layout, compared with its stored logits."""
    stored, partials = read("model.json"), read("partials.json")
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    theirs = {
        name: np.ascontiguousarray(value.T)
        if name.endswith(tuple(f"{part}.weight" for part in linear))
        else value
        for name, value in stored.items()
    }
    sizes = {"n_layer": 3, "n_head": 3, "n_embd": 48, "n_inner": None, "vocab_size": 3}
    folder = checkpoints.write(tmp_path / "sort", theirs, n_positions=11, **sizes)
    lines = import_model(str(folder), str(tmp_path / "run"))
    assert lines[0].startswith("85,728 parameters")
    tokens = partials["idx"].astype(np.int32)
    got = logits(tmp_path / "run", tokens)[..., :3]
    np.testing.assert_allclose(got, partials["lm_head"], atol=1e-5, rtol=0)
    export_model(str(tmp_path / "run"), str(tmp_path / "out"))
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert theirs.keys() - again.keys() == {f"transformer.h.{i}.attn.bias" for i in range(3)}
    for name, value in again.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_import_and_export_are_bitwise_inverse(tmp_path, monkeypatch, dtype, prefix):
    monkeypatch.setattr(checkpoint_files, "SHARD_BYTES", 4000)
    theirs = checkpoints.tensors(jnp.dtype(dtype))
    named = {name.replace("transformer.", prefix): value for name, value in theirs.items()}
    named |= {f"{prefix}h.0.attn.bias": np.ones((1, 1, 12, 12), np.uint8)}
    named |= {f"{prefix}h.1.attn.masked_bias": np.array(-1e4, np.float32)}
    folder = checkpoints.write(tmp_path / "theirs", named)
    import_model(str(folder), str(tmp_path / "run"))
    export_model(str(tmp_path / "run"), str(tmp_path / "out"), dtype)
    index = json.loads((tmp_path / "out" / checkpoint_files.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = checkpoint_files.read_tensors(tmp_path / "out", allow_pickle=False)
    assert again.keys() == theirs.keys()
    for name, value in theirs.items():
        assert again[name].dtype == value.dtype
        assert again[name].tobytes() == value.tobytes(), name
    import_model(str(tmp_path / "out"), str(tmp_path / "run2"))  # reads shards
    tokens = jnp.arange(11)[None]
    np.testing.assert_array_equal(
        logits(tmp_path / "run", tokens), logits(tmp_path / "run2", tokens)
    )


def test_tied_embedding_stored_as_head(imported, tmp_path):
    weights = checkpoints.tensors()
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    folder = checkpoints.write(tmp_path / "theirs", weights, tie_word_embeddings=True)
    import_model(str(folder), str(tmp_path / "run"))
    want = open_run(str(imported / "run")).params["embedding"]["wte"]
    np.testing.assert_array_equal(open_run(str(tmp_path / "run")).params["embedding"]["wte"], want)


def test_imported_tokenizer_moves_with_the_run(tmp_path):
    import tokenizers

    from gpt2_jax.interop.tokenizer_files import byte_level

    content = byte_level("bytes")
    content["added_tokens"][0]["content"] = "</s>"
    del content["model"]["vocab"]["<|endoftext|>"]
    content["model"]["vocab"]["</s>"] = 256
    weights = checkpoints.tensors()
    for name in ("transformer.wte.weight", "lm_head.weight"):
        weights[name] = np.resize(weights[name], (257, 16))
    folder = checkpoints.write(tmp_path / "theirs", weights, vocab_size=257)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    lines = import_model(str(folder), str(tmp_path / "run"))
    assert lines[1].endswith(str(tmp_path / "run" / "tokenizer.json"))
    (tmp_path / "run").rename(tmp_path / "moved")
    config = open_run(str(tmp_path / "moved")).config
    assert config.data.tokenizer == str(tmp_path / "moved" / "tokenizer.json")
    export_model(str(tmp_path / "moved"), str(tmp_path / "out"))
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert again.encode("a\u00e4</s>").ids == [97, 0xC3, 0xA4, 256]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 256


def test_config_json_round_trip(imported, tmp_path):
    export_model(str(imported / "run"), str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {k: written[k] for k in checkpoints.CONFIG} == checkpoints.CONFIG
    before = configs.from_json(imported / "run" / "config.json")
    again = read_config(written)
    assert (again.model, again.placement) == (before.model, before.placement)


@pytest.mark.parametrize(
    ("field", "theirs", "ours"),
    [
        ("activation_function", "gelu_pytorch_tanh", ("placement.activation", "gelu_new")),
        ("activation_function", "gelu", ("placement.activation", "gelu")),
        ("activation_function", "swish", ("placement.activation", "silu")),
        ("scale_attn_weights", False, ("model.scale_attn_weights", False)),
        (
            "scale_attn_by_inverse_layer_idx",
            True,
            ("model.scale_attn_by_inverse_layer_idx", True),
        ),
        ("layer_norm_epsilon", 1e-6, ("placement.norm_eps", 1e-6)),
        ("tie_word_embeddings", True, ("model.tie_head", True)),
        ("n_inner", None, ("model.n_inner", 64)),
    ],
)
def test_config_json_fields(field, theirs, ours):
    other = checkpoints.CONFIG | {"activation_function": "relu"}
    usual = read_config(other)
    got = read_config(other | {field: theirs})
    field, value = ours
    assert configs.value_of(got, field) == value != configs.value_of(usual, field)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"activation_function": "mish"}, "activation_function='mish' is not one of gelu"),
        ({"quantization_config": {"bits": 4}}, "quantized weights"),
        ({"n_layer": None}, "n_layer"),
        ({"n_head": 3}, "model.n_head=3 does not divide"),
        ({"n_embd": 32}, r"wte.weight .*\(11, 16\).*\(11, 32\)"),
        ({"n_layer": 3}, "no tensor h.2.ln_1.weight"),
        ({"n_layer": 1}, "12 tensors.*: h.1.attn.c_attn.bias"),
        ({"tie_word_embeddings": True}, "lm_head.weight differs from wte.weight"),
        ({"n_inner": "x"}, "config.json: n_inner='x'"),
        ({"layer_norm_epsilon": "tiny"}, "layer_norm_epsilon='tiny'"),
        ({"tie_word_embeddings": 3}, "tie_word_embeddings=3"),
        ({"layer_norm_epsilon": 10**400}, "layer_norm_epsilon=inf"),
        ({"n_layer": 10**7}, "n_layer=10000000"),
        ({"n_embd": 2**20, "n_layer": 9999}, "n_layer=9999, model.n_embd=1048576"),
        ({"activation_function": []}, r"activation_function=\[\] is not one of"),
    ],
)
def test_unsupported_config_is_named(tmp_path, change, message):
    folder = checkpoints.write(tmp_path / "theirs", **change)
    with pytest.raises(UserError, match=message):
        import_model(str(folder), str(tmp_path / "run"))
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.wpe.weight": None}, "no tensor wpe.weight"),
        ({"lm_head.weight": None}, "no tensor lm_head.weight"),
        ({"wpe.weight": np.ones((12, 16), np.float32)}, "has wpe.weight twice"),
        ({"score.weight": np.ones(3, np.float32)}, ": score.weight"),
        ({"transformer.h.0.crossattention.c_attn.weight": np.ones(3)}, "crossattention"),
        ({"transformer.ln_f.bias": np.ones(16, np.float64)}, "ln_f.bias is float64"),
        ({"transformer.ln_f.bias": np.ones(15, np.float32)}, r"ln_f.bias has shape \(15,\)"),
        ({"transformer.ln_f.bias": np.full(16, np.nan, np.float32)}, r"ln_f.bias .* not finite"),
        (
            {"lm_head.weight": np.full((11, 16), np.inf, np.float16)},
            r"lm_head.weight .* not finite",
        ),
    ],
)
def test_unsupported_tensor_is_named(tmp_path, change, message):
    weights = checkpoints.tensors() | change
    folder = checkpoints.write(tmp_path / "t", {k: v for k, v in weights.items() if v is not None})
    with pytest.raises(UserError, match=message):
        import_model(str(folder), str(tmp_path / "run"))
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_tokenizer_is_checked_before_tensors_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "read_tensors", pytest.fail)
    folder = checkpoints.write(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"tokenizer gpt2 has ids up to 50256.*--tokenizer"):
        import_model(str(folder), str(tmp_path / "run"), tokenizer="gpt2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/x.safetensors", "a/../../b"])
def test_index_cannot_refer_outside_its_folder(tmp_path, place):
    folder = checkpoints.write(tmp_path / "theirs")
    (folder / "model.safetensors").rename(tmp_path / "secret.safetensors")
    names = dict.fromkeys(checkpoints.tensors(), place)
    (folder / checkpoint_files.INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="outside its folder"):
        import_model(str(folder), str(tmp_path / "run"))


@pytest.mark.parametrize("place", ["", ".", "a\0.safetensors", "\ud800.safetensors", "a.bin"])
def test_index_must_refer_to_safetensors_files(tmp_path, place):
    folder = checkpoints.write(tmp_path / "theirs")
    names = dict.fromkeys(checkpoints.tensors(), place)
    (folder / checkpoint_files.INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match=checkpoint_files.INDEX):
        import_model(str(folder), str(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_8_bit_tensor_is_rejected(tmp_path, kind):
    folder = checkpoints.write(tmp_path / "theirs")
    head = json.dumps({"wte.weight": {"dtype": kind, "shape": [4], "data_offsets": [0, 4]}})
    packed = struct.pack("<Q", len(head)) + head.encode() + bytes(4)
    (folder / "model.safetensors").write_bytes(packed)
    with pytest.raises(UserError, match=f"model.safetensors: tensor wte.weight is {kind}"):
        import_model(str(folder), str(tmp_path / "run"))


def test_dropout_note_escapes_control_characters():
    note = dropout_note(gpt2.FAMILY, {"embd_pdrop": "\x1b[31m", "attn_pdrop": 0.1})
    assert note.isprintable() and "attn_pdrop=0.1" in note


PIPES = ["config.json", "tokenizer.json", "merges.txt", "model.safetensors"]


@pytest.mark.parametrize("name", PIPES)
def test_pipe_in_checkpoint_is_rejected(tmp_path, name):
    folder = checkpoints.write(tmp_path / "theirs")
    if name == "merges.txt":
        (folder / "vocab.json").write_text('{"a": 0}')
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=name):
        import_model(str(folder), str(tmp_path / "run"))


def test_pickle_requires_allow_pickle(tmp_path):
    folder = checkpoints.write(tmp_path / "theirs")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="--allow_pickle"):
        import_model(str(folder), str(tmp_path / "run"))


def test_damaged_files_are_named(tmp_path):
    folder = checkpoints.write(tmp_path / "theirs")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        import_model(str(folder), str(tmp_path / "run"))
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        import_model(str(folder), str(tmp_path / "run"))


def test_values_out_of_range_of_the_dtype_are_rejected(tmp_path):
    weights = checkpoints.tensors() | {"transformer.ln_f.bias": np.full(16, 1e5, np.float32)}
    folder = checkpoints.write(tmp_path / "theirs", weights)
    import_model(str(folder), str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"--dtype=float16.*ln_f\.bias"):
        export_model(str(tmp_path / "run"), str(tmp_path / "out"), "float16")
    assert not (tmp_path / "out").exists()
    export_model(str(tmp_path / "run"), str(tmp_path / "out"), "bfloat16")


def test_export_to_a_full_disk_leaves_no_files(imported, tmp_path, monkeypatch):
    from safetensors import SafetensorError, numpy

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(numpy, "save_file", full)
    with pytest.raises(DiskError, match=r"out.*No space left"):
        export_model(str(imported / "run"), str(tmp_path / "a" / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/home/bob/books/tiny.txt", "tiny.txt"),
        ("~/books/*.txt", "*.txt"),
        ("books/tiny.txt", "tiny.txt"),
        ("hf:/home/bob/books@train", "hf:books@train"),
        ("https://bob:SECRET@host/x", "x"),
        ("hf:user/books:en@train", "hf:user/books:en@train"),
        ("stdlib", "stdlib"),
        ("mixture:/home/bob/web=0.7,hf:a/b@train=0.3", "mixture:web=0.7,hf:a/b@train=0.3"),
    ],
)
def test_model_card_hides_local_paths(source, name):
    assert short_source(source) == name


def test_existing_files_are_not_overwritten(imported, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        import_model(str(imported / "theirs"), str(tmp_path))
    with pytest.raises(UserError, match="is not empty"):
        export_model(str(imported / "run"), str(tmp_path))
    assert (tmp_path / "mine").read_text() == "precious"


def test_unsupported_placement_is_not_exported():
    config = tools.tiny(placement__preset="post_ln")
    with pytest.raises(UserError, match=r"post_ln cannot be exported: Hugging Face's GPT-2 has"):
        family_of(config)


def test_damaged_import_is_rejected(imported, tmp_path):
    import shutil

    shutil.copytree(imported / "run", tmp_path / "run")
    victim = next(p for p in (tmp_path / "run" / "weights" / "state" / "d").iterdir())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        open_run(str(tmp_path / "run"))


def test_vocabulary_padding(imported):
    params = open_run(str(imported / "run")).params
    wte = params["embedding"]["wte"]
    assert wte.shape == params["head"].shape == (128, 16)
    assert (wte[11:] == 0).all() and (wte[:11] != 0).any()


def test_commands(tmp_path):
    module = ("-m", "gpt2_jax")
    line = tools.one_line_error(tools.run(*module, "inport", tmp=tmp_path))
    assert line == "error: 'inport' is not a command; did you mean 'import'?"
    line = tools.one_line_error(tools.run(*module, "export", "--out=x", tmp=tmp_path))
    assert "--workdir" in line
    folder = checkpoints.write(tmp_path / "theirs")
    made = f"--workdir={tmp_path / 'run'}"
    done = tools.run(*module, "import", f"--model={folder}", made, tmp=tmp_path)
    assert done.returncode == 0 and "texts are decimal token ids" in done.stdout, done.stderr
    again = (f"--model={tmp_path / 'run'}", f"--workdir={tmp_path / 'again'}")
    line = tools.one_line_error(tools.run(*module, "import", *again, tmp=tmp_path))
    assert "is a run of gpt2_jax, not a Hugging Face checkpoint; use it as --workdir" in line
    done = tools.run(*module, "export", made, f"--out={tmp_path / 'out'}", tmp=tmp_path)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "imported from | theirs" in card and "| training |" not in card


def test_every_parameter_has_a_tensor_name(imported):
    """The table contains every leaf of our parameters."""
    run = open_run(str(imported / "run"))
    assert len(gpt2.table(run.config, LM).rows) == len(jax.tree.leaves(run.params))
