"""Stand-in for the model code of Phi-3-vision: its interface, module names and traps, in a size for tests.

The traps: input_ids are overwritten in place, tied keys are a list, a legacy cache is asked for, only eager attention,
a projector that is told by its type, CLIP from transformers, and no `logits_to_keep`.
"""

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_phi3_v import Phi3VConfig

TILE = 28  # pixels; 336 in the real one
CLIP_CONFIG = CLIPVisionConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=TILE,
    patch_size=7,
    projection_dim=32,
    initializer_factor=3.0,
)


class Phi3RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden):
        scale = torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (hidden.float() * scale).to(hidden.dtype)


class Phi3ImageEmbedding(nn.Module):
    """Token embeddings, with the features of tiles and of the whole image at the negative ids."""

    def __init__(self, config, wte):
        super().__init__()
        self.wte = wte
        self.img_processor = CLIPVisionModel(CLIP_CONFIG)
        width = 4 * CLIP_CONFIG.hidden_size  # four neighbouring patches are one token
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, width))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.img_projection = nn.Sequential(
            nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)
        )
        self.vocab_size = config.vocab_size
        self.layer_idx = -2

    def forward(self, input_ids, pixel_values, image_sizes):
        positions = torch.nonzero(input_ids < 0, as_tuple=True)
        input_ids.clamp_min_(0).clamp_max_(self.vocab_size)
        hidden = self.wte(input_ids)
        if len(positions[0]):
            hidden = hidden.index_put(positions, self.image_features(pixel_values, image_sizes), accumulate=False)
        return hidden

    def image_features(self, pixel_values, image_sizes):
        num_images, num_tiles = pixel_values.shape[:2]
        states = self.img_processor(pixel_values.flatten(0, 1), output_hidden_states=True).hidden_states
        features = states[self.layer_idx][:, 1:].unflatten(0, (num_images, num_tiles))
        first = self.img_projection[0] if isinstance(self.img_projection, nn.Sequential) else self.img_projection
        parts = []
        for tiles, (height, width) in zip(features, image_sizes.tolist()):
            rows, columns = height // TILE, width // TILE
            parts += [self.grid(tiles[1 : 1 + rows * columns], rows, columns), self.glb_GN[0]]
            parts.append(self.grid(tiles[:1], 1, 1))
        return self.img_projection(torch.cat(parts).to(first.bias.device, first.bias.dtype))

    def grid(self, tiles, rows, columns):
        """Patches of (rows * columns) tiles -> the lines of the image, each with a separator at its end."""
        side = int(tiles.shape[1] ** 0.5) // 2
        tiles = tiles.view(rows, columns, side, 2, side, 2, -1).permute(0, 2, 1, 4, 3, 5, 6)
        lines = tiles.reshape(1, rows * side, columns * side, -1)
        return torch.cat([lines, self.sub_GN.expand(1, rows * side, 1, -1)], dim=2).flatten(0, 2)


class Phi3Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        self.theta, self.factors = config.rope_theta, config.rope_scaling["short_factor"]
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden, mask, position_ids):
        exponents = torch.arange(0, self.head_dim, 2, device=hidden.device).float() / self.head_dim
        frequencies = 1 / (torch.tensor(self.factors, device=hidden.device) * self.theta**exponents)
        angles = (position_ids[:, None, :, None].float() * frequencies).repeat(1, 1, 1, 2)
        query, key, value = (
            part.unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for part in self.qkv_proj(hidden).chunk(3, dim=-1)
        )
        query, key = (rotate(part, angles.cos().to(part.dtype), angles.sin().to(part.dtype)) for part in (query, key))
        scores = query @ key.transpose(-1, -2) / self.head_dim**0.5 + mask
        mixed = scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


def rotate(part, cos, sin):
    left, right = part.chunk(2, dim=-1)
    return part * cos + torch.cat([-right, left], dim=-1) * sin


class Phi3MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden):
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.down_proj(up * nn.functional.silu(gate))


class Phi3DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = {"eager": Phi3Attention}[config._attn_implementation](config)
        self.mlp = Phi3MLP(config)
        self.input_layernorm = Phi3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Phi3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden, mask, position_ids):
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), mask, position_ids)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Phi3VPreTrainedModel(PreTrainedModel):
    config_class = Phi3VConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Phi3DecoderLayer"]
    _supports_sdpa = False

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()


class Phi3VModel(Phi3VPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.vision_embed_tokens = Phi3ImageEmbedding(config, wte=self.embed_tokens)
        self.layers = nn.ModuleList(Phi3DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = Phi3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        pixel_values=None,
        image_sizes=None,
        use_cache=None,
    ):
        if self.config.use_cache if use_cache is None else use_cache:
            past_key_values = DynamicCache.from_legacy_cache(past_key_values)
        if pixel_values is not None and image_sizes is not None:
            hidden = self.vision_embed_tokens(input_ids, pixel_values=pixel_values, image_sizes=image_sizes)
        else:
            hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        length = hidden.shape[1]
        if position_ids is None:
            position_ids = torch.arange(length, device=hidden.device)[None]
        seen = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, None].bool()
        mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(layer.__call__, hidden, mask, position_ids)
            else:
                hidden = layer(hidden, mask, position_ids)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden))


class Phi3VForCausalLM(Phi3VPreTrainedModel):
    _tied_weights_keys = ["lm_head.weight"]

    def __init__(self, config):
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        pixel_values=None,
        image_sizes=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            use_cache=use_cache,
        )
        logits = self.lm_head(outputs[0]).float()
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, pixel_values=None, image_sizes=None, **kwargs
    ):
        position_ids = None
        if attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).masked_fill(attention_mask == 0, 1)
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "image_sizes": image_sizes,
        }
