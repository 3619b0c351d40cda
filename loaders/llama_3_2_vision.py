"""Llama 3.2 Vision (mllama): Llama with extra gated cross-attention layers, which attend to the tiles of the images.

Here, text before the first image attends to no image. In plain transformers 5.23, it attends to all images.
"""

from loaders import register_loader
from loaders.base import BaseLoader


@register_loader("llama-3.2-vision")
class Llama32VisionLoader(BaseLoader):
    model_type = "mllama"
    vocabulary = 128_257
    vision_encoder = ["model.vision_model"]
    vision_projector = ["model.multi_modal_projector"]
    language_model = ["model.language_model", "lm_head"]  # with the gates
    cannot_be_padding_free = "every sample in a row would attend to the images of all samples in the row"
    remark = (
        "In training, text before the first image attended to no image, as in Meta's code. Plain transformers 5.23 "
        "does not mask that attention, so its answers may differ if text comes before the first image."
    )
    language_model_sees_media = True  # a batch without images skips the cross-attention layers

    def load_model(self):
        model = super().load_model()
        for i in model.config.text_config.cross_attention_layers:
            silence_text_before_images(model.model.language_model.layers[i])
        return model


def silence_text_before_images(layer) -> None:
    """Zero the cross-attention of tokens before the first image, as Meta's own implementation and vLLM do.

    For these tokens, transformers 5.23 masks only the MLP. They attend to all images, including the empty images that
    pad a row to the longest of its batch, so the output for a text would depend on the rest of the batch.
    """

    def hand_on(layer, inputs, kwargs):
        # The layer passes unknown keyword arguments on to cross_attn. The mask is (batch, 1, tokens, 1), 0 or 1.
        return inputs, kwargs | {"sees_image": kwargs["full_text_row_masked_out_mask"]}

    def mask(cross_attn, inputs, kwargs, outputs):
        attended, *others = outputs
        return attended * kwargs["sees_image"][:, 0].to(attended.dtype), *others

    layer.register_forward_pre_hook(hand_on, with_kwargs=True)
    layer.cross_attn.register_forward_hook(mask, with_kwargs=True)
