"""Config files: Python that is executed once and may only return a config."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from gpt2_jax.errors import UserError, one_line


@contextlib.contextmanager
def executing(argument: str) -> Iterator[None]:
    """Turns any exception of a config file, and its attempts to exit, into a one-line error.

    Its output goes to stderr, because stdout is for the command's result.

    Args:
      argument: the value of `--config`: FILE or FILE:argument.

    Raises:
      UserError: naming the file.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except SystemExit:
        raise UserError(
            f"--config={argument} ends the process; it must return a config from get_config()"
        ) from None
    except BaseException as error:
        raise UserError(f"--config={argument}: {one_line(error)}") from None
