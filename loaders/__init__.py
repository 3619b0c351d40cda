"""The registry of loader classes by family id: `LOADERS.get("qwen2-vl")`."""

from supported_models import AUTO, Registry, families

LOADERS = Registry(__name__)
register_loader = LOADERS.register


def family_of(model_path: str) -> str:
    """Return the family that matches the model types in a checkpoint's config, or `auto` if no family does."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{model_path} is not a checkpoint that transformers can load: {error} If the checkpoint has its own "
            "Python files, pass --model_id."
        ) from error
    found = [family for family in families() if LOADERS.get(family).fits(config)]
    if not found and LOADERS.get(AUTO).fits(config):
        found = [AUTO]
    if len(found) != 1:
        fault = f"matches the families {', '.join(found)}. Pass --model_id" if found else "accepts no images"
        raise ValueError(f"{model_path} is a {config.model_type!r} checkpoint, which {fault}.")
    return found[0]
