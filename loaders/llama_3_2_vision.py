"""Llama 3.2 Vision (mllama): Llama with further layers that attend to the tiles of the images, each after a gate.

Text before the first image attends to no image, which plain transformers 5.23 lets it do.
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
    cannot_be_padding_free = "its cross-attention shows the images of a row to all samples in it"
    remark = (
        "In training, text before the first image saw no image, as in Meta's code. Plain transformers 5.23 does not "
        "mask that, so its answers to such text may differ."
    )
    language_model_sees_media = True  # a batch without images skips the cross-attention layers

    def load_model(self):
        model = super().load_model()
        for i in model.config.text_config.cross_attention_layers:
            silence_text_before_images(model.model.language_model.layers[i])
        return model


def silence_text_before_images(layer) -> None:
    """Make cross-attention add nothing to tokens that no image precedes, as in Meta's own implementation and vLLM.

    Of such tokens transformers 5.23 masks the MLP alone: they attend to all images, also to those that pad their row
    to the length of others, so what a text gives would depend on its batch.
    """

    def hand_on(layer, inputs, kwargs):
        # What a layer does not know, it hands to cross_attn; (batch, 1, tokens, 1), 0 or 1.
        return inputs, kwargs | {"sees_image": kwargs["full_text_row_masked_out_mask"]}

    def mask(cross_attn, inputs, kwargs, outputs):
        attended, *others = outputs
        return attended * kwargs["sees_image"][:, 0].to(attended.dtype), *others

    layer.register_forward_pre_hook(hand_on, with_kwargs=True)
    layer.cross_attn.register_forward_hook(mask, with_kwargs=True)
