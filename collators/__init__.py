"""The registry of collators: `COLLATORS.get("qwen2-vl")`. Modules without `@register_collator` are shared."""

from supported_models import Registry

COLLATORS = Registry(__name__)
register_collator = COLLATORS.register
