"""Family id -> loader class: `LOADERS.get("qwen2-vl")`."""

from supported_models import Registry, families

LOADERS = Registry(__name__)
register_loader = LOADERS.register


def family_of(model_path: str) -> str:
    """The family of a checkpoint, by the model types in its config.

    Raises:
        ValueError: no checkpoint there, or not exactly one family fits it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_path} is not a checkpoint: {error}") from error
    found = [family for family in families() if LOADERS.get(family).fits(config)]
    if len(found) != 1:
        raise ValueError(
            f"{model_path} is a {config.model_type!r} checkpoint, which "
            + (f"fits the families {', '.join(found)}" if found else "no family supports")
            + ": name its --model_id."
        )
    return found[0]
