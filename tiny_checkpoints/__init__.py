"""Family id -> a function that makes its `TinyModel`: `TINY_CHECKPOINTS.get("qwen2-vl")`."""

from supported_models import Registry

TINY_CHECKPOINTS = Registry(__name__)
register_tiny = TINY_CHECKPOINTS.register
