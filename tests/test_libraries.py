"""What of libraries is used that they do not document: each with its reason, and the test that fails when it changes.

Read from the syntax trees: what is imported from inside a library, private names of its objects, and what the classes
of ours take from its own by a private name. A name with a public way leaves the list.
"""

import ast
import importlib
import inspect
import re
import sys

from conftest import REPO
from test_structure import CODE, MODULES, tree

# Modules that a library's documentation imports from; of any other, a name is in the list.
DOCUMENTED = """
    accelerate.utils huggingface_hub.constants huggingface_hub.dataclasses matplotlib.figure packaging.version
    peft.tuners.lora pyarrow.parquet rapidfuzz.distance rich.console rich.progress rich.table rich.text
    safetensors.torch starlette.datastructures starlette.middleware starlette.middleware.trustedhost
    starlette.responses torch.distributed.fsdp torch.distributed.tensor torch.nn.functional torch.nn.utils.rnn
    torch.serialization torch.utils.data torch.utils.flop_counter torch.utils.tensorboard transformers.integrations
    transformers.integrations.sdpa_attention transformers.masking_utils transformers.quantizers transformers.utils
""".split()
MERGE = "tests/merging/test_merge_shards.py::test_shards_keys_and_dtypes_are_the_bases_and_each_sum_is_rounded_once"
OF_SHARDS = ("as the library loads and saves, a shard at a time", MERGE)
OLD_CODE = (
    "Python files of an older transformers",
    "tests/loaders/test_remote_code.py::test_every_weight_is_the_files",
)
TILES = "tests/collators/test_image_tiles.py::test_images_of_any_shape_are_counted_exactly"
FAKE = ("tensors without numbers", "tests/test_estimate.py::test_bytes_are_those_of_a_real_step")
OF_QWEN = "tests/collators/test_lengths.py::test_texts_and_images_are_counted_to_the_token"
RESUMED = "tests/training/test_resume.py::test_a_resumed_run_equals_the_unbroken_one"
LOSSES = ("a resumed run goes on in the sums of logged losses", RESUMED)
BEST = "tests/training/test_trainer.py::test_the_best_checkpoint_is_the_one_left"
KILLED = "tests/training/test_resume.py::test_killed_runs_end_as_the_unbroken_one"

# Imported from inside a library -> (why, the test that fails when it changes).
INSIDE = {
    "liger_kernel.transformers.monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN": (
        "which models Liger has kernels for",
        "tests/training/test_precision.py::test_liger_is_refused_for_a_model_that_it_does_not_know",
    ),
    **{f"torch._subclasses.fake_tensor.{name}": FAKE for name in ("FakeTensor", "FakeTensorMode")},
    "torch.utils._python_dispatch.TorchDispatchMode": FAKE,
    "torch.utils._pytree.tree_iter": FAKE,
    "torch.utils._pytree.tree_leaves": (
        "the options within options of a processor",
        "tests/reading/test_reading.py::test_wrong_processor_kwargs_are_refused",
    ),
    "transformers.conversion_mapping.get_model_conversion_mapping": OF_SHARDS,
    "transformers.core_model_loading.convert_and_load_state_dict_in_model": OF_SHARDS,
    "transformers.core_model_loading.revert_weight_conversion": OF_SHARDS,
    "transformers.dynamic_module_utils.get_class_from_dynamic_module": OLD_CODE,
    "transformers.hf_argparser.string_to_bool": (
        "True and False as HfArgumentParser reads them",
        "tests/test_arguments.py::test_the_defaults_show_something",
    ),
    "transformers.image_processing_backends.TorchvisionBackend": (
        "the image processors whose pixels need no copy",
        "tests/training/test_preparation.py::test_images_come_out_as_of_the_checkpoints_own_processor",
    ),
    **{
        f"transformers.initialization.{name}": OF_SHARDS
        for name in ("meta_device_safe_creation_ops", "no_init_weights")
    },
    "transformers.integrations.bitsandbytes.dequantize_bnb_weight": (
        "what a quantized base stands for",
        "tests/test_merge.py::test_merge_of_q_lora_sees_the_quantized_base",
    ),
    "transformers.integrations.mistral.tokenizer.convert_tekken_tokenizer": (
        "a checkpoint with tekken.json alone",
        "tests/loaders/test_mistral.py::test_a_checkpoint_with_tekken_json_alone_gets_the_processor_of_its_sibling",
    ),
    "transformers.modeling_utils.LoadStateDictConfig": OF_SHARDS,
    "transformers.modeling_utils.set_zero3_state": (
        "a model without weights, which ZeRO-3 must not shard",
        "tests/training/test_distributed.py::test_two_processes_equal_one",
    ),
    **{
        f"transformers.models.llama4.image_processing_llama4.{name}": (
            "its tiles, counted without opening a picture",
            "tests/loaders/test_llama4.py::test_media_tokens_of_images_of_every_shape",
        )
        for name in ("find_supported_resolutions", "get_best_fit")
    },
    **{
        f"transformers.models.{name}.image_processing_{name}.smart_resize": ("the size that it resizes to", OF_QWEN)
        for name in ("paddleocr_vl", "qwen2_vl")
    },
    "transformers.models.smolvlm.processing_smolvlm.DEFAULT_CHAT_TEMPLATE": (
        "a checkpoint that ships none",
        "tests/collators/test_chat_formats.py::test_a_checkpoint_without_a_template_is_refused",
    ),
    "transformers.quantizers.quantizers_utils.should_convert_module": ("which layers are quantized", FAKE[1]),
    "transformers.trainer_callback.ExportableState": (
        "a callback whose state is saved with a checkpoint",
        "tests/training/test_progress.py::test_the_log_counts_the_time_of_all_parts",
    ),
    "transformers.trainer_pt_utils.get_length_grouped_indices": (
        "groups of similar lengths",
        "tests/training/test_trainer.py::test_grouping_puts_similar_lengths_together",
    ),
    "transformers.utils.chat_template_utils.render_jinja_template": (
        "a template as `apply_chat_template` renders it",
        "tests/collators/test_template.py::test_a_template_renders_the_golden_texts",
    ),
    "transformers.video_utils.VideoMetadata": (
        "the times of the frames that SmolVLM2 is told",
        "tests/collators/test_image_tiles.py::test_frames_carry_their_own_times_and_none_is_trained",
    ),
}
# Private, of an object of a library.
PRIVATE = {
    "_attn_implementation": (
        "which parts of a model were told a kernel of the Hub",
        "tests/training/test_kernels.py::test_a_kernel_of_the_hub_is_refused_where_the_library_would_drop_masks",
    ),
    "_get_grid_layout": ("LFM2-VL's processor has no count of its own", TILES),
    "_get_num_multimodal_tokens": ("the processor's own count, by which vLLM plans", OF_QWEN),
    "_is_image_too_large": ("LFM2-VL's processor has no count of its own", TILES),
    **{
        name: OLD_CODE
        for name in ("_init_weights", "_ntk_alpha_cached", "_seq_len_cached", "_set_gradient_checkpointing")
    },
    "_no_split_modules": (
        "which layers FSDP2 shards one by one",
        "tests/training/test_engines.py::test_fsdp_gathers_the_language_model_layer_by_layer",
    ),
    "_supports_flash_attn": (
        "whether a class has FlashAttention, which the library asks for names of its own alone",
        "tests/training/test_kernels.py::test_a_kernel_of_the_hub_is_refused_where_the_library_would_drop_masks",
    ),
    "_to_copy": ("torch's operation of a cast", FAKE[1]),
    "_weight_conversions": ("how key names come back when a model is saved", MERGE),
}
# Private, that a class of ours overrides or uses in a class of a library.
INHERITED = {
    "_get_grad_norm": (
        "the norm before the update, on all processes",
        "tests/training/test_divergence.py::test_the_update_is_not_made_and_the_weights_before_it_are_saved",
    ),
    "_get_output_dir": ("a checkpoint is written where nobody reads it", KILLED),
    "_globalstep_last_logged": LOSSES,
    "_load_best_model": ("weights whose names in the file are not the model's", BEST),
    "_load_from_checkpoint": ("weights whose names in the file are not the model's", RESUMED),
    "_prepare_inputs": (
        "a batch on the device, in DeepSpeed's precision",
        "tests/training/test_loss.py::test_each_evaluation_path_has_a_loss_of_its_own",
    ),
    "_push_from_checkpoint": (
        "a checkpoint is pushed when it is whole",
        "tests/training/test_resume.py::test_a_checkpoint_is_pushed_when_it_is_whole",
    ),
    "_run_epoch": ("a run that is resumed at its end takes no step", RESUMED),
    "_save": (
        "the processor's files with all weights; ZeRO-3's tied head once",
        "tests/training/test_trainer.py::test_full_run_leaves_a_standalone_checkpoint",
    ),
    "_save_checkpoint": ("a checkpoint is whole or not there", KILLED),
    "_total_loss_scalar": LOSSES,
    "_tr_loss": LOSSES,
}
PUBLIC = {"_asdict", "_exit", "_replace"}  # documented, in spite of their names


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def is_own(value: ast.expr) -> bool:
    """self, cls, super(), type(self): what a class may call private."""
    return ast.unparse(value) in ("self", "cls", "super()", "type(self)")


NODES = [(name, node) for name in CODE for node in ast.walk(tree(name))]
OURS = {name.partition(".")[0] for name in MODULES}


def is_library(module: str) -> bool:
    return (top := module.partition(".")[0]) not in OURS and top not in sys.stdlib_module_names


def test_what_is_imported_from_inside_a_library_is_listed():
    found = {
        f"{node.module}.{alias.name}"
        for _, node in NODES
        if isinstance(node, ast.ImportFrom) and is_library(node.module)
        for alias in node.names
        if "." in node.module and node.module not in DOCUMENTED or private(alias.name)
    }
    modules = {alias.name for _, node in NODES if isinstance(node, ast.Import) for alias in node.names}
    found |= {name for name in modules if is_library(name) and "." in name and name not in DOCUMENTED}
    assert found == INSIDE.keys(), "what is no longer used leaves the list"


def test_private_names_of_libraries_are_listed():
    """Nobody uses those of another module or object of ours."""
    own = {node.name for _, node in NODES if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and private(node.name)}
    found = [
        (f"{name}:{node.lineno}", node.attr)
        for name, node in NODES
        if isinstance(node, ast.Attribute) and not is_own(node.value) and private(node.attr)
    ]
    found += [
        (f"{name}:{node.lineno}", alias.name)
        for name, node in NODES
        if isinstance(node, ast.ImportFrom) and not is_library(node.module)
        for alias in node.names
        if private(alias.name)
    ]
    assert [use for use in found if use[1] in own or use[1] not in PRIVATE] == []
    assert {name for _, name in found} == PRIVATE.keys(), "what is no longer used leaves the list"


def test_private_names_of_base_classes_are_listed():
    found = set()
    for name, node in NODES:
        if not isinstance(node, ast.ClassDef) or node.col_offset or not node.bases:
            continue
        inside = [*ast.walk(node)]
        used = {each.name for each in inside if isinstance(each, ast.FunctionDef)}
        used |= {each.attr for each in inside if isinstance(each, ast.Attribute) and is_own(each.value)}
        if used := set(filter(private, used)):
            module = importlib.import_module(name.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
            bases = [base for base in getattr(module, node.name).__mro__ if is_library(base.__module__)]
            source = "\n".join(map(inspect.getsource, bases))
            found |= {each for each in used if re.search(rf"\b{each}\b", source)}
    assert found == INHERITED.keys(), "what is no longer used leaves the list"


def test_each_is_guarded_by_a_test_that_is_there():
    for reason, guard in (INSIDE | PRIVATE | INHERITED).values():
        file, _, name = guard.partition("::")
        assert reason and f"def {name}(" in (REPO / file).read_text(encoding="utf-8"), guard
