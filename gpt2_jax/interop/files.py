"""Hugging Face checkpoints as files: read as data and nothing else, written whole or not at all."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gpt2_jax.data.hub import find_hub_fault
from gpt2_jax.errors import UserError, shown
from gpt2_jax.files import check_regular, read_errors, read_fields, write_json
from gpt2_jax.interop.weights import Tensors

WANTED = ["*.json", "*.safetensors", "merges.txt"]
SHARD_BYTES = 5_000_000_000  # as large as their hub's shards
SMALL_FLOATS = ("F8_", "F6_", "F4")  # numpy has none of them
FILE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def locate(model: str, allow_pickle: bool) -> Path:
    """Returns the folder of a checkpoint: a local one, or a hub name's in the download cache.

    Raises:
      UserError: if there is no such folder, and no such name within reach.
    """
    if Path(model).is_dir():
        return Path(model)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"--model={model} is no folder")
    from huggingface_hub import snapshot_download

    wanted, fault = [*WANTED, PICKLE] if allow_pickle else WANTED, find_hub_fault()
    try:
        # Without the hub, what was downloaded before serves.
        found = snapshot_download(model, allow_patterns=wanted, local_files_only=fault is not None)
        return Path(found)
    except Exception as error:  # the hub's library raises its own, requests' and httpx's errors
        reason = fault or " ".join(str(error).split())[:200]
        raise UserError(
            f"--model={model} is no folder, and the Hugging Face hub did not give it: {reason}"
        ) from None


def refuse_full(folder: Path, flag: str) -> None:
    """Refuses a place where something is already.

    Raises:
      UserError: naming the flag.
    """
    with read_errors(folder):
        is_full = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_full:
        raise UserError(f"{flag} is not empty; give a directory that does not exist yet")


def read_tensors(folder: Path, allow_pickle: bool) -> Tensors:
    """Returns every tensor of a checkpoint: one safetensors file, indexed shards, or a pickle.

    Raises:
      UserError: if there are none, a file is damaged, or the index points out of the folder.
    """
    if (folder / INDEX).exists():
        return _read_shards(folder)
    if (folder / FILE).exists():
        return _read_safetensors(folder / FILE)
    if (folder / PICKLE).exists():
        if allow_pickle:
            return _read_pickle(folder / PICKLE)
        raise UserError(
            f"{folder} has its weights in {PICKLE} alone, a format that can carry code; "
            "--allow_pickle reads it, by torch.load(weights_only=True)"
        )
    raise UserError(f"{folder} has neither {FILE} nor {INDEX}")


def _read_shards(folder: Path) -> Tensors:
    places = read_fields(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise UserError(f"{folder / INDEX} has no weight_map of names to files")
    out: Tensors = {}
    for name in sorted(set(places.values())):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise UserError(f"{folder / INDEX} points out of its folder, to {name!r}: refused")
        if path.suffix != ".safetensors" or not name.isprintable():
            raise UserError(
                f"{folder / INDEX} names {shown(name)}, which is not a .safetensors file"
            )
        here = _read_safetensors(folder / path)
        wrong = [tensor for tensor in here if places.get(tensor) != name]
        if wrong:
            raise UserError(f"{folder / path} holds {wrong[0]}, which the index places elsewhere")
        out |= here
    if missing := sorted(set(places) - set(out)):
        raise UserError(f"{folder / INDEX} names {missing[0]}, which its file does not hold")
    return out


def _read_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    check_regular(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()  # the file itself is not iterable
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            if small := [name for name in names if kinds[name].startswith(SMALL_FLOATS)]:
                raise UserError(
                    f"{path}: tensor {small[0]} is {kinds[small[0]]}; only float32, float16 and "
                    "bfloat16 are read"
                )
            return {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from None


def _read_pickle(path: Path) -> Tensors:
    check_regular(path)
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading it needs torch; pip install torch") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):  # CVE-2025-32434
        raise UserError(f"{path}: torch before 2.6 can be made to run code by it; upgrade torch")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: _from_torch(value) for name, value in tensors.items()}
    except Exception as error:  # an unpickler's errors have many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as weights alone: {reason}") from None


def _from_torch(value: Any) -> np.ndarray:
    # numpy has no bfloat16; float32 holds all of its values.
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def write_tensors(folder: Path, tensors: Tensors) -> None:
    """Writes safetensors: one file, or shards with an index where it would be too large."""
    from safetensors.numpy import save_file

    shards = _shards(tensors)
    if len(shards) == 1:
        save_file(tensors, folder / FILE, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    size = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(folder / INDEX, index)


def _shards(tensors: Tensors) -> list[Tensors]:
    shards: list[Tensors] = [{}]
    filled = 0
    for name, value in tensors.items():
        if shards[-1] and filled + value.nbytes > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = value
        filled += value.nbytes
    return shards
