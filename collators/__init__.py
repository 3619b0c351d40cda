"""The registry of collator classes by family id: `COLLATORS.get("qwen2-vl")`."""

from supported_models import Registry

COLLATORS = Registry(__name__)
register_collator = COLLATORS.register
