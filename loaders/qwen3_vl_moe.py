"""Qwen3-VL, mixture of experts: the module names of Qwen3-VL; the experts of a layer lie in two parameters."""

from loaders import register_loader
from loaders.qwen3_vl import Qwen3VLLoader


@register_loader("qwen3-vl-moe")
class Qwen3VLMoeLoader(Qwen3VLLoader):
    model_type = "qwen3_vl_moe"
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    routers = ["mlp.gate.weight"]
