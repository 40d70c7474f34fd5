"""Tokenizing in several processes that never outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from gpt2_jax.data.split import Marked
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError


class ProcessKilled(UserError):
    """A tokenizing process was killed from outside; the same command continues."""


def encode_in_processes(
    tokenizer: Tokenizer, batches: Iterable[list[Marked]], processes: int
) -> Iterator[tuple[list[Marked], list[np.ndarray]]]:
    """Yields batches of texts with their ids, in order.

    Raises:
      ProcessKilled: if one of the processes is killed.
    """
    context = multiprocessing.get_context("spawn")
    named = tokenizer.name, tokenizer.fingerprint
    try:
        with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
            waiting: deque[tuple[list[Marked], Future[list[np.ndarray]]]] = deque()
            for batch in batches:
                texts = [piece.text for _, piece in batch]
                waiting.append((batch, pool.submit(_encode, *named, texts)))
                if len(waiting) > 2 * processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for first, future in waiting:
                yield first, future.result()
    except BrokenProcessPool:
        raise ProcessKilled(
            "a tokenizing process was killed, perhaps because memory ran out; the same command "
            "continues; with too little memory run `python -m gpt2_jax.data.prepare` first, with "
            "--processes=1, and train on its --out"
        ) from None


def _encode(tokenizer_name: str, fingerprint: str, texts: list[str]) -> list[np.ndarray]:
    return load_tokenizer(tokenizer_name, fingerprint).encode(texts)


def _end_with_parent() -> None:
    """Ends this process when its parent is killed, which cannot tell it to stop.

    Ctrl-C is left to the parent: the terminal sends it to every process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
