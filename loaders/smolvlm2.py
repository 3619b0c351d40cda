"""SmolVLM2: the same module names as Idefics3. The language model is SmolLM2."""

from loaders import register_loader
from loaders.idefics3 import Idefics3Loader


@register_loader("smolvlm2")
class SmolVLM2Loader(Idefics3Loader):
    model_type = "smolvlm"
    packages = {"num2words": "which spells out the number of frames of a video"}

    def load_model(self):
        model = super().load_model()
        inner = model.model

        def cast(embeddings, args, output):
            """Cast embeddings to the dtype of the image features that replace some of them. Under --bf16, trained
            embeddings are float32. Features have the first vision parameter's dtype: bfloat16 if frozen (5.23).
            """
            return output.to(inner.dtype)

        inner.get_input_embeddings().register_forward_hook(cast)
        return model
