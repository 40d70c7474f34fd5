"""Command lines whose every mistake ends in one line and an exit code."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

from absl import flags, logging

from gpt2_jax import config
from gpt2_jax.errors import EXIT_WRONG_INPUT, UserError, suggestion


def guarded(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """Returns `main` with a `UserError` turned into one line on stderr and its exit code."""

    def run(argv: list[str]) -> Any:
        logging.set_verbosity(logging.ERROR)  # jax and orbax narrate what they do
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is no flag; flags look like --name=value")
            return main(argv)
        except UserError as error:
            die(str(error), error.exit_code)
        except KeyboardInterrupt:
            die("interrupted before there was anything to save", 130)

    return run


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in them is one line, with the nearest name."""
    try:
        return flags.FLAGS(argv)
    except UserError as error:
        die(str(error), error.exit_code)
    except flags.UnrecognizedFlagError as error:
        known = [name for name in flags.FLAGS if not name.startswith("?")]
        die(f"--{error.flagname} is no flag{suggestion(error.flagname, known)}")
    except (AttributeError, KeyError) as error:
        # config_flags looks up the field before it gives the flag a value
        die(_unknown_field(argv, error))
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        die(" ".join(str(error).split()))
    raise AssertionError("unreachable")


def die(message: str, code: int = EXIT_WRONG_INPUT) -> None:
    """Ends the process with one line on stderr."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _unknown_field(argv: list[str], error: Exception) -> str:
    given = [re.match(r"--?config\.([\w.]+)", arg) for arg in argv]
    for match in given:
        if match and match[1] not in config.FIELDS:
            return f"--config.{match[1]} is no field{_nearest(match[1])}"
    return " ".join(str(error).split())


def _nearest(name: str) -> str:
    section = name.rpartition(".")[0]
    inside = [f for f in config.FIELDS if f.rpartition(".")[0] == section]
    hint = suggestion(name, inside or config.FIELDS)
    return hint if "did you mean" in hint else suggestion(name, config.FIELDS)
