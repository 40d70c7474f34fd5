"""Tokenizes in several processes, which exit when their parent does."""

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

from gpt2_jax.data.split import SplitPiece
from gpt2_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt2_jax.errors import UserError


class ProcessKilled(UserError):
    """A tokenizing process was killed; running the same command again continues the work."""


def encode_parallel(
    tokenizer: Tokenizer, batches: Iterable[list[SplitPiece]], processes: int
) -> Iterator[tuple[list[SplitPiece], list[np.ndarray]]]:
    """Yields batches of pieces in order, each with the ids of its texts.

    Raises:
      ProcessKilled: if a process is killed.
    """
    context = multiprocessing.get_context("spawn")
    named = tokenizer.name, tokenizer.fingerprint
    try:
        with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
            pending: deque[tuple[list[SplitPiece], Future[list[np.ndarray]]]] = deque()
            for batch in batches:
                texts = [piece.text for _, piece in batch]
                pending.append((batch, pool.submit(_encode, *named, texts)))
                if len(pending) > 2 * processes:
                    first, future = pending.popleft()
                    yield first, future.result()
            for first, future in pending:
                yield first, future.result()
    except BrokenProcessPool:
        raise ProcessKilled(
            "a tokenizing process was killed, perhaps because memory ran out; run the same command "
            "again to continue; if it is killed again, run `gpt2-jax prepare` with --processes=1, "
            "and train on its --out"
        ) from None


def _encode(tokenizer_name: str, fingerprint: str, texts: list[str]) -> list[np.ndarray]:
    return load_tokenizer(tokenizer_name, fingerprint).encode(texts)


def _end_with_parent() -> None:
    """Makes this process exit when its parent is killed, and leaves Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
