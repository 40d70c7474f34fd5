"""The families of Hugging Face models that can be imported and exported, as data."""

from __future__ import annotations

from gpt2_jax.config import Config
from gpt2_jax.errors import UserError
from gpt2_jax.interop.families import gpt2
from gpt2_jax.interop.families.family import Family, Fields, check_exportable

FAMILIES: dict[str, Family] = {family.model_type: family for family in (gpt2.FAMILY,)}


def find_family(fields: Fields) -> Family:
    """Returns the family of a config.json; GPT-2 if it does not name one.

    Raises:
      UserError: if it is not one of `FAMILIES`.
    """
    model_type = fields.get("model_type", "gpt2")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(
            f"config.json: {model_type=} is not supported; it must be {_listed(FAMILIES)}"
        )
    return FAMILIES[model_type]


def read_config(fields: Fields) -> Config:
    """Returns our config of the model described by the fields of a config.json.

    Raises:
      UserError: naming a field that is missing, invalid or not supported.
    """
    return find_family(fields).read(fields)


def write_config(family: Family, config: Config, end_of_text: int | None, dtype: str) -> Fields:
    """Returns the config.json of a model of this family.

    Args:
      end_of_text: id of the tokenizer's end-of-text token, or None.
      dtype: dtype of the exported tensors.
    """
    return {
        "model_type": family.model_type,
        "architectures": [family.table(config).architecture],
        **family.write(config),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": dtype,
    }


def family_of(config: Config) -> Family:
    """Returns the family that a model can be exported as.

    Raises:
      UserError: if there is none.
    """
    family = gpt2.FAMILY
    if config.model.architecture != "decoder":
        raise UserError(
            f"model.architecture={config.model.architecture} cannot be exported as Hugging Face's "
            "GPT-2, which is a decoder"
        )
    check_exportable(family, config)
    return family


def _listed(names: dict[str, Family]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
