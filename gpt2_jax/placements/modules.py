"""Modules outside the package that register connections, norms and presets of their own.

A module is imported only if the command line, a config file or an installed entry point names it. A
run records the name, which by itself imports nothing.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points

from gpt2_jax.errors import UserError, one_line, quoted

ENTRY_POINTS = "gpt2_jax.placements"  # group in which a package lists its modules
LOADED: set[str] = set()


def load(name: str, label: str) -> None:
    """Imports a module, which registers what it defines.

    Args:
      label: what errors call the name: a field or a flag.

    Raises:
      UserError: if there is no such module, or importing it fails.
    """
    if name in LOADED:
        return
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UserError(f"{label}={quoted(name)} is not the name of a module, such as my_pkg.gated")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{label}={name}: {one_line(error)}") from None
        raise UserError(
            f"{label}={name}: there is no module {error.name}; install it, or add its folder to "
            "PYTHONPATH"
        ) from None
    except UserError as error:
        raise UserError(f"{label}={name}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{label}={name}: {one_line(error)}") from None
    LOADED.add(name)


def require(name: str, where: str) -> None:
    """Refuses a config whose module is neither loaded nor an installed entry point.

    Args:
      where: the file or field that names it.

    Raises:
      UserError: naming the module.
    """
    if name in LOADED:
        return
    if any(point.value == name for point in entry_points(group=ENTRY_POINTS)):
        load(name, where)
        return
    raise UserError(
        f"{where} needs the placements of the module {quoted(name)}, which is imported only on "
        f"request: add --module={name} (to train: --config.placement.module={name})"
    )
