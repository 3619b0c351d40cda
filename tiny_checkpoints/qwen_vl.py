"""A tiny Qwen-VL-Chat, with a stand-in for its remote code (`remote/qwen_vl`)."""

from base64 import b64encode

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import RemoteFiles, TinyModel, learn_qwen_bpe


def tiktoken_ranks() -> dict[bytes, int]:
    """Return the pieces of a byte-level tokenizer as bytes. The tokenizer writes bytes as printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return {bytes(byte_of[c] for c in piece): rank for piece, rank in learn_qwen_bpe()["vocab"].items()}


@register_tiny("qwen-vl")
def qwen_vl() -> TinyModel:
    """Vision transformer, resampler, Qwen. Images of 56x56 pixels: 16 tokens each, plus two around them."""
    from transformers import GenerationMixin

    from tiny_checkpoints.remote.qwen_vl.configuration_qwen import QWenConfig
    from tiny_checkpoints.remote.qwen_vl.modeling_qwen import QWenLMHeadModel
    from tiny_checkpoints.remote.qwen_vl.tokenization_qwen import SPECIAL, TAGS

    ranks = tiktoken_ranks()
    tokens = ranks | {token: id for id, token in enumerate(SPECIAL + TAGS, start=len(ranks))}
    end = tokens["<|endoftext|>"]
    config = {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "hidden_size": 128,
        "initializer_range": 0.08,
        "intermediate_size": 384,  # of both halves
        "model_type": "qwen",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rotary_emb_base": 10000,
        "seq_length": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "visual": {
            "heads": 4,
            "image_size": 56,
            "image_start_id": tokens["<img>"],
            "layers": 2,
            "mlp_ratio": 2.0,
            "output_dim": 128,
            "patch_size": 14,
            "width": 64,
        },
        "vocab_size": (len(tokens) // 64 + 1) * 64,
    }
    files = {
        "config.json": config,
        "generation_config.json": {
            "chat_format": "chatml",
            "eos_token_id": end,
            "pad_token_id": end,
            "max_window_size": 6144,
            "max_new_tokens": 512,
            "do_sample": True,
            "top_k": 0,
            "top_p": 0.5,
        },
        "tokenizer_config.json": {
            "model_max_length": 8192,
            "tokenizer_class": "QWenTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
        },
        "qwen.tiktoken": "".join(f"{b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items()),
    }
    return TinyModel(
        QWenConfig(**config, fp32=True),
        RemoteFiles("qwen_vl", files, tokens),
        {},
        type("QWenLMHeadModel", (QWenLMHeadModel, GenerationMixin), {}),
    )
