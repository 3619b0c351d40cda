"""LLaVA-NeXT-Video: LLaVA 1.6 that also reads videos. Each frame is pooled to a quarter of its patches."""

from loaders import register_loader
from loaders.llava_1_5 import LlavaLoader


@register_loader("llava-next-video")
class LlavaNextVideoLoader(LlavaLoader):
    model_type = "llava_next_video"
    # The resampler has weights only if it pools with a convolution, which no released checkpoint does.
    vision_projector = ["model.multi_modal_projector", "model.vision_resampler", "model.image_newline"]
    pixel_token_fields = ()  # the 34B's ids there are wrong

    def load_model(self):
        model, processor = super().load_model(), self.load_processor()
        # The config.json of the 34B checkpoint has other ids than its tokenizer. The processor inserts the tokens of
        # media, so the processor's ids are right.
        model.config.image_token_id, model.config.video_token_id = processor.image_token_id, processor.video_token_id
        return model
