"""Config files: Python that is executed once, and may do nothing but return a config."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from gpt2_jax.errors import UserError


@contextlib.contextmanager
def executing(argument: str) -> Iterator[None]:
    """Turns whatever a config file does instead of returning into one line.

    What it prints goes to stderr: a command's stdout is its result.

    Args:
      argument: of `--config`, FILE or FILE:argument.

    Raises:
      UserError: naming the file.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except SystemExit:
        raise UserError(
            f"--config={argument} ends the process; it must return a config from get_config()"
        ) from None
    except Exception as error:
        raise UserError(f"--config={argument}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """Returns an exception's type and text, without the traceback that its text may hold."""
    text = str(error)
    head, _, trace = text.partition("Traceback")
    if trace:
        text = f"{head} {trace.strip().splitlines()[-1]}"
    text = " ".join(text.partition(" Other fields present")[0].split())[:300]
    text = text[1:-1] if text[:1] == text[-1:] and text[:1] in "'\"" else text
    return f"{type(error).__name__}: {text}"
