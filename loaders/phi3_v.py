"""Phi-3-vision and Phi-3.5-vision: CLIP on tiles of 336x336 pixels, an MLP projector and Phi-3. The remote code is from
2024 and cannot use the key-value cache of transformers 5, so it generates long answers slowly."""

from transformers import AutoProcessor

from loaders import register_loader
from loaders.remote_code import RemoteCodeLoader, RemoteModel

VISION = "model.vision_embed_tokens"


class Phi3VModel(RemoteModel):
    # `wte` shares `embed_tokens`. The remote code has a list here, as in transformers 4, with which 5.23 cannot save.
    _tied_weights_keys = {f"{VISION}.wte.weight": "model.embed_tokens.weight"}

    def forward(self, input_ids=None, **kwargs):
        # The remote code overwrites the negative ids of images in place, so a second call would find no image.
        return super().forward(input_ids=None if input_ids is None else input_ids.clone(), **kwargs)

    def save_pretrained(self, save_directory, *args, state_dict=None, **kwargs):
        if state_dict is not None:  # DeepSpeed and FSDP gather a shared weight under both names
            state_dict = {name: weight for name, weight in state_dict.items() if name not in self._tied_weights_keys}
        super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)


@register_loader("phi3-v")
class Phi3VLoader(RemoteCodeLoader):
    model_type = "phi3_v"
    model_shim = Phi3VModel
    end_tokens = ["<|end|>", "<|endoftext|>"]
    # The remote code builds a CLIPVisionModel, which no longer has an inner `vision_model` in transformers 5.
    renamed = ("img_processor.vision_model.", "img_processor.")
    vision_encoder = [f"{VISION}.img_processor"]
    vision_projector = [f"{VISION}.img_projection", f"{VISION}.glb_GN", f"{VISION}.sub_GN"]
    language_model = ["model.embed_tokens", "model.layers", "model.norm", "lm_head"]

    def load_model(self):
        model = super().load_model()
        # The remote code writes image features into the embeddings, which have another dtype under autocast.
        embeddings, projection = model.get_input_embeddings(), model.get_submodule(f"{VISION}.img_projection")
        projection.register_forward_hook(lambda _, inputs, features: features.to(embeddings.weight.dtype))
        return model

    def load_processor(self, path=None):
        path = path or self.model_path
        processor = self.load_with(AutoProcessor, path)
        if not processor.tokenizer.is_fast or "<|end|>" not in processor.tokenizer.get_vocab():
            raise ValueError(f"{path} has no fast tokenizer (tokenizer.json) that contains <|end|>.")
        processor.chat_template = processor.tokenizer.chat_template  # the processor has no template
        return processor

    def unused_modules(self, model):
        """Return the modules after CLIP's second-to-last hidden state."""
        tower = f"{VISION}.img_processor"
        num_layers = len(model.get_submodule(f"{tower}.encoder.layers"))
        used_layers = range(num_layers + 1)[model.get_submodule(VISION).layer_idx]
        return [f"{tower}.encoder.layers.{i}" for i in range(used_layers, num_layers)] + [f"{tower}.post_layernorm"]
