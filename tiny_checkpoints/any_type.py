"""Make a tiny checkpoint of any model type of the installed transformers, from its config and processor class.

The config is shrunk by the names of its fields; OVERRIDES has a row for each type that needs more. The tokens of a
processor are found in the source of its module. The caller must add a chat template.
"""

import inspect
import re
from functools import cache

# Field name -> its value in a config and all its sub-configs. One width for all makes projections fit.
WIDTH = 64
SIZES = {
    **dict.fromkeys(
        "hidden_size d_model embed_dim out_hidden_size encoder_hidden_size word_embed_proj_dim "
        "adapter_out_dim projection_dim projector_hidden_size adapter_input_size adapter_in_dim "
        "text_hidden_size image_text_hidden_size cross_hidden_size output_dim moe_hidden_size "
        "decoder_hidden_size output_channels vision_hidden_size merged_hidden_size projection_hidden_size "
        "patch_embed_hidden_size pooler_output_size ple_embed_dim".split(),
        WIDTH,
    ),
    **dict.fromkeys(
        "intermediate_size ffn_dim mlp_dim d_ff encoder_ffn_dim decoder_ffn_dim dense_intermediate_size "
        "projection_intermediate_size projection_hidden_dim".split(),
        128,
    ),
    **dict.fromkeys(
        "moe_intermediate_size shared_intermediate_size share_expert_dim moe_shared_expert_intermediate_size "
        "shared_experts_intermediate_size shared_expert_intermediate_size".split(),
        32,
    ),
    **dict.fromkeys(
        "num_hidden_layers depth encoder_layers decoder_layers num_layers num_decoder_layers num_blocks "
        "resampler_depth".split(),
        2,
    ),
    **dict.fromkeys(
        "num_attention_heads num_heads encoder_attention_heads decoder_attention_heads swa_num_attention_heads "
        "num_sliding_attention_heads resampler_n_heads resampler_heads".split(),
        4,
    ),
    **dict.fromkeys("num_key_value_heads swa_num_key_value_heads".split(), 2),
    **dict.fromkeys(
        "head_dim swa_head_dim d_kv v_head_dim resampler_head_dim resampler_dim_head linear_key_head_dim "
        "linear_value_head_dim linear_head_dim index_head_dim mamba_head_dim kv_lora_rank".split(),
        16,
    ),
    **dict.fromkeys("qk_rope_head_dim qk_nope_head_dim d_rel".split(), 8),
    "q_lora_rank": 32,
    **dict.fromkeys(
        "num_experts n_routed_experts num_local_experts moe_num_experts linear_num_key_heads linear_num_heads "
        "mamba_num_heads index_n_heads".split(),
        4,
    ),
    "linear_num_value_heads": 4,
    **dict.fromkeys("num_experts_per_tok moe_topk moe_k top_k_experts".split(), 2),
    **dict.fromkeys("n_group topk_group moe_num_shared_experts n_shared_experts".split(), 1),
    "ssm_state_size": 16,
    "rotary_dim": 8,
    "n_groups": 2,
    **dict.fromkeys("resampler_n_latents resampler_num_latents num_query_tokens".split(), 8),
    "max_position_embeddings": 4096,
    "base_channels": 32,
    "latent_channels": 32,
}
# Fields that list layers by their index.
NUMBERS = {"deepstack_visual_indexes": [0], "fullatt_block_indexes": [1], "global_attn_indexes": [1]}
# Lists with one value per layer.
BY_LAYER = (
    "layer_types mlp_layer_types indexer_types no_rope_layers kv_source_layers rope_scaling_layers layer_rope_theta "
    "layers_block_type"
).split()

# Type -> additional settings. For the config: start (arguments of its class), config (path of a field -> value), ids
# (field -> token), image (side of an image; default four patches). For the processor: the name of its class, options,
# image_processor, tokens (attribute of the tokenizer -> token), more_tokens, without (attributes), like (the type whose
# image processor it has). For texts: placeholder (of an image, if not `image_token`).
SQUARE = {"size": {"height": 56, "width": 56}}
QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "audio_token": "<|AUDIO|>"}
QWEN |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
QWEN |= {"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
TIMM = {"architecture": "vit_pe_core_tiny_patch16_384"}
TIMM["model_args"] = {"embed_dim": 64, "img_size": [56, 56], "depth": 2, "num_heads": 4, "global_pool": ""}
TIMM["model_args"] |= {"use_post_transformer_norm": False, "init_values": 0.1}
TIMM["model_args"] |= {"ref_feat_shape": [4, 4], "patch_size": [14, 14]}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
THINKER = {"config": {"vision_start_token_id": 0, "vision_end_token_id": 0}}
THINKER["ids"] = {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
MROPE = "text_config.rope_parameters.mrope_section"
OVERRIDES: dict[str, dict] = {
    "aria": {
        "config": {"projector_patch_to_query_dict": {4900: 4}, "vision_config.patch_size": 14},
        "image": 980,
        "options": {"size_conversion": {980: 4}},
    },
    "aya_vision": {
        "options": {"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        "ids": {"image_token_index": "<|IMG_PATCH|>"},
    },
    "blip-2": {"options": {"num_query_tokens": 8}, "without": ["image_token"], "more_tokens": ["<image>"]},
    "instructblip": {"options": {"num_query_tokens": 8}, "without": ["image_token"], "more_tokens": ["<image>"]},
    "instructblipvideo": {"options": {"num_query_tokens": 8}, "without": ["video_token"]},
    "cohere_compass": {"config": {"text_config.rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE}}},
    "chameleon": {
        "start": {"vocabulary_map": {"<image>": 0}},
        "options": {"image_seq_length": 16},
        "config": {"vq_config.resolution": 64, "vq_config.num_embeddings": 16},
        "image": 64,
        "more_tokens": ["<sentinel>", *(f"IMGIMG{chr(65 + i)}Z" for i in range(16))],
        "vocabulary_map": True,
        "sep": True,
    },
    "cosmos3_omni": {"processor": "Qwen3VLProcessor"},
    "deepseek_ocr2": {
        "config": {"text_config.num_experts_per_tok": 2, "text_config.mlp_layer_types": ["dense", "sparse"]}
        | {"vision_config.sam_config.downsample_channels": [32, 64]}
        | {"text_config.n_group": 1, "text_config.topk_group": 1},
        "image": 1024,
        "image_processor": {"tile_size": 768},
    },
    "dots3_note": {
        "config": {"text_config.num_key_value_heads": 4},
        "image_processor": {"temporal_patch_size": 1},
    },
    "ernie4_5_vl_moe": {"config": {MROPE: [2, 2, 4]}, "video_processor": {"draw_on_frames": False}},
    "glm46v": {"config": {MROPE: [2, 3, 3]}},
    "deepseek_vl": {"options": {"num_image_tokens": 16}},
    "deepseek_vl_hybrid": {
        "options": {"num_image_tokens": 16},
        "image": 64,
        "image_processor": {"high_res_size": {"height": 64, "width": 64}},
    },
    "diffusion_gemma": {
        "feature_extractor": "Gemma4AudioFeatureExtractor",
        "like": "gemma4",
        "config": {"text_config.num_experts": 4, "text_config.top_k_experts": 2}
        | {"text_config.moe_intermediate_size": 32},
    },
    "emu3": {"start": {"vocabulary_map": {"<image>": 0}}, "vocabulary_map": True, "bos": True},
    "fast_vlm": {
        "processor": "LlavaProcessor",
        "like": "llava",
        "config": {"vision_config.hidden_size": 3072},
        "image": 256,
        "options": {"patch_size": 64},
    },
    "glm4v_moe": {"like": "glm4v", "config": {MROPE: [1, 1, 2]}},
    "glm5_next": {"config": {"text_config.num_key_value_heads": 4, "text_config.qk_rope_head_dim": 0}},
    "glm_ocr": {"processor": "Glm46VProcessor", "like": "glm46v", "config": {MROPE: [2, 3, 3]}},
    "glmga": {"processor": "Glm46VProcessor", "config": {MROPE: [2, 3, 3]}},
    "hunyuan_vl": {
        "config": {"text_config.head_dim": 16, "text_config.rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]}},
        "placeholder": "<|image_start_token|><|image_token|><|image_end_token|>",
    },
    "qwen4_exp": {
        "config": {"text_config.indexer_n_heads": 2, "text_config.indexer_kv_heads": 1}
        | {"text_config.indexer_head_dim": 16, "text_config.indexer_budget": 64, "text_config.hc_lowrank": 8}
        | {"text_config.indexer_compress_ratio": 4, "text_config.ngram_vocab_size_base": 128},
    },
    "granite4_vision": {
        "config": {"downsample_rate": "1/2", "deepstack_layer_map": [[-1, 0]], "spatial_target_layers": [0, 1]}
        | {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]], "vision_config.patch_size": 14},
        "image": 56,
        "options": {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        | {"downsample_rate": "1/2", "patch_size": 14},
        "image_processor": {"image_grid_pinpoints": [[56, 112], [112, 56], [112, 112]]},
    },
    "kosmos-2": {"processor": "Kosmos2Processor"},
    "kosmos-2.5": {"processor": "Kosmos2_5Processor"},
    "idefics2": {
        "options": {"image_seq_len": 8},
        "without": ["image_token"],
        "image_processor": {"size": {"shortest_edge": 28, "longest_edge": 56}},
    },
    "inkling2": {"image_processor": {"size": {"height": 40, "width": 40}}},
    "inkling_mm_model": {
        # Patches are not merged. Smaller ones would give too many tokens, larger ones a billion parameters.
        "config": {"vision_config.patch_size": 20, "vision_config.n_layers": 5},
        "image_processor": {"size": {"height": 20, "width": 20}, "patch_size": 20},
    },
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), {"image": 448}),
    "minimax_m3_vl": {"more_tokens": ["]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["]},
    "mistral_large4": {
        "ids": {"image_token_index": "[IMG]"},
        "config": {"text_config.num_key_value_heads": 4},
        "options": {"spatial_merge_size": 2},
    },
    "kimi_k25": {"config": {"text_config.head_dim": 8, "text_config.num_key_value_heads": 4}},
    "step3p7": {
        "config": {"text_config.sliding_window": 512},
        "image": 112,
        "image_processor": {"size": {"height": 112, "width": 112}, "patch_size": 56},
    },
    "muse_glimmer": {"config": {"out_hidden_size": 256}},
    "paddleocr_vl": {"config": {MROPE: [2, 3, 3]}},
    "unlimited_ocr": {"config": {"vision_config.sam_config.downsample_channels": [32, 64]}},
    "video_llava": {"image": 224, "options": {"vision_feature_select_strategy": "default"}},
    "vipllava": {"config": {"vision_feature_layer": [-2, -1]}},
    "mistral4": {"processor": "PixtralProcessor", "like": "mistral3"},
    "molmo2": {"config": {"adapter_config.vision_feature_layer": [1, 0], "vision_config.image_size": [56, 56]}}
    | {"image_processor": SQUARE | {"max_crops": 2, "overlap_margins": [1, 1]}},
    "muse_spark": {
        "config": {"out_hidden_size": 256, "audio_config.patch_sizes": [2, 2], "audio_config.depths": [2, 2]}
        | {"audio_config.hidden_sizes": [2, 2]},
    },
    "ovis2": {
        "options": {"image_seq_length": 16},
        "ids": {"image_token_id": "<IMG_ATOM>"}
        | {"visual_indicator_token_ids": ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]},
        "more_tokens": ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"],
    },
    "perception_lm": {"start": {"vision_config": TIMM}, "options": {"patch_size": 14, "pooling_ratio": 1}}
    | {"image_processor": {"tile_size": 56, "max_num_tiles": 4}},
    "qwen2_5_omni_thinker": {"processor": "Qwen2_5OmniProcessor", "like": "qwen2_5_omni", "tokens": QWEN}
    | THINKER
    | {"config": THINKER["config"] | {"text_config.rope_parameters": ROPE}},
    "qwen3_omni_moe_thinker": {"processor": "Qwen3OmniMoeProcessor", "like": "qwen3_omni_moe", "tokens": QWEN}
    | THINKER,
    "vision-encoder-decoder": {"processor": "TrOCRProcessor", "like": "vit"},
    "qianfan_ocr": {"options": {"image_seq_length": 4}, "placeholder": "<image>"},
    "granite_docling": {"options": {"image_seq_len": 1}, "config": {"vision_config.deepstack_visual_indexes": [0]}},
    "janus": {"options": {"num_image_tokens": 16}},
}

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def shrunk(config: dict, vocabulary: int) -> dict:
    """Return the fields of a config and its sub-configs with tiny values."""
    found = {}
    for name, value in config.items():
        if name in ("vocabulary_map", "model_args", "projector_patch_to_query_dict", "id2label", "label2id"):
            found[name] = value
        elif name == "per_layer_config":
            found[name] = {}
        elif isinstance(value, dict) and name not in ("rope_parameters", "rope_scaling"):
            found[name] = shrunk(value, vocabulary)
        elif name in BY_LAYER and isinstance(value, list):
            found[name] = two_kinds(value)
        elif name in NUMBERS and value is not None:
            found[name] = NUMBERS[name]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            found[name] = SIZES[name]
        elif name == "vocab_size" and isinstance(value, int):
            found[name] = vocabulary
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            found[name] = value | ({"mrope_section": [2, 3, 3]} if value.get("mrope_section") else {})
        else:
            found[name] = value
    return found


def two_kinds(layers: list) -> list:
    """Return the first layer and the next one that differs from it."""
    return [layers[0], next((layer for layer in layers if layer != layers[0]), layers[0])]


def set_path(config: dict, path: str, value) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        config = config.setdefault(parent, {})
    config[name] = value


def processor_class(model_type: str):
    """Return the processor class of a type, from the library's mapping or from OVERRIDES."""
    from transformers.models.auto import processing_auto

    name = OVERRIDES.get(model_type, {}).get("processor") or processing_auto.PROCESSOR_MAPPING_NAMES.get(model_type)
    if not name:
        raise ValueError(f"transformers has no processor class for {model_type}")
    return processing_auto.processor_class_from_name(name)


def named_tokens(processor) -> tuple[dict[str, str], list[str]]:
    """Return attribute -> token, as a processor's module reads it from its tokenizer, and tokens it writes as text."""
    source = inspect.getsource(inspect.getmodule(processor))
    quoted = re.findall(r"""["'](<[^<>\s"'{}%]+>|\[[A-Z_]+\]|◁[^"']+▷)["']""", source)
    defaults = dict(re.findall(r"""(\w+_token)(?:: *\w+(?: \| None)?)? *= *["']([^"'\s{}]+)["']""", source))
    wanted = re.findall(r"tokenizer\.(\w+_token)\b", source) + re.findall(r"tokenizer, *[\"'](\w+_token)[\"']", source)
    known = {"bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"}
    attributes = {name: defaults.get(name, f"<|{name}|>") for name in dict.fromkeys(wanted) if name not in known}
    return attributes, list(dict.fromkeys([*attributes.values(), *defaults.values(), *quoted]))


@cache
def vocabulary() -> dict:
    from tiny_checkpoints.base import learn_qwen_bpe

    return learn_qwen_bpe()


def tokenizer_with(tokens: list[str], **kwargs):
    """Return a Qwen2Tokenizer of tiny_checkpoints with these tokens. Its pieces are learned once."""
    from transformers import Qwen2Tokenizer

    from tiny_checkpoints.base import added_tokens

    bpe = vocabulary()
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 32768}
    ends["add_prefix_space"] = False  # some types use GPT-2's class, which accepts no null
    return Qwen2Tokenizer(**bpe, added_tokens_decoder=added_tokens(bpe, tokens), **ends, **kwargs)


def make_processor(model_type: str):
    """Make the type's own processor, for the smallest possible images, and a tokenizer that has its tokens."""
    from transformers.models.auto import feature_extraction_auto, image_processing_auto, video_processing_auto

    own, given = processor_class(model_type), OVERRIDES.get(model_type, {})
    attributes, tokens = named_tokens(own)
    attributes |= given.get("tokens", {})
    attributes = {name: token for name, token in attributes.items() if name not in given.get("without", [])}
    tokens = dict.fromkeys([*CONTROL, *tokens, *attributes.values(), *given.get("more_tokens", [])])
    vision, made = vision_of(model_type), {}
    for name in own.get_attributes():
        if "tokenizer" in name:
            made[name] = tokenizer_with(
                [*tokens],
                extra_special_tokens=attributes,
                bos_token="<|im_start|>" if given.get("bos") else None,
                **({"sep_token": "<|im_end|>"} if given.get("sep") else {}),
            )
        elif name in ("image_processor", "video_processor"):
            module = image_processing_auto if name == "image_processor" else video_processing_auto
            part = class_of(model_type, module, name)
            made[name] = part(**as_small(part, vision) | given.get(name, {}))
        else:
            made[name] = class_of(model_type, feature_extraction_auto, "feature_extractor")()
    wanted = inspect.signature(own.__init__).parameters
    options = {"patch_size": vision.get("patch_size"), "vision_feature_select_strategy": "full"}
    options = {name: value for name, value in options.items() if name in wanted and value} | given.get("options", {})
    return own(**made, **options)


def vision_of(model_type: str) -> dict:
    """Return the fields of the tiny vision encoder that an image processor needs: patch sizes and the image's side."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    given = OVERRIDES.get(model_type, {})
    fields = CONFIG_MAPPING[model_type](**given.get("start", {})).to_dict()
    vision = next((fields[name] for name in ("vision_config", "vq_config", "encoder") if fields.get(name)), fields)
    vision = vision.get("sam_config", vision)
    patch = vision.get("patch_size") if isinstance(vision.get("patch_size"), int) else 14
    return vision | {"patch_size": patch, "image_size": given.get("image", 4 * patch)}


def as_small(part: type, vision: dict) -> dict:
    """Return options of an image or video processor: the patch sizes of the encoder, and small images."""
    size, side, options = getattr(part, "size", None) or {}, vision["image_size"], {}
    unit = vision["patch_size"] * (vision.get("spatial_merge_size") or vision.get("merge_size") or 2)
    names = {"merge_size": "spatial_merge_size"} | {name: name for name in ("patch_size", "temporal_patch_size")}
    for name, of_config in names.items():
        if isinstance(getattr(part, name, None), int) and isinstance(vision.get(of_config), int):
            options[name] = vision[of_config]
    if size.get("longest_edge", 0) > 3000:
        options["size"] = {"shortest_edge": 4 * unit**2, "longest_edge": 16 * unit**2}
    elif {*size} == {"height", "width"}:
        options["size"] = {"height": side, "width": side}
    elif {*size} == {"shortest_edge"}:
        options["size"] = {"shortest_edge": side}
    if getattr(part, "crop_size", None):
        options["crop_size"] = {"height": side, "width": side}
    return options


def class_of(model_type: str, module, kind: str) -> type:
    """Return the image, video or audio processor class of a type."""
    given, mapped = OVERRIDES.get(model_type, {}), getattr(module, f"{kind.upper()}_MAPPING_NAMES")
    own = given.get(kind) if isinstance(given.get(kind), str) else mapped.get(given.get("like", model_type))
    name = own if isinstance(own, str) else own and (own.get("torchvision") or next(iter(own.values())))
    if not name:
        raise ValueError(f"transformers has no {kind} for {model_type}")
    import transformers

    return getattr(transformers, name)


def make_config(model_type: str, processor):
    """Make a tiny config whose token ids match the processor."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    given, own, tokenizer = OVERRIDES.get(model_type, {}), CONFIG_MAPPING[model_type], processor.tokenizer
    size = (len(tokenizer) // 64 + 1) * 64
    start = dict(given.get("start", {}))
    if given.get("vocabulary_map"):
        start["vocabulary_map"] = tokenizer.get_vocab()
    fields = shrunk(own(**start).to_dict(), size)
    side = vision_of(model_type)["image_size"]
    for part in [fields, *(value for value in fields.values() if isinstance(value, dict))]:
        for inner in [part, *(value for value in part.values() if isinstance(value, dict))]:
            if isinstance(inner.get("image_size"), int):
                inner["image_size"] = side
    for path, value in given.get("config", {}).items():
        set_path(fields, path, value)
    set_ids(fields, processor, given.get("ids", {}))
    return own.from_dict(fields)


def set_ids(fields: dict, processor, names: dict[str, str]) -> None:
    """Set token ids in a config and its sub-configs: `image_token_id` is the id of `processor.image_token`."""
    tokenizer = processor.tokenizer
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, value in fields.items():
        if isinstance(value, dict):
            if name not in ("vocabulary_map", "projector_patch_to_query_dict", "id2label"):
                set_ids(value, processor, names)
        elif name in names:
            ids = tokenizer.convert_tokens_to_ids(names[name])
            fields[name] = ids
        elif name in ends:
            fields[name] = ends[name]
        elif name == "bos_token_id":
            fields[name] = tokenizer.convert_tokens_to_ids("<|im_start|>")
        elif (match := re.fullmatch(r"(\w+_token)_(id|index)", name)) and isinstance(value, int | None):
            token = getattr(processor, match[1], None) or getattr(tokenizer, match[1], None)
            if token:
                fields[name] = tokenizer.convert_tokens_to_ids(str(token))


def make_model(config, seed: int = 0):
    """Make a model with random nonzero weights, large enough that its answers depend on the image."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM

    auto = AutoModelForImageTextToText if type(config) in AutoModelForImageTextToText._model_mapping else None
    torch.manual_seed(seed)
    model = (auto or AutoModelForMultimodalLM).from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    return model
