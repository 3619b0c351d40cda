"""Qwen3-VL, mixture of experts: the same module names as Qwen3-VL. Two parameters contain all experts of a layer."""

from loaders import register_loader
from loaders.qwen3_vl import Qwen3VLLoader


@register_loader("qwen3-vl-moe")
class Qwen3VLMoeLoader(Qwen3VLLoader):
    model_type = "qwen3_vl_moe"
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    routers = ["mlp.gate.weight"]

    def restore_saved_names(self, model):
        """Save the experts transposed, as they are in the Hub's files.

        transformers 5.23 transposes on loading if the shapes differ, but never on saving. Under ZeRO-3 it cannot load
        the saved file again: parameters have no shape there, so it always transposes.
        """
        super().restore_saved_names(model)
        for conversion in model._weight_conversions:
            for operation in conversion.operations:
                operation.check_dims = False
