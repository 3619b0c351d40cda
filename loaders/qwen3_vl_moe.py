"""Qwen3-VL, mixture of experts: the module names of Qwen3-VL; the experts of a layer are in two parameters."""

from loaders import register_loader
from loaders.qwen3_vl import Qwen3VLLoader


@register_loader("qwen3-vl-moe")
class Qwen3VLMoeLoader(Qwen3VLLoader):
    model_type = "qwen3_vl_moe"
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    routers = ["mlp.gate.weight"]

    def restore_saved_names(self, model):
        """Save as it was: the Hub's files hold the matrices of the experts transposed.

        transformers 5.23 transposes what it loads where the shapes differ, but nothing that it saves, and under ZeRO-3
        it cannot load that again: parameters have no shape there, so it transposes always.
        """
        super().restore_saved_names(model)
        for conversion in model._weight_conversions:
            for operation in conversion.operations:
                operation.check_dims = False
