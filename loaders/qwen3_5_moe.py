"""Qwen3.5, mixture of experts: the same module names as Qwen3.5. Two parameters contain all experts of a layer."""

from loaders import register_loader
from loaders.qwen3_5 import Qwen35Loader


@register_loader("qwen3.5-moe")
class Qwen35MoeLoader(Qwen35Loader):
    model_type = "qwen3_5_moe"
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    routers = ["mlp.gate.weight"]
