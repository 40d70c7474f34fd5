"""Finds, reads and writes the files of Hugging Face checkpoints."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gpt2_jax.data.hub import hub_error
from gpt2_jax.errors import UserError, quoted, shortened
from gpt2_jax.files import check_regular, read_fields, write_json
from gpt2_jax.interop.layouts import Tensors

DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "merges.txt", "vocab.txt", "*.spm"]
SHARD_BYTES = 5_000_000_000  # the hub's limit
SMALL_FLOATS = ("F8_", "F6_", "F4")  # not supported by numpy
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def find_checkpoint(model: str, allow_pickle: bool) -> Path:
    """Returns a checkpoint's folder, which is `model` or a download of that name on the hub.

    Raises:
      UserError: if there is no such folder or hub name, or the hub is unreachable.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"--model={model} is not a folder")
    from huggingface_hub import snapshot_download

    patterns = [*DOWNLOAD_PATTERNS, PICKLE] if allow_pickle else DOWNLOAD_PATTERNS
    fault = hub_error()
    try:
        # If the hub is unreachable, use an earlier download.
        offline = fault is not None
        return Path(snapshot_download(model, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # from the hub's library, requests or httpx
        reason = fault or shortened(error)
        raise UserError(
            f"--model={model} is not a folder, and downloading it from the Hugging Face hub "
            f"failed: {reason}"
        ) from None


def read_tensors(folder: Path, allow_pickle: bool) -> Tensors:
    """Reads all tensors of a checkpoint: a safetensors file, indexed shards, or a pickle.

    Raises:
      UserError: if there are none, a file is damaged, or the index refers to a file outside the
        folder.
    """
    if (folder / INDEX).exists():
        return _read_shards(folder)
    if (folder / FILE).exists():
        return _read_safetensors(folder / FILE)
    if (folder / PICKLE).exists():
        if allow_pickle:
            return _read_pickle(folder / PICKLE)
        raise UserError(
            f"{folder} has its weights only in {PICKLE}, a format that can contain code; pass "
            "--allow_pickle to read it with torch.load(weights_only=True)"
        )
    raise UserError(f"{folder} has neither {FILE} nor {INDEX}")


def read_adapter(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    """Returns the tensors of a folder of peft, and the fields of its adapter_config.json.

    Raises:
      UserError: if a file is missing or damaged.
    """
    if not (folder / ADAPTER).exists():
        raise UserError(f"{folder} has {ADAPTER_CONFIG}, but no {ADAPTER}")
    return _read_safetensors(folder / ADAPTER), read_fields(folder / ADAPTER_CONFIG)


def write_adapter(folder: Path, tensors: Tensors, fields: dict[str, Any]) -> None:
    """Writes a folder of peft; see `read_adapter`."""
    from safetensors.numpy import save_file

    save_file(tensors, folder / ADAPTER, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, fields)


def _read_shards(folder: Path) -> Tensors:
    file_of = read_fields(folder / INDEX).get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(v, str) for v in file_of.values()):
        raise UserError(f"{folder / INDEX} has no valid weight_map from tensors to files")
    out: Tensors = {}
    for name in sorted(set(file_of.values())):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise UserError(f"{folder / INDEX} refers to a file outside its folder: {name!r}")
        if path.suffix != ".safetensors" or not name.isprintable():
            raise UserError(
                f"{folder / INDEX} refers to {quoted(name)}, which is not a .safetensors file"
            )
        tensors = _read_safetensors(folder / path)
        wrong = [tensor for tensor in tensors if file_of.get(tensor) != name]
        if wrong:
            raise UserError(f"{folder / path} has {wrong[0]}, which {INDEX} lists elsewhere")
        out |= tensors
    if missing := sorted(set(file_of) - set(out)):
        raise UserError(f"{folder / INDEX} lists {missing[0]}, which is missing from its file")
    return out


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()  # the file itself is not iterable
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            if small := [name for name in names if dtypes[name].startswith(SMALL_FLOATS)]:
                raise UserError(
                    f"{path}: tensor {small[0]} is {dtypes[small[0]]}; only float32, float16 and "
                    "bfloat16 are supported"
                )
            return {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from None


def _read_pickle(path: Path) -> Tensors:
    check_regular(path)
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it requires torch; pip install torch") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # CVE-2025-32434
        raise UserError(f"{path}: torch before 2.6 may run code when reading it; upgrade torch")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: _from_torch(value) for name, value in tensors.items()}
    except Exception as error:  # unpickling raises many types
        raise UserError(
            f"{path} cannot be read with weights_only=True: {shortened(error)}"
        ) from None


def _from_torch(value: Any) -> np.ndarray:
    # numpy has no bfloat16; float32 represents all of its values.
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Writes a safetensors file, or shards of at most `SHARD_BYTES` and their index."""
    from safetensors.numpy import save_file

    shards = _split_shards(tensors)
    if len(shards) == 1:
        save_file(tensors, folder / FILE, metadata={"format": "pt"})
        return
    file_of: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        file_of |= dict.fromkeys(shard, name)
    size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": file_of}
    write_json(folder / INDEX, index)


def _split_shards(tensors: Tensors) -> list[Tensors]:
    shards: list[Tensors] = [{}]
    size = 0
    for name, value in tensors.items():
        if shards[-1] and size + value.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = value
        size += value.nbytes
    return shards
