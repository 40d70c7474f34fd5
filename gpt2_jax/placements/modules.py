"""Imports modules outside the package that register their own connections, norms and presets.

A module is imported only if the command line, a config file or an installed entry point names it.
A name stored in a run's config imports nothing by itself.
"""

from __future__ import annotations

import importlib
import re
from importlib.metadata import entry_points

from gpt2_jax.errors import UserError, one_line, quoted

ENTRY_POINTS = "gpt2_jax.placements"  # the group in which a package lists its modules
LOADED: set[str] = set()


def load(name: str, label: str) -> None:
    """Imports a module, which registers what it defines.

    Args:
      label: the field or flag that names the module, for errors.

    Raises:
      UserError: if there is no such module, or its import fails.
    """
    if name in LOADED:
        return
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
        raise UserError(f"{label}={quoted(name)} is not a module name, such as my_pkg.gated")
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"{label}={name}: {one_line(error)}") from None
        raise UserError(
            f"{label}={name}: no module {error.name} was found; install it, or add its folder "
            "to PYTHONPATH"
        ) from None
    except UserError as error:
        raise UserError(f"{label}={name}: {error}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{label}={name}: {one_line(error)}") from None
    LOADED.add(name)


def require(name: str, where: str) -> None:
    """Refuses a config whose module is neither loaded nor an installed entry point.

    Args:
      where: the file or field that names the module, for errors.

    Raises:
      UserError: naming the module.
    """
    if name in LOADED:
        return
    if any(point.value == name for point in entry_points(group=ENTRY_POINTS)):
        load(name, where)
        return
    raise UserError(
        f"{where} needs placements from the module {quoted(name)}, which is imported only if you "
        f"name it: add --module={name} (to train: --config.placement.module={name})"
    )
