"""The registry of functions that make a family's `TinyModel`, `TINY_CHECKPOINTS.get("qwen2-vl")`; and saving one."""

from supported_models import AUTO, Registry, families

TINY_CHECKPOINTS = Registry(__name__)
register_tiny = TINY_CHECKPOINTS.register


def hub_state_dict(model) -> dict:
    """Return the weights under names that `save_pretrained` converts to those of the Hub file.

    It converts all names except the `vision_model.` of CLIP and SigLIP: transformers 5.23 strips this prefix when it
    loads a Hub file, and restores it only for models loaded from a file. A new model's experts would be saved under
    the names of older files. On the Hub, the experts of Qwen3.5 are as in memory, those of Qwen3-VL are transposed.
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

    The same seed gives the same bytes. The caller's random state does not change.

    Args:
        checkpoint: if the family's checkpoints differ in chat format, the name of the one to imitate; by default the
            smallest.

    Raises:
        ValueError: the family is unknown.
    """
    if family not in (*families(), AUTO):
        raise ValueError(f"{family!r} is not a family. The families are: {', '.join(families())}, {AUTO}.")
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
            if parameter.ndim > 1 and not parameter.any():  # a projection of zeros would hide the images
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
