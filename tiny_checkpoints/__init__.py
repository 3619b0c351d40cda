"""Family id -> a function that makes its `TinyModel`: `TINY_CHECKPOINTS.get("qwen2-vl")`; and how one is written."""

from supported_models import AUTO, Registry, families

TINY_CHECKPOINTS = Registry(__name__)
register_tiny = TINY_CHECKPOINTS.register


def hub_state_dict(model) -> dict:
    """The weights under names that `save_pretrained` turns into those of the Hub file.

    It restores all but the `vision_model.` of CLIP and SigLIP, which transformers 5.23 strips when it loads a Hub file
    and puts back only for a model that was loaded from one. Of experts, a fresh model would get names that older
    files have; on the Hub, those of Qwen3.5 lie as in memory, those of Qwen3-VL transposed.
    """
    from transformers import CLIPVisionModel, Siglip2VisionModel, SiglipVisionModel

    model_type = model.config.model_type
    if model_type in ("qwen3_vl_moe", "qwen3_5_moe"):
        model._weight_conversions = []
        swap = model_type == "qwen3_vl_moe"
        return {
            name: weight.transpose(1, 2).contiguous() if swap and ".experts." in name else weight
            for name, weight in model.state_dict().items()
        }

    kinds = (CLIPVisionModel, SiglipVisionModel, Siglip2VisionModel)
    towers = [f"{name}." for name, module in model.named_modules() if isinstance(module, kinds)]
    weights = {}
    for name, weight in model.state_dict().items():
        for tower in towers:
            name = name.replace(tower, tower + "vision_model.")
        weights[name] = weight
    return weights


def make_tiny_checkpoint(family: str, output_dir: str, seed: int = 0, checkpoint: str | None = None) -> None:
    """Write a tiny random fp32 checkpoint of `family` into `output_dir` (made if missing, files overwritten).

    The same seed gives the same bytes. The caller's random state is left as it was.

    Args:
        checkpoint: name of the one to follow, of a family whose checkpoints differ in chat format; by default the
            smallest.

    Raises:
        ValueError: no such family.
    """
    if family not in (*families(), AUTO):
        raise ValueError(f"no tiny checkpoint of family {family!r}; known families: {', '.join(families())}, {AUTO}")
    import torch
    from transformers import AutoModelForImageTextToText, GenerationConfig

    tiny = TINY_CHECKPOINTS.get(family)(*filter(None, [checkpoint]))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed every GPU
        if tiny.model_class:
            model = tiny.model_class(tiny.config)
        else:
            model = AutoModelForImageTextToText.from_config(tiny.config, dtype=torch.float32)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():  # as a projection that starts at zero hides the images
                torch.nn.init.normal_(parameter, std=0.08)
    for name, parameter in model.named_parameters():
        if tiny.gates is not None and name.endswith("gate"):
            parameter.data.fill_(tiny.gates)
    model.generation_config = GenerationConfig(do_sample=False, **tiny.generation)
    model.save_pretrained(output_dir, state_dict=hub_state_dict(model))
    tiny.processor.save_pretrained(output_dir)
    print(
        f"{output_dir}: tiny {family}, {model.num_parameters():,} parameters, "
        f"vocabulary of {len(tiny.processor.tokenizer):,}, {model.dtype}"
    )
