"""Checks and settings for DDP, DeepSpeed's ZeRO and FSDP2 that the Trainer does not provide."""

import os

import torch
from accelerate import ParallelismConfig
from accelerate.utils import DistributedType
from tqdm import tqdm

# Keys of --fsdp_config that FSDP2 uses (transformers 5.23), and `replicate_across_nodes`, which `set_up_fsdp` uses. Any
# other key would be ignored silently.
FSDP_KEYS = {
    *("version", "auto_wrap_policy", "transformer_layer_cls_to_wrap", "min_num_params", "reshard_after_forward"),
    *("cpu_ram_efficient_loading", "state_dict_type", "cpu_offload", "activation_checkpointing"),
    "replicate_across_nodes",
}


def print_once(text: str) -> None:
    """Print a text on the first process only, above the progress bar if there is one. Do nothing for an empty text."""
    if text and int(os.environ.get("RANK", 0)) == 0:
        with tqdm.external_write_mode():
            print(text, flush=True)


def check(arguments) -> None:
    """Refuse flags that the engine does not support, before anything is loaded.

    Raises:
        ValueError: the message names the flags, the reason and what to use instead.
    """
    training = arguments.training
    if training.n_gpu > 1:
        raise ValueError(
            f"{training.n_gpu} GPUs are visible to one process. Start with `torchrun --nproc_per_node "
            f"{training.n_gpu} train.py ...`, or make only one visible: CUDA_VISIBLE_DEVICES=0."
        )
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1 and training.world_size == 1:
        raise ValueError(f"Each of {processes} processes on CPUs would train a separate copy: add --use_cpu True.")
    if training.device.type == "cpu":
        # accelerate 1.15 imports DeepSpeed in every run if it is installed. DeepSpeed then warns that it finds no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if training.deepspeed:
        check_deepspeed(arguments, training.hf_deepspeed_config)
    if training.fsdp:
        check_fsdp(arguments, training.fsdp_config)
    if (training.deepspeed or training.fsdp) and "RANK" not in os.environ:
        flag = "deepspeed" if training.deepspeed else "fsdp"
        raise ValueError(f"--{flag} needs a launcher, even for one process: torchrun --nproc_per_node 1 train.py ...")


def check_deepspeed(arguments, config) -> None:
    for key, flag in (("optimizer", "--vision_encoder_lr"), ("scheduler", "--warmup_steps")):
        if key in config.config:
            raise ValueError(f"--deepspeed: {key!r} in the file would override flags such as {flag}: delete it.")
    if config.is_zero3():
        if arguments.lora.load_in_8bit:
            raise ValueError(
                "--load_in_8bit True: bitsandbytes 0.50 keeps the full 8-bit weights in addition to their ZeRO-3 "
                "shard. Use ds_configs/zero2.json, or --q_lora True."
            )
        if arguments.data.add_tokens and arguments.lora.use_lora and arguments.training.device.type == "cpu":
            raise ValueError("--add_tokens under LoRA and ZeRO-3 needs GPUs (peft 0.21): use ds_configs/zero2.json.")
        check_nodes_share_a_folder(arguments, "ZeRO-3")


def check_fsdp(arguments, config: dict) -> None:
    training = arguments.training
    kind = training.distributed_state.distributed_type
    if kind == DistributedType.MULTI_CPU or (kind == DistributedType.NO and training.device.type == "cpu"):
        raise ValueError(
            "--fsdp True needs GPUs: on CPUs accelerate 1.15 would silently run DDP instead. Use --deepspeed "
            "ds_configs/zero3.json, which also shards on CPUs, or leave --fsdp out."
        )
    if int(config.get("version", 2)) != 2:
        raise ValueError("--fsdp_config: only version 2 is supported: leave `version` out.")
    if unknown := {key for key, value in config.items() if value} - FSDP_KEYS:
        raise ValueError(f"--fsdp_config: {min(unknown)} has no effect; use only {', '.join(sorted(FSDP_KEYS))}.")
    if config.get("activation_checkpointing"):
        raise ValueError(
            "--fsdp_config: activation_checkpointing in the file recomputes with different dropout, and saves empty "
            "adapters (accelerate 1.15, peft 0.21). Use --activation_checkpointing True instead."
        )
    if config.get("cpu_offload") and "gloo" not in str(training.ddp_backend):
        raise ValueError("--fsdp_config: cpu_offload communicates on CPUs too: add --ddp_backend cuda:nccl,cpu:gloo.")
    if config.get("replicate_across_nodes") and training.world_size == processes_of_node():
        raise ValueError("--fsdp_config: replicate_across_nodes has no effect on one node: leave it out.")
    check_nodes_share_a_folder(arguments, "FSDP2")


def processes_of_node() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def check_nodes_share_a_folder(arguments, engine: str) -> None:
    if arguments.training.save_on_each_node:
        raise ValueError(
            f"--save_on_each_node True: {engine} gathers the weights on the first node only. Give an --output_dir "
            "that all nodes share, and leave the flag out."
        )


def init_deepspeed(training) -> None:
    """Start DeepSpeed's communication.

    On a CPU, accelerate 1.15 starts only torch.distributed. ZeRO-3 would then shard the weights for a single process.
    On first use on a CPU, DeepSpeed also compiles an operation. One process takes a minute for it, while others wait.
    """
    if training.deepspeed:
        import deepspeed

        deepspeed.init_distributed()


def quantized(arguments, config, dtype: torch.dtype) -> dict:
    """Return the arguments of `from_pretrained` that set the quantization and the device."""
    if arguments.training.fsdp:
        config.bnb_4bit_quant_storage = dtype  # FSDP2 shards floating-point numbers only
    if arguments.training.deepspeed and arguments.training.hf_deepspeed_config.is_zero3():
        return {"quantization_config": config}  # the model is loaded whole, and sharded when training starts
    return {"quantization_config": config, "device_map": {"": arguments.training.device}}


def set_up_fsdp(training, model, dtype: torch.dtype) -> None:
    """Complete accelerate's FSDP2 settings: the layers to gather and free one by one, the precision, and whether
    each node shards its own copy of the model (HSDP), so that only gradients are sent between nodes.
    """
    if not training.fsdp:
        return
    if sum("trainable_tokens_delta" in name for name, _ in model.named_parameters()) == 1:  # the head is tied
        raise ValueError(
            "--add_tokens under LoRA and FSDP2 needs a head that is not tied to the embeddings (accelerate 1.15, peft "
            "0.21): use DDP, or --deepspeed ds_configs/zero2.json."
        )
    plugin = training.fsdp_plugin_args
    if training.fsdp_config.get("replicate_across_nodes"):
        shards = processes_of_node()
        nodes = training.world_size // shards
        training.parallelism_config = ParallelismConfig(dp_replicate_size=nodes, dp_shard_size=shards)
    if plugin["auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP" and "transformer_cls_names_to_wrap" not in plugin:
        # accelerate 1.15 uses all classes in `_no_split_modules`, and fails if the model lacks one of them, such as
        # CLIP's text embeddings.
        here = {type(module).__name__ for module in model.modules()}
        plugin["transformer_cls_names_to_wrap"] = sorted(here.intersection(model._no_split_modules))
    if dtype != torch.float32:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Gradients are summed over processes in float32, as in DDP; accelerate's own policy sums in 16 bits.
        plugin["mixed_precision_policy"] = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def equal_vision_calls(arguments, loader, trained, *datasets) -> set[str]:
    """Return the media kinds that every batch must contain. A run hangs if only some processes use a vision module."""
    training = arguments.training
    vision_trains = any(row.trained for row in trained if row.component != "language_model")
    needed = vision_trains or loader.language_model_sees_media or training.deepspeed or training.fsdp
    if training.world_size == 1 or not needed:
        return set()
    kinds = {"image"} if loader.language_model_sees_media else set()  # even if no row has an image
    return kinds.union(*(dataset.media_kinds for dataset in datasets if dataset))


def gather_full_state(trainer, loader) -> None:
    """On the processes that save, replace `trainer.model` with an unsharded model. It is loaded from the checkpoint
    again and gets the trained weights. So its frozen weights are those of the checkpoint, not rounded by `--bf16`.
    """
    weights = trainer.accelerator.get_state_dict(trainer.model)  # with FSDP2, only the first process gets them
    if trainer.args.should_save:
        trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        trainer.model = loader.load_model()
        trainer.model.load_state_dict({name: weights[name] for name in trained}, strict=False)
    trainer.is_fsdp_enabled = False  # nothing is sharded any more
