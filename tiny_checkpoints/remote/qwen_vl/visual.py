"""Stand-in for the vision code of Qwen-VL-Chat: `encode` opens files, a fixed table is a parameter in name only."""

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

NUM_QUERIES = 16  # 256 in the real one


class Resampler(nn.Module):
    def __init__(self, embed_dim, kv_dim):
        super().__init__()
        angles = np.outer(np.arange(NUM_QUERIES), 1e4 ** -np.linspace(0, 1, embed_dim // 2))
        table = torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))
        self.pos_embed = nn.Parameter(table.float()).requires_grad_(False)
        self.query = nn.Parameter(torch.randn(NUM_QUERIES, embed_dim) * 0.02)
        self.kv_proj = nn.Linear(kv_dim, embed_dim, bias=False)
        self.attn = nn.MultiheadAttention(embed_dim, 1)
        self.ln_q = nn.LayerNorm(embed_dim, eps=1e-6)
        self.ln_kv = nn.LayerNorm(embed_dim, eps=1e-6)

    def forward(self, x):
        x = self.ln_kv(self.kv_proj(x)).transpose(0, 1)
        query = (self.ln_q(self.query) + self.pos_embed)[:, None].expand(-1, x.shape[1], -1)
        return self.attn(query, x + self.pos_embed[: len(x), None], x)[0].transpose(0, 1)


class VisualAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        query, key, value = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.in_proj(x).chunk(3, -1))
        return self.out_proj(nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class VisualAttentionBlock(nn.Module):
    def __init__(self, width, heads, mlp_ratio):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VisualAttention(width, heads)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, int(width * mlp_ratio)))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(int(width * mlp_ratio), width))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TransformerBlock(nn.Module):
    def __init__(self, width, layers, heads, mlp_ratio):
        super().__init__()
        self.resblocks = nn.ModuleList(VisualAttentionBlock(width, heads, mlp_ratio) for _ in range(layers))

    def forward(self, x):
        for block in self.resblocks:
            x = block(x)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, image_size, patch_size, width, layers, heads, mlp_ratio, output_dim, **kwargs):
        super().__init__()
        size, bicubic = (image_size, image_size), transforms.InterpolationMode.BICUBIC
        mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        self.image_transform = transforms.Compose(
            [transforms.Resize(size, interpolation=bicubic), transforms.ToTensor(), transforms.Normalize(mean, std)]
        )
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn((image_size // patch_size) ** 2, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, eps=1e-6)
        self.transformer = TransformerBlock(width, layers, heads, mlp_ratio)
        self.attn_pool = Resampler(output_dim, width)
        self.ln_post = nn.LayerNorm(output_dim, eps=1e-6)
        self.proj = nn.Parameter(torch.randn(output_dim, output_dim) * output_dim**-0.5)

    def forward(self, x):
        weight = self.transformer.resblocks[0].mlp.c_fc.weight
        x = self.conv1(x.to(weight.device, weight.dtype)).flatten(2).transpose(1, 2)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        return self.ln_post(self.attn_pool(x)) @ self.proj

    def encode(self, image_paths):
        return self(torch.stack([self.image_transform(Image.open(path).convert("RGB")) for path in image_paths]))
