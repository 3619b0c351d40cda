"""What every family is, written by hand from its golden records and the modules of transformers 5.23: what the tests
hold the code against."""

from typing import NamedTuple


class Facts(NamedTuple):
    vision_encoder: str  # regular expressions of parameter names
    vision_projector: str
    language_model: str = r"(model\.language_model|lm_head)\."
    other: str = r"$^"  # of no component: never trained, though some get a gradient of zeros
    vision_linears: bool = True  # the vision encoder has Linear modules, which take LoRA
    bare_weights: str = r"$^"  # Linear modules of the language model that are neither adapted nor quantized
    end_of_turn: str = "<|im_end|>"
    rounding: float = 1e-5  # of a logit in float32, between two ways of computing it
    part_separator: str = ""  # between the text parts of a message
    bos: str = ""  # written by the tokenizer
    prompt_space: str = ""  # white space of the text that no prompt ends with: it is the model's to write
    decoded_space: str = ""  # of that space, what the tokens of a reply show when they are decoded
    takes_video: bool = True
    string_roles: tuple[str, ...] = ()  # roles whose content the official template takes as a string
    media_tokens: tuple[str, ...] = ()  # that stand for pixels or frame them, beside the processor's `image_token`
    bare: tuple[str, ...] = ()  # parameters of the vision parts that an adapter checkpoint cannot hold
    experts: tuple[str, ...] = ()  # how the names of fused expert weights end
    router: str = ""  # and the router's
    time_steps_as_images: bool = False  # the collator hands each time step of a video over as an image
    mixes_media: bool = True  # images and videos in one sample
    no_video_token: bool = False  # a video's frames have the tokens of images
    expanded: str = ""  # regular expression of what the processor writes for an image; "": its tokens alone
    golden: tuple[str, ...] = ()  # `family` of its golden records, the main format first; by default its own id
    multi_turn: bool = True  # else: one exchange, with images, without a system prompt; and no chat template
    bidirectional_images: bool = False  # the tokens of an image attend to each other in both directions
    frame_label_tokens: int = 0  # at most, of the text that the processor writes around each frame of a video
    deep_linears: int = 56  # Linear modules of its language model with eight layers
    trims: str = ""  # white space around user and assistant texts is dropped: of "parts", or of "messages"
    rewritten: tuple[str, str] = ("", "")  # documented exception: golden text -> ours
    one_part_roles: tuple[str, ...] = ()  # of whose content the official template reads the first part only
    pinned: tuple[str, str] = ("", "")  # in the official template: what changes from day to day -> a constant
    remote_code: bool = False
    files: tuple[str, ...] = ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja")
    end_of_text: str = ""  # trained after the end of the last reply
    bos_after_image: bool = False
    decoded: tuple[str, str] = ("", "")  # a space that the tokenizer makes up: text -> decoded tokens of it
    altered: tuple[tuple[str, str], ...] = ()  # replacements in the official template that must be noticed


QWEN_ALTERED = (
    ("a helpful assistant", "a useful assistant"),
    ("+ '\n' }}", "+ ':' }}"),
    ("<|im_end|>\n' }}\n{%- endfor %}", "<|im_end|>' }}\n{%- endfor %}"),
    ("<|im_start|>assistant\n", "<|im_start|>assistant"),
    ("<|image_pad|><|vision_end|>", "<|image_pad|><|vision_end|>\n"),
    ("<|video_pad|><|vision_end|>", "<|video_pad|>"),
)

SPEAKERS_ALTERED = (
    ("else ': '", "else ':'"),
    ("== 'image' else", "== 'text' else"),
    ("<end_of_utterance>\n", "<end_of_utterance>"),
    ("'Assistant:'", "'Assistant: '"),
)
TILED = r"<fake_token_around_image>((<row_\d_col_\d>|<global-img>)(<image>)*\n*(<fake_token_around_image>)?)+"
VICUNA_ALTERED = (("'ASSISTANT:'", "'ASSISTANT: '"), ("upper()", "title()"), ("<image>\n", "<image>"))
QWEN3_5_ALTERED = (
    ("is true", "is false"),
    ("</think>\n\n' }}{% endif %}\n{%- endif", "</think>\n' }}{% endif %}\n{%- endif"),
    ("content + '<|im_end|>\n'", "content + '<|im_end|>'"),
    ("<|image_pad|><|vision_end|>", "<|image_pad|><|vision_end|>\n"),
)
GLM_ALTERED = (
    ("[gMASK]<sop>", "[gMASK]"),
    ("+ '|>\n' }}", "+ '|>' }}"),
    ("{{ '/nothink' }}", "{{ ' /nothink' }}"),
    ("{{ '<|assistant|>\n' }}", "{{ '<|assistant|>' }}"),
)

FACTS = {
    "llava-1.5": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="</s>",
        part_separator=" ",
        bos="<s>",
        prompt_space=" ",
        takes_video=False,
        altered=VICUNA_ALTERED,
    ),
    "llava-1.6": Facts(
        r"model\.vision_tower\.",
        r"model\.(multi_modal_projector\.|image_newline$)",
        end_of_turn="</s>",
        part_separator=" ",
        bos="<s>",
        prompt_space=" ",
        takes_video=False,
        bare=("model.image_newline",),
        golden=("llava-v1.6-vicuna", "llava-v1.6-mistral", "llava-v1.6-34b"),
        altered=VICUNA_ALTERED,
    ),
    "llava-next-video": Facts(
        r"model\.vision_tower\.",
        r"model\.(multi_modal_projector\.|image_newline$)",
        end_of_turn="</s>",
        part_separator=" ",
        bos="<s>",
        prompt_space=" ",
        bare=("model.image_newline",),
        golden=(
            "llava-next-video-7b",
            "llava-next-video-7b-32k",
            "llava-next-video-7b-32k-mistral",
            "llava-next-video-34b",
        ),
        altered=(*VICUNA_ALTERED, ("<video>\n", "<video>")),
    ),
    "llava-interleave": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        part_separator="\n",
        prompt_space="\n",
        decoded_space="\n",
        takes_video=False,
        altered=(
            ("<|im_start|>assistant\n", "<|im_start|>assistant"),
            ("<|im_start|>assistant\n", "<|im_start|>assistant\n\n"),
            ("'\n' + part", "part"),
            ("'<image>'", "'<image>\n'"),
            ("<|im_end|>\n", "<|im_end|>"),
        ),
    ),
    "llava-onevision": Facts(
        r"model\.vision_tower\.",
        r"model\.(multi_modal_projector\.|image_newline$)",
        part_separator="\n",
        rewritten=("assistant \n", "assistant\n"),
        bare=("model.image_newline",),
        altered=(
            ("<|im_start|>assistant\n", "<|im_start|>assistant"),
            ("<|im_start|>assistant\n", "<|im_start|>assistant \n"),
            ("'\n' + part", "part"),
            ("{{- '<|im_end|>' }}", "{{- '<|im_end|>\n' }}"),
        ),
    ),
    "qwen-vl": Facts(
        r"transformer\.visual\.(?!attn_pool\.)",
        r"transformer\.visual\.attn_pool\.",
        language_model=r"(transformer\.(wte|h|ln_f)|lm_head)\.",
        takes_video=False,
        golden=("qwen-vl-chat",),
        remote_code=True,
        files=("qwen.tiktoken", "tokenizer_config.json", "generation_config.json", "tokenization_qwen.py"),
        deep_linears=40,
        bare=(
            "transformer.visual.positional_embedding",
            "transformer.visual.proj",
            "transformer.visual.attn_pool.query",
        ),
    ),
    "qwen2-vl": Facts(r"model\.visual\.(?!merger\.)", r"model\.visual\.merger\.", altered=QWEN_ALTERED),
    "qwen2.5-vl": Facts(r"model\.visual\.(?!merger\.)", r"model\.visual\.merger\.", altered=QWEN_ALTERED),
    "qwen3-vl": Facts(
        r"model\.visual\.(?!merger\.|deepstack_merger_list\.)",
        r"model\.visual\.(merger|deepstack_merger_list)\.",
        golden=("qwen3-vl", "qwen3-vl-thinking"),
        altered=QWEN_ALTERED[1:],
    ),
    "qwen3-vl-moe": Facts(
        r"model\.visual\.(?!merger\.|deepstack_merger_list\.)",
        r"model\.visual\.(merger|deepstack_merger_list)\.",
        deep_linears=32,
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        router="mlp.gate.weight",
        golden=("qwen3-vl", "qwen3-vl-thinking"),
        altered=QWEN_ALTERED[1:],
    ),
    "qwen3.5": Facts(
        r"model\.visual\.(?!merger\.)",
        r"model\.visual\.merger\.",
        deep_linears=60,  # eight in layers of linear attention, seven in others
        rounding=5e-5,  # it is 2e-15 in float64: linear attention sums over chunks of the text
        trims="messages",
        golden=("qwen3.5", "qwen3.6", "qwen3.8"),
        altered=QWEN3_5_ALTERED,
    ),
    "qwen3.5-moe": Facts(
        r"model\.visual\.(?!merger\.)",
        r"model\.visual\.merger\.",
        deep_linears=68,  # nine and eight: three of them the shared expert's, and its gate
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        router="mlp.gate.weight",
        rounding=5e-5,  # it is 2e-15 in float64: linear attention sums over chunks of the text
        trims="messages",
        golden=("qwen3.5",),
        altered=(("enable_thinking is not false", "true"), *QWEN3_5_ALTERED[2:]),
    ),
    "phi3-v": Facts(
        r"model\.vision_embed_tokens\.img_processor\.",
        r"model\.vision_embed_tokens\.(img_projection\.|glb_GN$|sub_GN$)",
        language_model=r"(model\.(embed_tokens|layers|norm)|lm_head)\.",
        end_of_turn="<|end|>",
        end_of_text="\n<|endoftext|>",
        bos="<s>",
        bos_after_image=True,
        takes_video=False,
        golden=("phi-3-vision",),
        remote_code=True,
        files=("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processing_phi3_v.py"),
        decoded=("<|end|>\n", "<|end|> \n"),
        deep_linears=32,
        bare=("model.vision_embed_tokens.glb_GN", "model.vision_embed_tokens.sub_GN"),
        altered=(
            ("<|assistant|>\n", "<|assistant|>"),
            ("<|end|>\n", "<|end|>"),
            ("'|>\n'", "'|> '"),
        ),
    ),
    "llama-3.2-vision": Facts(
        r"model\.vision_model\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="<|eot_id|>",
        takes_video=False,
        string_roles=("system",),
        golden=("mllama",),
        altered=(
            ("{{- bos_token }}", ""),
            ("December 2023", "December 2024"),
            ("system is defined or ", ""),
            ("{{- '<|eot_id|>' }}", "{{- '<|eot_id|>\n' }}"),
            ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n"),
        ),
    ),
    "llama4": Facts(
        r"vision_model\.(?!vision_adapter\.)",
        r"(multi_modal_projector|vision_model\.vision_adapter)\.",
        r"language_model\.",
        end_of_turn="<|eot|>",
        takes_video=False,
        string_roles=("system",),
        media_tokens=(
            *("<|patch|>", "<|image_start|>", "<|image_end|>"),
            *("<|tile_x_separator|>", "<|tile_y_separator|>"),
        ),
        bare=("vision_model.class_embedding", "vision_model.positional_embedding_vlm"),
        experts=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        router="feed_forward.router.weight",
        golden=("llama-4",),
        altered=(
            ("{{- bos_token }}", ""),
            ("{{- '<|eot|>' }}", "{{- '<|eot|>\n' }}"),
            ("<|header_start|>assistant<|header_end|>\n\n", "<|header_start|>assistant<|header_end|>\n"),
            ("'<|image|>'", "'<|image|>\n'"),
        ),
    ),
    "pixtral": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="</s>",
        takes_video=False,
        string_roles=("system",),
        rewritten=("[INST][IMG]What is", "[INST]You are a careful visual assistant.\n\n[IMG]What is"),
        altered=(
            ("'[INST]'", "' [INST] '"),
            ("'[/INST]'", "'[/INST] '"),
            ("+ '\n\n'", "+ '\n'"),
            ("'[IMG]'", "'[IMG]\n'"),
            ("eos_token", "''"),
            ("bos_token", "''"),
        ),
    ),
    "mistral-small-3.1": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="</s>",
        takes_video=False,
        one_part_roles=("system", "assistant"),
        pinned=("strftime_now('%Y-%m-%d')", "'2025-03-17'"),
        altered=(
            ("2023-10-01", "2024-10-01"),
            ("strftime_now('%Y-%m-%d')", "'2025-03-18'"),
            ("'[/SYSTEM_PROMPT]'", "'[/SYSTEM_PROMPT]\n'"),
            ("'[INST]'", "'[INST] '"),
            ("'[IMG]'", "'[IMG]\n'"),
            ("eos_token", "''"),
        ),
    ),
    "ministral-3": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="</s>",
        takes_video=False,
        altered=(
            ("'[/SYSTEM_PROMPT]'", "'[/SYSTEM_PROMPT]\n'"),
            ("'[INST]'", "'[INST] '"),
            ("'[IMG]'", "'[IMG]\n'"),
            ("eos_token", "''"),
        ),
    ),
    "mistral-small-4": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="</s>",
        takes_video=False,
        deep_linears=64,  # five of attention, three of the shared expert
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        router="mlp.gate.weight",
        altered=(
            ("[MODEL_SETTINGS]{", "[MODEL_SETTINGS] {"),
            ("+ settings }}", "}}"),
            ("'[INST]'", "'[INST] '"),
            ("'[IMG]'", "'[IMG]\n'"),
            ("eos_token", "''"),
        ),
    ),
    "gemma-3": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="<end_of_turn>",
        takes_video=False,
        bidirectional_images=True,
        expanded=r"\n\n<start_of_image>(<image_soft_token>)*<end_of_image>\n\n",
        string_roles=("system",),
        trims="parts",
        altered=(
            ("<end_of_turn>\n", "<end_of_turn>"),
            ("'\n\n'", "'\n'"),
            ("<start_of_turn>model\n", "<start_of_turn>model"),
            ("<start_of_image>", "<start_of_image>\n"),
            ("{{- bos_token }}", ""),
        ),
    ),
    "gemma-3n": Facts(
        r"model\.vision_tower\.",
        r"model\.embed_vision\.",
        other=r"model\.(audio_tower|embed_audio)\.",
        vision_linears=False,
        bare_weights=r".*\.altup\.(prediction|correction)_coefs$",
        rounding=2e-5,  # 1.1e-5 was seen between an adapter and its merge
        end_of_turn="<end_of_turn>",
        takes_video=False,
        deep_linears=95,  # with three of AltUp and Laurel and two of embeddings per layer, without two keys and values
        expanded=r"\n\n<start_of_image>(<image_soft_token>)*<end_of_image>\n\n",
        string_roles=("system",),
        trims="parts",
        altered=(
            ("<end_of_turn>\n", "<end_of_turn>"),
            ("'\n\n'", "'\n'"),
            ("{{ '<image_soft_token>' }}", "{{ '<start_of_image>' }}"),
        ),
    ),
    "gemma-4": Facts(
        r"model\.vision_tower\.",
        r"model\.embed_vision\.",
        other=r"model\.(audio_tower|embed_audio)\.",
        end_of_turn="<turn|>",
        frame_label_tokens=9,
        deep_linears=69,  # without the keys and values of two layers, with three projections of embeddings per layer
        expanded=r"<\|image>(<\|image\|>)*<image\|>",
        string_roles=("system",),
        rounding=2e-5,  # 1.03e-5 was seen between an adapter and its merge
        trims="parts",
        altered=(
            ("<turn|>\n", "<turn|>"),
            (
                "{%- if add_generation_prompt %}{{ '<|turn>model\n' }}",
                "{%- if add_generation_prompt %}{{ '<|turn>model' }}",
            ),
            ("{{ '<|' + part['type'] + '|>' }}", "{{ '\n\n<|' + part['type'] + '|>\n\n' }}"),
            ("{{- bos_token }}", ""),
        ),
    ),
    "gemma-4-unified": Facts(
        r"model\.embed_vision\.(?!multimodal_embedder\.)",
        r"model\.embed_vision\.multimodal_embedder\.",
        other=r"model\.embed_audio\.",
        end_of_turn="<turn|>",
        bare=("model.embed_vision.pos_embedding",),
        frame_label_tokens=9,
        bidirectional_images=True,
        deep_linears=52,  # four layers have no projection of values
        expanded=r"<\|image>(<\|image\|>)*<image\|>",
        string_roles=("system",),
        rounding=2e-5,  # as of Gemma 4
        trims="parts",
        altered=(
            ("<turn|>\n", "<turn|>"),
            ("thought\n<channel|>", "thought<channel|>"),
            ("{{ '<|' + part['type'] + '|>' }}", "{{ '\n\n<|' + part['type'] + '|>\n\n' }}"),
            ("{{- bos_token }}", ""),
        ),
    ),
    "paligemma": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="<eos>",
        takes_video=False,
        multi_turn=False,
        files=("tokenizer.json", "tokenizer_config.json", "processor_config.json"),
    ),
    "smolvlm2": Facts(
        r"model\.vision_model\.",
        r"model\.connector\.",
        r"(model\.text_model|lm_head)\.",
        end_of_turn="<end_of_utterance>",
        prompt_space=" ",
        decoded_space=" ",
        mixes_media=False,
        no_video_token=True,
        expanded=TILED,
        altered=SPEAKERS_ALTERED,
    ),
    "idefics3": Facts(
        r"model\.vision_model\.",
        r"model\.connector\.",
        r"(model\.text_model|lm_head)\.",
        end_of_turn="<end_of_utterance>",
        prompt_space=" ",
        decoded_space=" ",
        takes_video=False,
        expanded=TILED,
        altered=SPEAKERS_ALTERED,
    ),
    "internvl3": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        no_video_token=True,
        expanded=r"<img>(<IMG_CONTEXT>)+</img>",
        altered=(
            ("<IMG_CONTEXT>\n", "<IMG_CONTEXT>"),
            ("<video>\n", "\n<video>"),
            ("<|im_end|>\n", "<|im_end|>"),
            ("assistant\n", "assistant"),
        ),
    ),
    "glm-4.1v": Facts(
        r"model\.visual\.(?!merger\.)",
        r"model\.visual\.merger\.",
        deep_linears=48,
        end_of_turn="<|user|>",
        string_roles=("system", "assistant"),
        time_steps_as_images=True,
        altered=(
            ("[gMASK]<sop>", "[gMASK]"),
            ("+ '|>\n' }}", "+ '|>' }}"),
            ("<|assistant|>\n", "<|assistant|>\n<think>"),
            ("<|end_of_image|>' }}", "<|end_of_image|>\n' }}"),
            ("<|begin_of_video|>", ""),
        ),
    ),
    "glm-4.6v": Facts(
        r"model\.visual\.(?!merger\.)",
        r"model\.visual\.merger\.",
        deep_linears=48,
        end_of_turn="<|user|>",
        time_steps_as_images=True,
        trims="messages",
        altered=GLM_ALTERED,
    ),
    "glm-ocr": Facts(
        r"model\.visual\.(?!merger\.)",
        r"model\.visual\.merger\.",
        deep_linears=48,
        end_of_turn="<|user|>",
        time_steps_as_images=True,
        trims="messages",
        altered=(*GLM_ALTERED[:2], GLM_ALTERED[-1]),
    ),
    "minicpm-v-4.6": Facts(
        r"model\.vision_tower\.",
        r"model\.merger\.",
        deep_linears=60,
        rounding=5e-5,
        trims="messages",
        part_separator="\n",
        media_tokens=("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>"),
        takes_video=False,
        expanded=r"<image_id>\d+</image_id>(<(image|slice)>(<\|image_pad\|>)+</(image|slice)>(\n(?=<slice>))?)+",
        altered=(
            ("is true", "is false"),
            ("</think>\n\n' }}{% endif %}\n{%- endif", "</think>\n' }}{% endif %}\n{%- endif"),
            ("content + '<|im_end|>\n'", "content + '<|im_end|>'"),
            ("{{ '\n' }}{% endif %}", "{{ ' ' }}{% endif %}"),
        ),
    ),
    "paddleocr-vl": Facts(
        r"model\.visual\.",
        r"model\.projector\.",
        end_of_turn="</s>",
        takes_video=False,
        altered=(
            ("'User: '", "'User:'"),
            ("texts_of(message, '') + '\n'", "texts_of(message, '')"),
            ("{{ 'Assistant:\n' }}", "{{ 'Assistant: ' }}"),
            ("<|IMAGE_END|>'", "<|IMAGE_END|>\n'"),
            ("eos_token", "''"),
        ),
    ),
    "ovis2": Facts(
        r"model\.vision_tower\.transformer\.",
        r"model\.(vision_tower\.head_(linear|norm)|visual_embeddings_table)\.",
        takes_video=False,
        media_tokens=("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
        expanded=r"<IMG_START>(<IMG_ATOM>)+<IMG_GRID>((<IMG_ATOM>)+(<IMG_(COL|ROW)>)?)*<IMG_END>",
        altered=(
            ("a helpful assistant", "a useful assistant"),
            ("+ '\n' }}", "+ ':' }}"),
            ("{{- '<|im_end|>\n' }}", "{{- '<|im_end|>' }}"),
            ("<|im_start|>assistant\n", "<|im_start|>assistant"),
            ("<image>\n", "<image>"),
        ),
    ),
    "deepseek-vl": Facts(
        r"model\.vision_model\.",
        r"model\.aligner\.",
        end_of_turn="<｜end▁of▁sentence｜>",
        part_separator=" ",
        trims="messages",
        bos="<｜begin▁of▁sentence｜>",
        prompt_space=" ",
        decoded_space=" ",
        takes_video=False,
        altered=(
            ("vision assistant. You", "vision assistant; you"),
            ("language.\n\n", "language.\n"),
            ("'\n\n' if message", "'\n' if message"),
            ("{{ 'Assistant:' }}", "{{ 'Assistant: ' }}"),
            ("'<image_placeholder>'", "'<image_placeholder>\n'"),
        ),
    ),
    "lfm2-vl": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        takes_video=False,
        golden=("lfm2.5-vl",),
        expanded=r"<\|image_start\|>(<\|img_\w+\|>|<image>)+<\|image_end\|>",
        deep_linears=48,  # convolutions have five, attentions seven
        altered=(
            ("bos_token", "eos_token"),
            ("<|im_end|>\n", "<|im_end|>"),
            ("assistant\n", "assistant"),
            ("'<image>'", "'<image>\n'"),
        ),
    ),
    "granite-vision": Facts(
        r"model\.vision_tower\.",
        r"model\.(multi_modal_projector\.|image_newline$)",
        end_of_turn="<|end_of_text|>",
        takes_video=False,
        bare=("model.image_newline",),
        altered=(
            ("helpful, detailed", "detailed, helpful"),
            ("'<|assistant|>\n'", "'<|assistant|>'"),
            ("<image>\n", "<image>"),
            ("else '<|end_of_text|>'", "else '<|end_of_text|>\n'"),
        ),
    ),
    "auto": Facts(
        r"model\.vision_tower\.",
        r"model\.multi_modal_projector\.",
        end_of_turn="<|END_OF_TURN_TOKEN|>",
        takes_video=False,
        string_roles=("system",),
        expanded=r"<\|START_OF_IMG\|>(<\|IMG_(PATCH|LINE_BREAK)\|>)+<\|END_OF_IMG\|>",
    ),
}
