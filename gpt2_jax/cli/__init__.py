"""Parses command lines; any user error ends in one line on stderr and an exit code."""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from gpt2_jax.config import FIELDS, Config, freeze, words
from gpt2_jax.config.docs import help_text
from gpt2_jax.config.renamed import renamed, renamed_key
from gpt2_jax.errors import (
    EXIT_WRONG_INPUT,
    UserError,
    one_line,
    printable,
    suggestion,
    without_credentials,
)
from gpt2_jax.fields import check_path, check_text
from gpt2_jax.files import ensure_home, read_file
from gpt2_jax.placements import modules

HELP = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull", "--helpxml"}
# Flags whose values are paths, and flags whose values are text of any length.
PATHS = {
    *("workdir", "workdirs", "out", "batch_file", "task_data"),
    *("source", "val_source", "tokenizer", "data", "model"),
}
TEXTS = {"prompt", "stop"}
MODULE = "Python module that registers your own placements"  # help for --module
UNSET = "None"  # as in a config file


class _Optional(flags.ArgumentParser):
    """Parses `UNSET` as None, which unsets a field, and other text as another parser does."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser
        self.syntactic_help = parser.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument == UNSET else self._parser.parse(argument)

    def flag_type(self) -> str:
        return self._parser.flag_type()


_PARSERS: dict[type, flags.ArgumentParser] = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
}
for _kind, _parser in _PARSERS.items():
    config_flags.register_flag_parser_for_type(_kind, _Optional(_parser))


def define_config(meaning: str) -> flags.FlagHolder:
    """Defines --config, and --config.section.field for every field on the command line."""
    try:
        _check_flag_files(sys.argv[1:])  # before config_flags reads them
        return config_flags.DEFINE_config_file("config", None, meaning)
    except UserError as error:
        die(str(error))
    except flags.Error as error:
        die(one_line(error))


def read_config(flag: flags.FlagHolder) -> Config:
    """Returns the config of --config, with the changes on the command line."""
    return freeze(flag.value)


def run(main: Callable[[list[str]], Any], argv: Sequence[str]) -> None:
    """Parses a command line and runs its command."""
    app.run(guarded(main), argv=list(argv), flags_parser=parse_flags)


def guarded(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
    """Wraps `main` so that a `UserError` becomes one line on stderr and an exit code."""

    def run(argv: list[str]) -> Any:
        logging.set_verbosity(logging.FATAL)  # jax and orbax log a lot, even tracebacks
        try:
            ensure_home()
            if len(argv) > 1:
                raise UserError(f"{argv[1]!r} is not a flag; flags look like --name=value")
            return main(argv)
        except UserError as error:
            die(str(error), error.exit_code)
        except KeyboardInterrupt:
            die("interrupted", 130)
        except FileNotFoundError:
            if _has_directory():
                raise
            die("the current directory was deleted; change to another, and start again")
        except (RuntimeError, AssertionError):
            _check_devices()
            raise

    return run


def _has_directory() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def _check_devices() -> None:
    """Ends the process if jax has no devices; jax raises at its first use, wherever that is."""
    if "jax" in sys.modules:
        from gpt2_jax.train.distributed.mesh import find_devices

        try:
            find_devices()
        except UserError as error:
            die(str(error))


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and executes the config file; an error in either is reported in one line."""
    use_utf8()
    if HELP & set(argv[1:]):
        show_help()
    logging.set_verbosity(logging.FATAL)  # config_flags logs warnings that are errors here
    try:
        _check_flag_files(argv[1:])
        argv = _with_shipped(argv)
        with redirect_stdout(sys.stderr):  # a config file may print; stdout is for results
            rest = flags.FLAGS(_quote_words(argv))
        _check_values()
        if "module" in flags.FLAGS and flags.FLAGS["module"].value is not None:
            modules.load(flags.FLAGS["module"].value, "--module")
        _load_config(f"{_given_config(argv)}: ")
        return rest
    except UserError as error:
        die(str(error), error.exit_code)
    except flags.UnrecognizedFlagError as error:
        die(_unknown_flag(error.flagname))
    except flags.Error as error:
        die(one_line(error).partition(": ")[2])
    except SystemExit:
        die(f"{_given_config(argv)} ends the process; it must return a config from get_config()")
    except KeyboardInterrupt:
        die("interrupted", 130)
    except BaseException as error:
        # config_flags fails in many ways for an unknown field, and a config file may raise anything
        line = one_line(error)
        die(_unknown_field(argv) or f"{_given_config(argv)}: {renamed_key(line) or line}")


def _unknown_flag(name: str) -> str:
    """Returns the error for a flag that the command does not have."""
    modules = flags.FLAGS.flags_by_module_dict()
    known = [flag.name for module in _own_modules() for flag in modules[module]]
    if not name.startswith("config."):
        return f"--{name} is not a known flag{suggestion(name, [*known, 'help', 'flagfile'])}"
    if "config" in known:
        return f"--{name} changes a config: pass --config=FILE before it"
    leaf = name.rpartition(".")[2]
    hint = f"; did you mean '{leaf}'?" if leaf in known else ""
    return f"--{name} is not a known flag: this command takes no --config{hint}"


def _own_modules() -> list[str]:
    """Returns the modules that define the command's flags."""
    return [name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("gpt2_jax.")]


def show_help() -> None:
    """Prints a command's description, flags and config fields, and ends the process."""
    app.usage(shorthelp=True, writeto_stdout=True)
    for module in _own_modules():
        print(flags.FLAGS.module_help(module))
    if "config" in flags.FLAGS:
        print(f"\nFields of the config:\n{help_text()}")
    sys.exit(0)


def _check_values() -> None:
    """Checks for values that are invalid for every flag."""
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if name.startswith("config") or flags.FLAGS[name].using_default_value:
            continue
        if isinstance(value, list) and name not in TEXTS and "" in (value or [""]):
            raise UserError(f"--{name} has an empty entry; remove it")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"--{name}={one} is not a finite number")
            if isinstance(one, str) and name in PATHS:
                check_path(typed(one), f"--{name}")
            elif isinstance(one, str):
                lines = name in TEXTS
                check_text(typed(one), f"--{name}", longest=0 if lines else 4096, lines=lines)


def use_utf8() -> None:
    """Makes standard output and error UTF-8 in every locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def typed(text: str) -> str:
    """Decodes text from the command line as UTF-8 in every locale, if it is valid UTF-8."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:
        return text


def _quote_words(argv: list[str]) -> list[str]:
    """Rewrites `--config.x=a,b=c` as a Python tuple if the field takes several strings.

    config_flags parses the value as Python, but most patterns are not valid Python.
    """
    out = []
    for arg in argv:
        found = re.fullmatch(r"--?config\.([\w.]+)=(.*)", arg, re.DOTALL)
        field = FIELDS.get(found[1]) if found else None
        if found and field and isinstance(field.default, tuple) and found[2][:1] not in "([":
            arg = f"--config.{found[1]}={words((found[2],))!r}"
        out.append(arg)
    return out


def _check_flag_files(args: Sequence[str], within: tuple[str, ...] = ()) -> None:
    """Checks that each --flagfile, nested ones included, is a text file: a pipe may never end."""
    for word, after in zip(args, [*args[1:], ""], strict=False):
        found = re.fullmatch(r"--?flagfile(?:=(.*))?", word.strip(), re.DOTALL)
        name = found and (after if found[1] is None else found[1])
        if not name or name in within:
            continue
        try:
            text = read_file(Path(os.path.expanduser(name))).decode()
        except (UserError, ValueError) as error:  # ValueError: not UTF-8
            raise UserError(f"--flagfile={name}: {error}") from None
        _check_flag_files(text.split("\n"), (*within, name))


def shipped_configs() -> dict[str, Path]:
    """Returns the config files that come with the package, by name, such as `quickstart`."""
    package = Path(__file__).parents[1]
    folders = (package / "configs", package.parent / "configs")  # in a wheel, in a checkout
    folder = next((path for path in folders if path.is_dir()), folders[0])
    found = folder.rglob("*.py")
    return {str(path.relative_to(folder).with_suffix("")): path for path in found}


def _with_shipped(argv: list[str]) -> list[str]:
    """Replaces the name of a shipped config, as in `--config=quickstart`, by its path.

    Raises:
      UserError: if a config is neither a file nor a shipped one.
    """
    out = []
    for arg in argv:
        found = re.fullmatch(r"(--?config=)([^:]*)(.*)", arg, re.DOTALL)
        if found and not os.path.isfile(found[2]):
            known = shipped_configs()
            if found[2] not in known:
                hint = suggestion(found[2], known)
                raise UserError(f"--config={found[2]} is neither a file nor a shipped config{hint}")
            arg = f"{found[1]}{known[found[2]]}{found[3]}"
        out.append(arg)
    return out


def _load_config(where: str) -> None:
    if "config" not in flags.FLAGS or not flags.FLAGS["config"].present:
        return
    config = flags.FLAGS["config"].value
    hasattr(config, "is_locked")  # config_flags raises a file's error at its first use
    freeze(config, where)


def _given_config(argv: list[str]) -> str:
    return next((arg for arg in argv if re.match(r"--?config(=|$)", arg)), "--config")


def die(message: str, code: int = EXIT_WRONG_INPUT) -> NoReturn:
    """Ends the process with one line on stderr."""
    print(f"error: {printable(without_credentials(message))}", file=sys.stderr)
    sys.exit(code)


def _unknown_field(argv: list[str]) -> str | None:
    for match in (re.match(r"--?config\.([\w.]+)", arg) for arg in argv):
        if match and match[1] not in FIELDS:
            hint = renamed(match[1]) or _nearest(match[1])
            return f"--config.{match[1]} is not a known field{hint}"
    return None


def _nearest(name: str) -> str:
    """Suggests a field for an unknown name: one that ends the same, or else a similar spelling."""
    section, _, leaf = name.rpartition(".")
    same = [field for field in FIELDS if field.endswith("." + leaf)]
    inside = [field for field in FIELDS if field.rpartition(".")[0] == section]
    ending = [field for field in inside or FIELDS if field.endswith("_" + leaf)]
    if likely := same or ending:
        near = max(likely, key=lambda field: SequenceMatcher(None, field, name).ratio())
        return f"; did you mean '{near}'?"
    hint = suggestion(name, inside or FIELDS)
    return hint if "did you mean" in hint else suggestion(name, FIELDS)
