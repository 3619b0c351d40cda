"""Stand-in for the model code of Qwen-VL-Chat: its interface, module names and traps, in a size for tests.

The traps: weights are drawn again for a module with a buffer, constants are plain tensors made in `__init__`, a
precision is chosen by what the machine can do, `get_head_mask`, the old signature of `_set_gradient_checkpointing`,
image features are written in place, image files are opened in `forward`, a package that is imported in a function,
rotary positions that stay scaled after a long row was evaluated.
"""

import math

import torch
import torch.utils.checkpoint
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_qwen import QWenConfig
from .visual import VisionTransformer

SUPPORT_BF16 = True  # asked of the GPU in the real one


class QWenAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.register_buffer("masked_bias", torch.tensor(-1e4), persistent=False)
        self.heads = config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        scale = [math.log(i, config.seq_length) if i > config.seq_length else 1 for i in range(1, 32768)]
        self.logn_tensor = torch.tensor(scale)[None, :, None, None]

    def forward(self, hidden, rotary, mask, head_mask):
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in self.c_attn(hidden).chunk(3, dim=-1))
        query, key = rotate(query, rotary), rotate(key, rotary)
        if not self.training:
            query = query * self.logn_tensor[:, : query.shape[1]].to(query.device, query.dtype)
        scores = torch.einsum("blhd,bmhd->bhlm", query, key) / query.shape[-1] ** 0.5 + mask
        weights = scores.softmax(-1).to(value.dtype)
        if head_mask is not None:
            weights = weights * head_mask
        return self.c_proj(torch.einsum("bhlm,bmhd->blhd", weights, value).flatten(2))


def rotate(part, rotary):
    cos, sin = rotary
    left, right = part.float().chunk(2, dim=-1)
    return (part.float() * cos + torch.cat([-right, left], dim=-1) * sin).type_as(part)


class RotaryEmbedding(nn.Module):
    def __init__(self, dim, base):
        super().__init__()
        self.dim, self.base = dim, base
        self.inv_freq = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
        self._seq_len_cached, self._ntk_alpha_cached = 0, 1.0

    def forward(self, length, ntk_alpha):
        if length > self._seq_len_cached or ntk_alpha != self._ntk_alpha_cached:
            base, powers = self.base * ntk_alpha ** (self.dim / (self.dim - 2)), torch.arange(0, self.dim, 2)
            self.inv_freq = 1.0 / (base ** (powers.float().to(self.inv_freq.device) / self.dim))
            self._seq_len_cached, self._ntk_alpha_cached = max(2 * length, 16), ntk_alpha
            places = torch.arange(self._seq_len_cached, device=self.inv_freq.device).float()
            angles = torch.outer(places, self.inv_freq)
            angles = torch.cat([angles, angles], dim=-1)[None, :, None]
            self._cached = angles.cos(), angles.sin()
        return [part[:, :length] for part in self._cached]


class QWenMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, inner, bias=False)
        self.w2 = nn.Linear(config.hidden_size, inner, bias=False)
        self.c_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def forward(self, hidden):
        return self.c_proj(self.w1(hidden) * nn.functional.silu(self.w2(hidden)))


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, hidden):
        scale = torch.rsqrt(hidden.float().square().mean(-1, keepdim=True) + self.eps)
        return (hidden.float() * scale).type_as(hidden) * self.weight


class QWenBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, hidden, rotary, mask, head_mask):
        hidden = hidden + self.attn(self.ln_1(hidden), rotary, mask, head_mask)
        return hidden + self.mlp(self.ln_2(hidden))


class QWenPreTrainedModel(PreTrainedModel):
    config_class = QWenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QWenBlock"]

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()
        for name, parameter in module.named_parameters():
            if name == "c_proj.weight":
                parameter.data.normal_(std=self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers))

    def _set_gradient_checkpointing(self, module, value=False):
        if isinstance(module, QWenModel):
            module.gradient_checkpointing = value


class QWenModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.gradient_checkpointing = False
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(0.0)
        self.rotary_emb = RotaryEmbedding(config.hidden_size // config.num_attention_heads, config.rotary_emb_base)
        self.h = nn.ModuleList(QWenBlock(config) for _ in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.visual = VisionTransformer(**config.visual)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    def forward(self, input_ids, past_key_values=None, attention_mask=None, position_ids=None, use_cache=None):
        start = self.config.visual["image_start_id"]
        images, slots = [], []
        if past_key_values is None and (input_ids == start).any():
            opened, closed = torch.where(input_ids == start), torch.where(input_ids == start + 1)
            assert (opened[0] == closed[0]).all()
            slots = torch.stack([*opened, closed[1]], dim=1).tolist()
            names = [input_ids[i, a + 1 : b].tolist() for i, a, b in slots]
            images = self.visual.encode([bytes(name[: name.index(start + 2)]).decode() for name in names])
        length = input_ids.shape[1]
        embedded = self.wte(input_ids)
        least = torch.finfo(embedded.dtype).min
        mask = torch.full((length, length), least, device=input_ids.device).triu(1)[None, None]
        if attention_mask is not None:
            mask = mask.minimum((attention_mask[:, None, None] == 0) * least)
        head_mask = self.get_head_mask(None, self.config.num_hidden_layers)
        if self.config.use_dynamic_ntk and not self.training:
            alpha = max(2 ** math.ceil(math.log(length / self.config.seq_length, 2) + 1) - 1, 1)
        else:
            alpha = self.rotary_emb._ntk_alpha_cached
        rotary = [part.to(embedded.device) for part in self.rotary_emb(length, alpha)]
        hidden = self.drop(embedded)
        for (i, a, b), image in zip(slots, images):
            hidden[i][a + 1 : b] = image
        for block, heads in zip(self.h, head_mask):
            if self.gradient_checkpointing and self.training:
                hidden = torch.utils.checkpoint.checkpoint(block.__call__, hidden, rotary, mask, heads)
            else:
                hidden = block(hidden, rotary, mask, heads)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden))


class QWenLMHeadModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        if config.bf16 + config.fp16 + config.fp32 == 0:
            config.bf16, config.fp32 = SUPPORT_BF16, not SUPPORT_BF16
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.bf16:
            self.transformer.bfloat16()
            self.lm_head.bfloat16()
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        past_key_values=None,
        attention_mask=None,
        token_type_ids=None,
        position_ids=None,
        head_mask=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
        )
        logits, loss = self.lm_head(outputs[0]), None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, inputs_embeds=None, **kwargs):
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": kwargs.get("attention_mask"),
        }

    def chat_stream(self, *args):
        from transformers_stream_generator.main import NewGenerationMixin

        return NewGenerationMixin.generate(self, *args)
