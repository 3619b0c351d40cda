"""Family id -> loader class: `LOADERS.get("qwen2-vl")`."""

from supported_models import AUTO, Registry, families

LOADERS = Registry(__name__)
register_loader = LOADERS.register


def family_of(model_path: str) -> str:
    """The family of a checkpoint, by the model types in its config; `auto` where it has no files of its own."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model_path} is not a checkpoint, or its classes are its own Python files: in that case give --model_id. "
            f"({error})"
        ) from error
    found = [family for family in families() if LOADERS.get(family).fits(config)]
    if not found and LOADERS.get(AUTO).fits(config):
        found = [AUTO]
    if len(found) != 1:
        fitting = f"fits the families {', '.join(found)}: name its --model_id" if found else "has no images as input"
        raise ValueError(f"{model_path} is a {config.model_type!r} checkpoint, which {fitting}.")
    return found[0]
