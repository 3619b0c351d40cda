"""A tiny Phi-3-vision, with a stand-in for its remote code (`remote/phi3_v`)."""

from copy import deepcopy

from tiny_checkpoints import register_tiny
from tiny_checkpoints.base import RemoteFiles, TinyModel, learn_llama_bpe

# The template expects strings.
PHI3_V_TEMPLATE = """
{%- for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

CODE = {"AutoConfig": "configuration_phi3_v.Phi3VConfig", "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"}


def phi3_tokenizer():
    """As the tokenizer.json of Phi-3: no pre-tokenizer, a space before each piece between control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    tokenizer = Tokenizer(models.BPE(**learn_llama_bpe(), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    control = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|placeholder1|>"]
    control += ["<|system|>", "<|end|>", "<|user|>", "<|image|>"]
    for token in control:  # white space after some of them is theirs
        eats = token in ("</s>", "<|assistant|>", "<|placeholder1|>")
        tokenizer.add_tokens([AddedToken(token, normalized=False, rstrip=eats, special=token != "</s>")])
    return tokenizer


@register_tiny("phi3-v")
def phi3_v() -> TinyModel:
    """CLIP over tiles, two-layer projector, Phi-3. 28x28 tiles: 4 tokens each, at most 4 of them."""
    from transformers import GenerationMixin

    from tiny_checkpoints.remote.phi3_v.configuration_phi3_v import Phi3VConfig
    from tiny_checkpoints.remote.phi3_v.modeling_phi3_v import Phi3VForCausalLM

    tokenizer = phi3_tokenizer()
    end = tokenizer.token_to_id("<|endoftext|>")
    config = {
        "architectures": ["Phi3VForCausalLM"],
        "auto_map": CODE,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": end,
        "hidden_size": 128,
        "initializer_range": 0.08,
        "intermediate_size": 256,
        "model_type": "phi3_v",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {"type": "su", "short_factor": [1.0 + i / 8 for i in range(16)], "long_factor": [4.0] * 16},
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": (tokenizer.get_vocab_size() // 64 + 1) * 64,
    }
    files = {
        "config.json": config,
        "preprocessor_config.json": {
            "auto_map": {
                "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
                "AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor",
            },
            "image_processor_type": "Phi3VImageProcessor",
            "processor_class": "Phi3VProcessor",
            "num_crops": 4,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "legacy": False,
            "clean_up_tokenization_spaces": False,
            "padding_side": "right",
            "model_max_length": 131072,
            "chat_template": PHI3_V_TEMPLATE,
        },
        "tokenizer.json": tokenizer.to_str(),
    }
    # The remote code has a list here, as in transformers 4, with which 5.23 cannot save.
    names = {"_tied_weights_keys": {"model.vision_embed_tokens.wte.weight": "model.embed_tokens.weight"}}
    model_class = type("Phi3VForCausalLM", (Phi3VForCausalLM, GenerationMixin), names)
    return TinyModel(
        Phi3VConfig(**deepcopy(config), attn_implementation="eager"),  # transformers 5.23 adds to `rope_scaling`
        RemoteFiles("phi3_v", files, tokenizer.get_vocab()),
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": end},
        model_class,
    )
