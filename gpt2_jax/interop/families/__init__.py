"""The families of Hugging Face models that can be imported and exported, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt2_jax.errors import UserError, quoted
from gpt2_jax.interop.families import bart, gpt2, marian
from gpt2_jax.interop.families.bert import BERT_FAMILY, ROBERTA_FAMILY
from gpt2_jax.interop.families.family import Family, Fields, Sections, check_exportable
from gpt2_jax.interop.families.labels import write_labels
from gpt2_jax.model.heads import HeadSpec

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (gpt2.FAMILY, BERT_FAMILY, ROBERTA_FAMILY, marian.FAMILY, bart.FAMILY)
}


def find_family(fields: Fields) -> Family:
    """Returns the family of a config.json; GPT-2 if it does not name one.

    Raises:
      UserError: if it is not one of `FAMILIES`.
    """
    model_type = fields.get("model_type", "gpt2")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"config.json: model_type={quoted(model_type)} is not supported; it must be one of "
            f"{', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def family_of(config: Sections) -> Family:
    """Returns the family that a model can be exported as.

    Raises:
      UserError: if there is none.
    """
    family = next(family for family in FAMILIES.values() if family.matches(config))
    check_exportable(family, config)
    return family


def write_config(
    family: Family,
    config: Sections,
    head: HeadSpec,
    special_ids: Mapping[str, Any],
    labels: list[str],
    dtype: str,
) -> Fields:
    """Returns the config.json of a model.

    Args:
      special_ids: ids of special tokens, by field. labels: names of a head's labels; empty if it
        has none. dtype: of the exported tensors.
    """
    return {
        "model_type": family.model_type,
        "architectures": [family.table(config, head).architecture],
        **family.write(config),
        **({} if not labels else write_labels(labels)),
        **special_ids,
        "dtype": dtype,
    }
