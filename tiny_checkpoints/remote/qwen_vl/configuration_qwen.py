"""Stand-in for the configuration code of Qwen-VL-Chat."""

from transformers import PretrainedConfig


class QWenConfig(PretrainedConfig):
    model_type = "qwen"

    def __init__(
        self,
        vocab_size=151936,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        layer_norm_epsilon=1e-6,
        initializer_range=0.02,
        use_cache=True,
        bf16=False,
        fp16=False,
        fp32=False,
        rotary_emb_base=10000,
        seq_length=2048,
        use_dynamic_ntk=True,
        intermediate_size=22016,
        tie_word_embeddings=False,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.bf16, self.fp16, self.fp32 = bf16, fp16, fp32
        self.rotary_emb_base = rotary_emb_base
        self.seq_length, self.use_dynamic_ntk = seq_length, use_dynamic_ntk
        self.intermediate_size = intermediate_size
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
