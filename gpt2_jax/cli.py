"""Command lines whose every mistake ends in one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

from absl import app, flags, logging

from gpt2_jax import config as configs
from gpt2_jax.errors import EXIT_WRONG_INPUT, UserError, suggestion, without_credentials


def guarded(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """Returns `main` with a `UserError` turned into one line on stderr and its exit code."""

    def run(argv: list[str]) -> Any:
        logging.set_verbosity(logging.FATAL)  # jax and orbax narrate, in tracebacks too
        try:
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is no flag; flags look like --name=value")
            return main(argv)
        except UserError as error:
            die(str(error), error.exit_code)
        except KeyboardInterrupt:
            die("interrupted", 130)

    return run


def run_commands(main: Callable[[str], Any], commands: Sequence[str]) -> None:
    """Runs `main` with the command that is the first word of the command line, then flags."""
    program, *words = sys.argv
    if not words or (words[0].startswith("-") and "--help" not in words):
        die(f"say what to do first: {' or '.join(commands)}, then flags")
    command = words[0]
    if "--help" in words:
        words = ["--help"]
    elif command not in commands:
        die(f"{command!r} is no command{suggestion(command, commands)}")
    else:
        words = words[1:]
    app.run(guarded(lambda _: main(command)), argv=[program, *words], flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and executes the config file; a mistake in either is one line."""
    try:
        _check_file(argv)
        rest = flags.FLAGS(_quote_words(argv))
        _load_config()
        return rest
    except UserError as error:
        die(str(error), error.exit_code)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            die(f"--{error.flagname} changes a config: give --config=FILE before it")
        known = [name for name in flags.FLAGS if not name.startswith("?")]
        die(f"--{error.flagname} is no flag{suggestion(error.flagname, known)}")
    except flags.Error as error:
        die(_one_line(error))
    except Exception as error:
        # config_flags looks a field up before it gives it a value, and config files may do anything
        die(_unknown_field(argv) or f"--config: {type(error).__name__}: {_one_line(error)}")
    raise AssertionError("unreachable")


def _quote_words(argv: list[str]) -> list[str]:
    """Writes `--config.x=a,b=c` as a Python tuple for fields of several strings.

    config_flags takes such a value for Python, in which most patterns are none.
    """
    out = []
    for arg in argv:
        given = re.fullmatch(r"--?config\.([\w.]+)=(.*)", arg, re.DOTALL)
        field = configs.FIELDS.get(given[1]) if given else None
        if given and field and isinstance(field.default, tuple) and given[2][:1] not in "([":
            arg = f"--config.{given[1]}={configs.words((given[2],))!r}"
        out.append(arg)
    return out


def _check_file(argv: list[str]) -> None:
    for arg in argv:
        given = re.match(r"--?config=([^:]*)", arg)
        if given and not os.path.isfile(given[1]):
            raise UserError(f"--config={given[1]} is not there; look into configs/")


def _load_config() -> None:
    """Executes the config file now: config_flags keeps what goes wrong for its first use."""
    if "config" not in flags.FLAGS or flags.FLAGS["config"].value is None:
        return
    config = flags.FLAGS.config
    if isinstance(config, dict) or not hasattr(config, "is_locked"):
        raise UserError("get_config() of the --config file must return a ConfigDict")
    configs.flatten(config)


def _one_line(error: Exception) -> str:
    text = str(error)
    head, _, trace = text.partition("Traceback")
    if trace:
        text = f"{head} {trace.strip().splitlines()[-1]}"
    text = " ".join(text.partition(" Other fields present")[0].split())[:300]
    return text[1:-1] if text[:1] == text[-1:] and text[:1] in "'\"" else text


def die(message: str, code: int = EXIT_WRONG_INPUT) -> None:
    """Ends the process with one line on stderr."""
    print(f"error: {without_credentials(message)}", file=sys.stderr)
    sys.exit(code)


def _unknown_field(argv: list[str]) -> str | None:
    for match in (re.match(r"--?config\.([\w.]+)", arg) for arg in argv):
        if match and match[1] not in configs.FIELDS:
            return f"--config.{match[1]} is no field{_nearest(match[1])}"
    return None


def _nearest(name: str) -> str:
    """Returns the hint for a field that there is not: the same last word, else a near spelling."""
    section, _, leaf = name.rpartition(".")
    same = [field for field in configs.FIELDS if field.endswith("." + leaf)]
    inside = [field for field in configs.FIELDS if field.rpartition(".")[0] == section]
    ending = [field for field in inside or configs.FIELDS if field.endswith("_" + leaf)]
    if likely := same or ending:
        near = max(likely, key=lambda field: SequenceMatcher(None, field, name).ratio())
        return f"; did you mean '{near}'?"
    hint = suggestion(name, inside or configs.FIELDS)
    return hint if "did you mean" in hint else suggestion(name, configs.FIELDS)
