"""Rules for wandb's names, compared with wandb's own validation."""

from pathlib import Path

import pytest

from gpt2_jax.config import replace
from gpt2_jax.config.check import check, check_stored
from gpt2_jax.config.sections import WandbConfig
from gpt2_jax.config.wandb_rules import find_wandb_fault
from gpt2_jax.errors import UserError
from tests.tools import tiny

PROJECTS = ["p", "a b", "ä-ö_1.2", *(f"a{c}b" for c in "/\\#?%:@&'"), "x" * 128, "x" * 129]
TAGS = ["t", "x" * 64, "x" * 65, "ä" * 64, "a tag", "#1"]


def given(**fields):
    return WandbConfig(**{"mode": "offline"} | fields)


def refused_by_wandb(**settings):
    import wandb

    try:
        wandb.Settings(**settings)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("name", PROJECTS)
def test_projects_are_refused_if_wandb_refuses_them(name, monkeypatch):
    fault = find_wandb_fault(given(project=name))
    assert (fault is not None) == refused_by_wandb(project=name)
    assert fault is None or fault.startswith("track.wandb.project")
    monkeypatch.setenv("WANDB_PROJECT", name)
    from_environment = find_wandb_fault(given())
    assert (from_environment is None) == (fault is None)
    assert fault is None or from_environment.startswith("WANDB_PROJECT")


@pytest.mark.parametrize("tag", TAGS)
def test_tags_are_refused_if_wandb_refuses_them(tag, monkeypatch):
    fault = find_wandb_fault(given(tags=("fine", tag)))
    assert (fault is not None) == refused_by_wandb(run_tags=("fine", tag))
    assert fault is None or fault.startswith("track.wandb.tags")
    monkeypatch.setenv("WANDB_TAGS", f"fine,{tag}")
    assert (find_wandb_fault(given()) is None) == (fault is None)


def test_unknown_wandb_mode_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    assert "WANDB_MODE=of" in find_wandb_fault(given(mode=None))
    assert find_wandb_fault(given()) is None


def test_invalid_wandb_config_is_refused_before_training_unless_disabled():
    config = tiny(track__wandb__mode="disabled", track__wandb__tags=("x" * 65,))
    config = replace(config, {"track.wandb.mode": "online"})
    with pytest.raises(UserError, match=r"track\.wandb\.tags"):
        check(config)
    check_stored(config, Path("config.json"))  # a run that has it can be evaluated
