"""Stand-in for the configuration code of Phi-3-vision: the same names and the same complaint about `rope_scaling`."""

from transformers import PretrainedConfig


class Phi3VConfig(PretrainedConfig):
    model_type = "phi3_v"

    def __init__(
        self,
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        initializer_range=0.02,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        use_cache=True,
        **kwargs,
    ):
        # transformers 5.23 writes more fields into this when it saves a config
        if not isinstance(rope_scaling, dict) or len(rope_scaling) != 3:
            raise ValueError(
                f"`rope_scaling` must have the three fields type, short_factor, long_factor: {rope_scaling}"
            )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.use_cache = use_cache
        super().__init__(**kwargs)
