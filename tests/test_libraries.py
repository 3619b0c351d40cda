"""What of libraries is used that they do not document: each with its reason, its guarding test and the public way.

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
    torch._subclasses.fake_tensor torch.utils._python_dispatch
""".split()  # of the last two: its pages "Fake tensor" and "Extending PyTorch"
MERGE = "tests/merging/test_merge_shards.py::test_shards_keys_and_dtypes_are_the_bases_and_each_sum_is_rounded_once"
OF_SHARDS = ("as the library loads and saves, a shard at a time", MERGE, "none: from_pretrained reads all shards")
REMOTE = "tests/loaders/test_remote_code.py::"
TILES = "tests/collators/test_image_tiles.py::test_images_of_any_shape_are_counted_exactly"
FAKE = "tests/test_estimate.py::test_bytes_are_those_of_a_real_step"
OF_QWEN = "tests/collators/test_lengths.py::test_texts_and_images_are_counted_to_the_token"
RESUMED = "tests/training/test_resume.py::test_a_resumed_run_equals_the_unbroken_one"
KILLED = "tests/training/test_resume.py::test_killed_runs_end_as_the_unbroken_one"
KERNELS = "tests/training/test_kernels.py::test_a_kernel_of_the_hub_is_refused_where_the_library_would_drop_masks"
OF_LFM2 = ("LFM2-VL's processor has no count", TILES, "resize_and_split on the meta device, once it is as fast")
FILE_NAMES = "none: the Trainer loads before any callback, and warns of the names that it does not find"

# Imported from inside a library -> (why; the test that fails when it changes; the public way that it waits for, or why
# there is none).
INSIDE = {
    "liger_kernel.transformers.monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN": (
        "which models Liger has kernels for",
        "tests/training/test_precision.py::test_liger_is_refused_for_a_model_that_it_does_not_know",
        "none: Liger has a public function for each model, and no list of their types",
    ),
    "transformers.conversion_mapping.get_model_conversion_mapping": OF_SHARDS,
    "transformers.core_model_loading.convert_and_load_state_dict_in_model": OF_SHARDS,
    "transformers.core_model_loading.revert_weight_conversion": OF_SHARDS,
    "transformers.dynamic_module_utils.get_class_from_dynamic_module": (
        "Python files of an older transformers",
        REMOTE + "test_every_weight_is_the_files",
        "none: from_pretrained makes no subclass of theirs",
    ),
    "transformers.hf_argparser.string_to_bool": (
        "True and False as HfArgumentParser reads them",
        "tests/test_arguments.py::test_the_defaults_show_something",
        "none: HfArgumentParser reads them for the fields of its dataclasses alone",
    ),
    "transformers.modeling_utils.LoadStateDictConfig": OF_SHARDS,
    "transformers.modeling_utils.set_zero3_state": (
        "a model without weights, which ZeRO-3 must not shard",
        "tests/training/test_distributed.py::test_two_processes_equal_one",
        "none: from_config asks no flag",
    ),
    **{
        f"transformers.models.llama4.image_processing_llama4.{name}": (
            "its tiles, counted without opening a picture",
            "tests/loaders/test_llama4.py::test_media_tokens_of_images_of_every_shape",
            "none: its processor counts them in a picture",
        )
        for name in ("find_supported_resolutions", "get_best_fit")
    },
    "transformers.models.ovis2.image_processing_ovis2.get_min_tile_covering_grid": (
        "its tiles, counted without opening a picture",
        TILES,
        "none: its processor counts them in a picture",
    ),
    "transformers.models.qwen2_vl.image_processing_qwen2_vl.smart_resize": (
        "the size that it resizes to",
        "tests/collators/test_boxes.py::test_the_grid_of_patches_is_that_of_the_pixels_that_were_told",
        "none: get_number_of_image_patches tells height times width",
    ),
    "transformers.models.smolvlm.processing_smolvlm.DEFAULT_CHAT_TEMPLATE": (
        "a checkpoint's template knows no videos",
        "tests/collators/test_image_tiles.py::test_frames_carry_their_own_times_and_none_is_trained",
        "its processor's apply_chat_template, for text whose control strings are marked already",
    ),
    "transformers.quantizers.quantizers_utils.should_convert_module": (
        "which layers are quantized",
        FAKE,
        "none: the quantizers need a GPU and bitsandbytes to tell",
    ),
    "transformers.trainer_callback.ExportableState": (
        "a callback whose state is saved with a checkpoint",
        "tests/training/test_progress.py::test_the_log_counts_the_time_of_all_parts",
        "none: the Trainer saves that of no other callback",
    ),
    "transformers.trainer_pt_utils.get_length_grouped_indices": (
        "groups of similar lengths",
        "tests/training/test_trainer.py::test_grouping_puts_similar_lengths_together",
        "none: the Trainer's own sampler is no pure function of seed and epoch",
    ),
    "transformers.utils.chat_template_utils.render_jinja_template": (
        "a template as `apply_chat_template` renders it",
        "tests/collators/test_template.py::test_a_template_renders_the_golden_texts",
        "none: apply_chat_template keeps the characters of the replies to itself",
    ),
}
# Private, of an object of a library.
PRIVATE = {
    "_attn_implementation": (
        "which parts of a model were told a kernel of the Hub",
        KERNELS,
        "none: set_attn_implementation writes it, nothing reads it out",
    ),
    "_get_grid_layout": OF_LFM2,
    "_is_image_too_large": OF_LFM2,
    "_set_gradient_checkpointing": (
        "Python files of an older transformers",
        REMOTE + "test_gradient_checkpointing_changes_nothing",
        "none: activation_checkpointing_enable calls it",
    ),
    "_supports_flash_attn": (
        "whether a class has FlashAttention",
        KERNELS,
        "none: from_pretrained asks for it where a kernel has a name of the library's own",
    ),
    "_weight_conversions": (
        "how key names come back when a model is saved",
        MERGE,
        "none: save_pretrained reads it",
    ),
}
# Private, that a class of ours overrides or uses in a class of a library.
INHERITED = {
    "_get_grad_norm": (
        "the norm before the update, on all processes",
        "tests/training/test_divergence.py::test_the_update_is_not_made_and_the_weights_before_it_are_saved",
        "none: callbacks are told of it after the update",
    ),
    "_get_output_dir": (
        "a checkpoint is written where nobody reads it",
        KILLED,
        "none: --output_dir is saved with the checkpoint",
    ),
    "_load_best_model": (
        "weights whose names in the file are not the model's",
        "tests/training/test_trainer.py::test_the_best_checkpoint_is_the_one_left",
        FILE_NAMES,
    ),
    "_load_from_checkpoint": ("weights whose names in the file are not the model's", RESUMED, FILE_NAMES),
    "_prepare_inputs": (
        "a batch on the device, in DeepSpeed's precision",
        "tests/training/test_loss.py::test_each_evaluation_path_has_a_loss_of_its_own",
        "none: prediction_step has it done, and keeps one loss of a batch",
    ),
    "_push_from_checkpoint": (
        "a checkpoint is pushed when it is whole",
        "tests/training/test_resume.py::test_a_checkpoint_is_pushed_when_it_is_whole",
        "none: callbacks cannot hold it back",
    ),
    "_run_epoch": (
        "a run that is resumed at its end takes no step",
        RESUMED,
        "none: should_training_stop is asked after a step",
    ),
    "_save": (
        "the processor's files with all weights; ZeRO-3's tied head once",
        "tests/training/test_trainer.py::test_full_run_leaves_a_standalone_checkpoint",
        "none: save_model gathers the weights and writes them in one call",
    ),
    "_save_checkpoint": ("a checkpoint is whole or not there", KILLED, "none: on_save comes when it is there"),
}
# Documented, in spite of their names: those of transformers in its pages "Transformers as modeling backend" and "Model
# structure rules", `_to_copy` in torch's "IRs".
PUBLIC = {"_asdict", "_exit", "_replace"}
PUBLIC |= {"_get_num_multimodal_tokens", "_init_weights", "_no_split_modules", "_to_copy"}


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
    for reason, guard, way in (INSIDE | PRIVATE | INHERITED).values():
        file, _, name = guard.partition("::")
        assert reason and way and f"def {name}(" in (REPO / file).read_text(encoding="utf-8"), guard
