"""SmolVLM2: the module names of Idefics3, and SmolLM2."""

from loaders import register_loader
from loaders.idefics3 import Idefics3Loader


@register_loader("smolvlm2")
class SmolVLM2Loader(Idefics3Loader):
    model_type = "smolvlm"
    packages = {"num2words": "which spells the number of a video's frames"}

    def load_model(self):
        model = super().load_model()
        inner = model.model

        def cast(embeddings, args, output):
            """To the dtype that image features get, that of the first vision parameter (transformers 5.23): under
            --bf16 it is bfloat16 if frozen, while embeddings that train are float32, and the one is put in the other.
            """
            return output.to(inner.dtype)

        inner.get_input_embeddings().register_forward_hook(cast)
        return model
