"""Planted faults, each of which a test must notice: python tests/mutants.py [WORD ...] [--write]

Each fault is put into a copy of the repository, where the test that should notice it runs; before, all these tests pass
on the copy as it is. Words run only the faults whose names hold one of them. When you add a rule, add the fault that
breaks it; where one survives, add the test. Run all by hand before a release, with --write: tests/mutants.md holds the
results.
"""

import argparse
import datetime
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parent.parent
TABLE = REPO / "tests" / "mutants.md"
COLLATORS = "tests/collators/test_collators.py::"
LOSS = "tests/training/test_loss.py::"
ALONE = "tests/training/test_padding_free.py::test_losses_and_gradients_are_those_of_each_sample_alone"
MERGE = "tests/merging/test_merge_shards.py::"
FILES = "tests/training/test_checkpoint_files.py::"
WORDS = "tests/loaders/test_new_tokens.py::"
TRAINS = "tests/training/test_trainable.py::"
KINDS = "tests/reading/test_file_kinds.py::"
PROBED = "tests/training/test_model_probes.py::"
THOUGHTS = "tests/collators/test_thoughts_and_tools.py::"
BOXES, SEEN = "tests/collators/test_boxes.py::", "tests/collators/test_boxes_seen.py::"
OBJECTS = "tests/reading/test_objects.py::"
CLIPS = "tests/reading/test_clips.py::"


class Fault(NamedTuple):
    name: str
    file: str
    old: str  # occurs once in the file
    new: str
    test: str  # of those that notice it, a fast one

    def plant(self, held: str) -> str:
        """What the file holds -> the same with the fault."""
        if held.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} is {held.count(self.old)} times in {self.file}, not once.")
        return held.replace(self.old, self.new)


FAULTS = [
    # ---- moments of videos ----
    Fault(
        "a moment begins where its film does",
        "reading/videos.py",
        "indices = np.linspace(first, end - 1, number)",
        "indices = np.linspace(0, end - 1, number)",
        f"{CLIPS}test_a_moment_is_the_frames_that_are_shown_in_it[a.mp4]",
    ),
    Fault(
        "a moment is told as though it were the whole film",
        "reading/videos.py",
        "_metadata(end - first, scan.fps, indices)",
        "_metadata(end - first, scan.fps, [i - first for i in indices])",
        f"{CLIPS}test_a_moment_is_the_frames_that_are_shown_in_it[a.mp4]",
    ),
    Fault(
        "all of a long film is read for a moment of it",
        "reading/videos.py",
        "_taken(source, options, clip, _scan_moment) if is_moment(clip) else None",
        "_taken(source, options, clip, _scan_moment) if not clip else None",
        f"{CLIPS}test_of_a_long_film_only_the_moment_is_read",
    ),
    Fault(
        "a moment that was cut off is a shorter one",
        "reading/videos.py",
        "keys[0] <= begin + step / 4 and stop - last < max(1.5 * step, 0.1 / stream.time_base)",
        "keys[0] <= begin + step / 4",
        f"{CLIPS}test_a_moment_that_was_cut_off_is_no_shorter_moment[a.mkv]",
    ),
    Fault(
        "another moment of a part is the same data",
        "reading/row_index.py",
        "in references[: len(layout.media)] if clip]",
        "in references[: len(layout.media)] if not layout]",
        f"{CLIPS}test_two_moments_of_a_film_are_two_clips_of_one_video",
    ),
    Fault(
        "a part's own values are those of its row",
        "reading/clips.py",
        'of_row | part.get("clip", {})',
        'part.get("clip", {}) | of_row',
        f"{CLIPS}test_the_fields_of_rows_and_parts",
    ),
    Fault(
        "images without times are told some",
        "collators/template.py",
        'if self.told_times and any("untimed" in part',
        'if not self.told_times and any("untimed" in part',
        "tests/collators/test_moments.py::test_frames_without_times_are_refused_where_the_model_is_told_them[qwen3-vl]",
    ),
    Fault(
        "a clock is so many hundredths",
        "evaluation/boxes.py",
        "* 60**place",
        "* 100**place",
        "tests/evaluation/test_seconds.py::test_the_overlap_is_that_of_the_tenths_of_seconds",
    ),
    # ---- `auto` ----
    Fault(
        "auto concatenates samples that see each other",
        "training/model_probes.py",
        "    collator.is_padding_free = False\n",
        "",
        PROBED + "test_samples_are_concatenated_where_the_model_keeps_them_apart[qwen3.5-see each other]",
    ),
    Fault(
        "auto trains a model whose padded batches are wrong",
        "training/model_probes.py",
        '"a padded batch": padded',
        '"a padded batch": few',
        PROBED + "test_a_model_whose_padded_batches_are_wrong_is_refused",
    ),
    Fault(
        "DDP is not told of parameters without a gradient",
        "training/model_probes.py",
        "training.ddp_find_unused_parameters = True",
        "training.ddp_find_unused_parameters = None",
        PROBED + "test_ddp_looks_for_what_the_probes_leave_without_a_gradient",
    ),
    Fault(
        "auto takes an encoder-decoder",
        "loaders/auto.py",
        "if self.config.is_encoder_decoder or",
        "if",
        "tests/loaders/test_auto.py::test_what_auto_cannot_train_is_refused_by_its_config",
    ),
    Fault(
        "auto takes a model whose losses see what follows",
        "training/model_probes.py",
        '"tokens before another end": blind, ',
        "",
        PROBED + "test_a_model_that_sees_what_follows_is_refused",
    ),
    Fault(
        "auto concatenates what reads its place in long rows",
        "loaders/auto.py",
        "self.cannot_be_padding_free = ",
        "unused = ",
        "tests/loaders/test_auto.py::test_chunks_by_the_place_in_the_row_keep_samples_padded",
    ),
    Fault(
        "auto gives a part an attention that it does not have",
        "loaders/auto.py",
        'self.model_kwargs["attn_implementation"] = None',
        "pass",
        "tests/loaders/test_auto.py::test_a_part_without_the_usual_attention_takes_its_own",
    ),
    Fault(
        "auto trains the tokens of pictures that a processor does not name",
        "collators/auto.py",
        "if has_pixels and not",
        "if False and not",
        "tests/loaders/test_auto.py::test_a_processor_that_does_not_name_its_tokens_of_pictures_is_refused",
    ),
    Fault(
        "auto does not read from the config which tokens are pictures",
        "loaders/auto.py",
        "[*({*processor.image_token_ids, *named} - {None})]",
        "processor.image_token_ids",
        "tests/loaders/test_auto.py::test_a_processor_that_does_not_name_its_tokens_of_pictures_is_refused",
    ),
    Fault(
        "tokens of pictures are counted where a text has placeholders",
        "collators/template.py",
        '(f"{kind}_placeholder_token", f"{kind}_token")',
        '(f"{kind}_token",)',
        "tests/collators/test_any_template.py::test_a_processors_own_placeholder_is_counted",
    ),
    Fault(
        "auto lets a processor make tensors of texts",
        "collators/auto.py",
        '"text_kwargs": {"return_tensors": None}, ',
        "",
        "tests/loaders/test_auto.py::test_tensors_that_a_processor_makes_and_values_of_tokens_are_taken",
    ),
    Fault(
        "dense layers get the adapters of experts",
        "training/adapters.py",
        "if wrong := {*(config.target_parameters or ())} - {*parameters}:",
        "if wrong := None:",
        "tests/training/test_lora.py::test_layers_that_peft_takes_for_experts_are_not_adapted_elsewhere",
    ),
    # ---- bounds of pixels ----
    Fault(
        "images are resized before a processor that does it too",
        "reading/options.py",
        "if flags.keep_processor_config is False or",
        "if",
        "tests/collators/test_pixel_bounds.py::test_the_grids_of_training_are_those_of_the_saved_processor[qwen2.5-vl]",
    ),
    Fault(
        "the bound of images is written over that of videos",
        "loaders/output_folder.py",
        "shutil.copyfile(own, of_videos)",
        "pass",
        "tests/collators/test_pixel_bounds.py::test_the_bound_is_written_in_the_files_own_spelling_and_videos_keep_theirs",
    ),
    Fault(
        "more pixels are proposed than fit",
        "collators/budget.py",
        "key=tokens) - 1",
        "key=tokens)",
        "tests/collators/test_pixel_bounds.py::test_too_large_a_picture_is_told_the_pixels_that_fit[qwen2.5-vl]",
    ),
    Fault(
        "--max_pixels auto does not look at the evaluation data",
        "collators/pixel_bounds.py",
        "for d in datasets if d]",
        "for d in datasets[:1] if d]",
        "tests/collators/test_pixel_bounds.py::test_auto_is_the_most_with_which_all_data_fit",
    ),
    Fault(
        "the server of an adapter keeps the base's bound of pixels",
        "merging/servers.py",
        "if adapter and own_bounds:",
        "if not adapter and own_bounds:",
        "tests/test_check_serving.py::test_the_command_for_an_adapter",
    ),
    # ---- flags ----
    Fault(
        "a flag of training that has its default asks for nothing",
        "training/checks.py",
        "asked = changed | of_training & written",
        "asked = changed",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure[--eval_max_new_tokens 128]",
    ),
    Fault(
        "what an optimizer passes over is taken",
        "training/checks.py",
        "    if idle:",
        "    if False:",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure"
        "[--optim sgd --adam_beta1 0.8]",
    ),
    Fault(
        "an option that the processor passes over is taken",
        "collators/processor_options.py",
        "idle += [option] * same(",
        "idle += [] * same(",
        "tests/reading/test_reading.py::test_wrong_processor_kwargs_are_refused",
    ),
    Fault(
        "flags of thoughts and boxes without any are passed over",
        "train.py",
        "and held.isdisjoint(fields)",
        "and not held",
        "tests/test_arguments.py::test_flags_of_thoughts_and_boxes_that_no_row_holds_are_named",
    ),
    Fault(
        "flags about a server are taken without one",
        "check_serving.py",
        "for name in of_url)]",
        "for name in of_url[2:])]",
        "tests/test_check_serving.py::test_flags_about_a_server_need_one",
    ),
    Fault(
        "a flag is taken without the one that it needs",
        "training/checks.py",
        "values[flag] not in OFF for flag in flags)",
        "True for flag in flags)",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure[--q_lora True]",
    ),
    # ---- families ----
    Fault(
        "MiniCPM-V's strips of pixels are laid one below the other",
        "collators/minicpm_v_4_6.py",
        'torch.cat(values, dim=-1) if name.startswith("pixel_values") else super()',
        "super()",
        "tests/collators/test_collators.py::test_a_batch_of_many_equals_one_by_one[minicpm-v-4.6]",
    ),
    Fault(
        "Qwen-VL trains on with the scaling of the last row that was evaluated",
        "loaders/qwen_vl.py",
        "if self.training and",
        "if False and",
        "tests/loaders/test_remote_code.py::test_an_evaluated_long_row_leaves_the_training_as_it_was",
    ),
    Fault(
        "the tiny checkpoint of a model id is in its family's first format",
        "tiny_models.py",
        "checkpoint if several else None",
        "None",
        "tests/collators/test_chat_formats.py::test_the_tiny_checkpoint_of_a_model_id_is_in_its_format[llava-1.6-34b]",
    ),
    Fault(
        "an empty system prompt of LFM2 gets a turn",
        "collators/lfm2_vl.py",
        "content or message.role == 'user' or not loop.first",
        "true",
        "tests/collators/test_collators.py::test_texts_and_spans_are_the_golden_ones[lfm2-vl]",
    ),
    Fault(
        "the end of an empty thought counts as part of the reply",
        "collators/probes.py",
        "text = text.rpartition(token)[2]",
        "pass",
        "tests/collators/test_chat_formats.py::test_training_text_agrees_with_the_checkpoint[qwen3-vl-thinking0]",
    ),
    Fault(
        "GLM is told twice not to think",
        "collators/glm_4_6v.py",
        " and not content.endswith('{suffix}')",
        "",
        "tests/collators/test_chat_formats.py::test_glm_is_told_once_not_to_think",
    ),
    # ---- replies of a conversation ----
    Fault(
        "a greeting is history that is not trained",
        "collators/thoughts_and_tools.py",
        'any(m["role"] == "assistant" and m.get("train", True) for m in messages[: last_question(messages)])',
        'any(m["role"] == "assistant" and m.get("train", True) for m in messages[1 : last_question(messages)])',
        "tests/training/test_faults.py::test_a_conversation_may_begin_with_a_reply_where_the_template_allows_it[qwen3.5]",
    ),
    Fault(
        "two user messages in a row are trained where the template refuses them",
        "collators/template.py",
        "and order not in self.orders",
        "and False",
        "tests/training/test_faults.py::test_two_user_messages_in_a_row_are_as_the_template_takes_them[gemma-3]",
    ),
    Fault(
        "the history of a reply is trained again",
        "reading/rows.py",
        'm | {"train": False} if m["role"] == "assistant" else m',
        "m",
        "tests/reading/test_dataset.py::test_each_reply_is_a_sample_of_its_own",
    ),
    Fault(
        "every sample of a row is its first",
        "reading/row_index.py",
        "place - self.first(number) if samples[1:] else 0",
        "0",
        "tests/reading/test_dataset.py::test_each_reply_is_a_sample_of_its_own",
    ),
    Fault(
        "a slice counts samples, not rows",
        "reading/dataset.py",
        "range(*(first + first_sample(files, row) for row",
        "range(*(first + row for row",
        "tests/reading/test_dataset.py::test_each_reply_is_a_sample_of_its_own",
    ),
    Fault(
        "a faulty row gives its place to the sample of another",
        "reading/row_index.py",
        "errors = dict(zip(places, self.errors.values()))",
        "errors = self.errors",
        "tests/reading/test_dataset.py::test_a_faulty_row_keeps_its_place_among_samples",
    ),
    Fault(
        "the price of each reply is that of their number",
        "reading/dataset.py",
        "tokens.sum() / max(longest.sum(), 1)",
        "len(dataset) / len(longest)",
        "tests/reading/test_dataset.py::test_the_price_of_each_reply",
    ),
    Fault(
        "replies of the history get an empty thought that no server shows",
        "collators/thoughts_and_tools.py",
        '(place > question or message.get("train", True))',
        "True",
        f"{THOUGHTS}test_each_reply_is_trained_with_the_history_that_a_server_shows[False]",
    ),
    Fault(
        "a server's template is offered where it could not write the calls",
        "collators/thoughts_and_tools.py",
        "or self._keeps_thoughts or any(map(self.are_in, conversations))",
        "or self._keeps_thoughts",
        f"{THOUGHTS}test_a_server_gets_what_shows_several_turns_as_they_are_trained",
    ),
    Fault(
        "a thought is printed as the answer while it is written",
        "collators/thoughts_and_tools.py",
        "if mark or behind and not is_whole:",
        "if mark:",
        "tests/test_predict.py::test_a_thought_is_no_part_of_the_printed_answer",
    ),
    Fault(
        "the thoughts of the history tell a reply to think",
        "collators/thoughts_and_tools.py",
        "has_thought([m for i, m in enumerate(messages) if is_shown(m, i, question)])",
        "has_thought(messages)",
        f"{THOUGHTS}test_the_thoughts_of_the_history_do_not_tell_a_reply_to_think",
    ),
    Fault(
        "a flag that has its default asks for nothing",
        "training/checks.py",
        "if is_asked and",
        "if name in changed and",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure[--lora_r 8]",
    ),
    Fault(
        "a learning rate of 0 is taken",
        "training/checks.py",
        "if not any((training.learning_rate,",
        "if not any((1,",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure[--learning_rate 0]",
    ),
    Fault(
        "warm-up is taken where the schedule has none",
        "training/checks.py",
        "== [rate] != [0]",
        "== [0]",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure"
        "[--lr_scheduler_type constant --warmup_steps 3]",
    ),
    Fault(
        "a dead worker is only a broken pipe",
        "training/trainer.py",
        "cause = named",
        "pass",
        "tests/training/test_faults.py::test_a_dead_worker_is_named_where_its_broken_pipe_comes_first",
    ),
    # ---- rows ----
    Fault(
        "a field by another name is read twice",
        "reading/mapping.py",
        "return found, value | {step: left}",
        "return found, value",
        "tests/reading/test_mapping.py::test_a_field_by_another_name_is_that_field[other names]",
    ),
    Fault(
        "a picture under two names is in training and in evaluation",
        "reading/split.py",
        "if count[of_size] > 1 else medium",
        "if count[of_size] > 99 else medium",
        "tests/reading/test_split.py::test_rows_are_linked_by_the_bytes_of_their_media",
    ),
    Fault(
        "rows are linked by their last picture alone",
        "reading/split.py",
        "np.minimum.at(groups, rows, firsts[contents])",
        "groups[rows] = firsts[contents]",
        "tests/reading/test_split.py::test_groups_are_what_is_left_when_sets_of_pictures_are_merged",
    ),
    Fault(
        "a check holds out other rows than training where one cannot be used",
        "reading/split.py",
        "[*dataset.errors])",
        "[])",
        "tests/reading/test_split.py::test_rows_that_cannot_be_used_change_nothing_of_the_split",
    ),
    Fault(
        "more rows are held out than were asked for",
        "reading/split.py",
        "if count + sizes[group] <= number:",
        "if count < number:",
        "tests/reading/test_split.py::test_groups_are_held_out_whole_and_no_more_rows_than_asked_for",
    ),
    Fault(
        "a class is drawn as often as it has rows",
        "reading/weights.py",
        "weights /= totals[group]",
        "weights /= totals.sum()",
        "tests/reading/test_weights.py::test_each_class_is_drawn_equally_often",
    ),
    Fault(
        "all epochs draw the same rows",
        "reading/weights.py",
        "len(self.weights), epoch])",
        "len(self.weights), 0])",
        "tests/reading/test_weights.py::test_rows_are_drawn_by_their_weights",
    ),
    Fault(
        "a run is resumed on rows of other weights",
        "reading/dataset.py",
        'found.update(self.of_rows("sampling_weights").tobytes() +',
        "found.update(",
        "tests/reading/test_weights.py::test_the_digest_knows_weights_and_classes",
    ),
    Fault(
        "a weight that is no number is taken",
        "reading/rows.py",
        "0 <= (weight := float(value)) <= 1e9:",
        "not (weight := float(value)) < 0:",
        "tests/reading/test_weights.py::test_a_weight_that_is_none_is_refused_with_file_and_row",
    ),
    Fault(
        "the first rows are the ones that are drawn",
        "reading/split.py",
        ".permutation(np.unique(rows[usable(train)]))",
        ".permutation(1) + np.unique(rows[usable(train)])",
        "tests/reading/test_weights.py::test_some_rows_are_drawn_by_the_seed",
    ),
    Fault(
        "a column that no row has is taken",
        "reading/dataset.py",
        '".lower() not in found:',
        '".lower() in found:',
        "tests/reading/test_mapping.py::test_what_cannot_be_meant_is_refused_with_the_fix[a column that is not there]",
    ),
    Fault(
        "a place in a string of messages is text",
        "reading/rows.py",
        "    if typed:",
        "    if must_be_placed:",
        "tests/reading/test_mapping.py::test_a_form_of_another_tool_equals_messages[places in strings]",
    ),
    Fault(
        "a name of a file in a text is trained as letters",
        "reading/rows.py",
        "unread.leave_text(_said(users))",
        "pass",
        "tests/reading/test_unread.py::test_what_would_change_the_training_is_refused_by_name[a name alone]",
    ),
    Fault(
        "a split is only the start of a name",
        "reading/sources.py",
        "or re.search(of_name",
        "or re.match(of_name",
        "tests/reading/test_sources.py::test_a_split_is_a_word_of_the_name",
    ),
    Fault(
        "the place of a sound that is ignored is trained as letters",
        "reading/unread.py",
        "if is_sound(name, value)]",
        "if is_sound(name, None)]",
        "tests/reading/test_unread.py::test_a_place_for_ignored_sound_is_no_text[by its file]",
    ),
    Fault(
        "in a copy of Parquet, the name of an ignored sound is forgotten",
        "reading/unread.py",
        "if is_sound(name, value)]",
        "if is_sound('', value)]",
        "tests/reading/test_unread.py::test_a_place_for_ignored_sound_is_no_text[by its name]",
    ),
    Fault(
        "what is ignored inside of a mapped field is read all the same",
        "reading/mapping.py",
        "named = unread.without(named, {*self.ignored} - {*named})",
        "named = unread.without(named, ())",
        "tests/reading/test_unread.py::test_what_is_inside_of_a_mapped_field_is_ignored_by_the_name_that_is_read",
    ),
    Fault(
        "a place without a medium stays letters in silence",
        "reading/row_index.py",
        'self.counts["places"] += any(',
        'self.counts["places"] += all(',
        "tests/reading/test_unread.py::test_a_place_without_a_medium_is_said",
    ),
    Fault(
        "turns that are JSON in a text are none",
        "reading/rows.py",
        "turns = loaded(turns)",
        "pass",
        "tests/reading/test_mapping.py::test_turns_as_json_are_read_from_tables_too",
    ),
    Fault(
        "a table of turns alone is refused",
        "reading/copies.py",
        "given.isdisjoint(form.turn_fields) and",
        "",
        "tests/reading/test_mapping.py::test_turns_as_json_are_read_from_tables_too",
    ),
    Fault(
        "the answers to other questions are right ones of the first",
        "reading/rows.py",
        "if several[1:] else (name,)",
        "if several[9:] else (name,)",
        "tests/reading/test_mapping.py::test_what_cannot_be_meant_is_refused_with_the_fix"
        "[lists of questions and answers]",
    ),
    Fault(
        "the same is proposed for other names",
        "reading/mapping.py",
        'pairs["answer"] += "[0]"',
        "pass",
        "tests/reading/test_mapping.py::test_what_cannot_be_meant_is_refused_with_the_fix[the same by other names]",
    ),
    Fault(
        "the rest of a field stands in the way of its part",
        "reading/mapping.py",
        "if name in left and STEPS.match(source_of[name])[0] != name]",
        "if name in left]",
        "tests/reading/test_mapping.py::test_a_field_by_another_name_is_that_field"
        "[a part of the field of its own name]",
    ),
    Fault(
        "a list in a .jsonl file is so many broken lines",
        "reading/sources.py",
        'if number == 1 and text.startswith(b"["):',
        'if number == 0 and text.startswith(b"["):',
        "tests/reading/test_dataset.py::test_a_bad_file_is_an_error_that_names_it[list.jsonl]",
    ),
    Fault(
        "the labels of a detector are passed over, and their pictures are of the class images",
        "reading/picture_folders.py",
        "for part in (os.path.dirname, os.path.basename)",
        "for part in (os.path.dirname,)",
        "tests/reading/test_file_kinds.py::test_a_folder_that_cannot_be_meant_is_refused_by_name"
        "[texts in a folder of their own]",
    ),
    Fault(
        "two questions in a row end where there are tools",
        "reading/named_fields.py",
        '"S?A?(U+(CT+)*A)*U+(CT+)*[AC]"',
        '"S?A?(U(CT+)*A)*U(CT+)*[AC]"',
        "tests/reading/test_named_fields.py::test_two_questions_in_a_row_may_come_before_a_call",
    ),
    Fault(
        "the way to ignore a field in a list names its place",
        "reading/unread.py",
        "LIST_INDEX.sub('[]', where)",
        "where",
        "tests/reading/test_unread.py::test_what_is_ignored_on_purpose_passes[a size in a list]",
    ),
    Fault(
        "an expression of the test split is trained on",
        "example_data/convert/refcoco.py",
        'if ref["split"] == split else []',
        'if ref["split"] != split else []',
        "tests/reading/test_conversion.py::test_a_script_makes_rows_of_a_well_known_file[refcoco]",
    ),
    Fault(
        "InternVL's rows are not repeated",
        "example_data/convert/internvl_meta.py",
        "else found * int(repeat)",
        "else found",
        "tests/reading/test_conversion.py::test_a_script_makes_rows_of_a_well_known_file[internvl_meta]",
    ),
    Fault(
        "the script of another file is named",
        "reading/mapping.py",
        "if any(part >= {*keys}",
        "if any(part <= {*keys}",
        "tests/reading/test_conversion.py::test_the_error_for_a_well_known_file_names_its_script",
    ),
    Fault(
        "a path of a file:// address stays encoded",
        "reading/rows.py",
        "path = url2pathname(path[7:])",
        "path = path[7:]",
        "tests/reading/test_conversion.py::test_addresses_of_files_and_bare_base64_are_media",
    ),
    Fault(
        "a class is its number",
        "reading/copies.py",
        "for name in classes.keys() & row}",
        "for name in classes.keys() - row}",
        "tests/reading/test_mapping.py::test_a_class_has_the_name_that_the_file_knows",
    ),
    Fault(
        "a caption without its picture is passed over",
        "reading/picture_folders.py",
        "texts.keys() - {",
        "texts.keys() & {",
        f"{KINDS}test_a_folder_that_cannot_be_meant_is_refused_by_name[a caption without a picture]",
    ),
    Fault(
        "a caption that was written again is the old one",
        "reading/picture_folders.py",
        "state = None if kind_by_name(name) else ",
        "state = None if name else ",
        f"{KINDS}test_a_text_next_to_a_picture_is_its_caption",
    ),
    Fault(
        "a clip of metadata is an image",
        "reading/mapping.py",
        "return kind_by_name(str(names[0]))",
        "return kind_by_name('.jpg')",
        f"{KINDS}test_metadata_name_the_pictures_of_their_folder[jsonl]",
    ),
    Fault(
        "the shards of a saved data set are in the order of their names",
        "reading/sources.py",
        'shard["filename"]) for shard in about["_data_files"]]',
        'shard["filename"]) for shard in sorted(about["_data_files"], key=str)]',
        f"{KINDS}test_a_saved_data_set_has_the_shards_that_it_lists",
    ),
    Fault(
        "rows behind a broken header of a shard are lost",
        "reading/tars.py",
        'if any(block.strip(b"\\0")',
        'if all(block.strip(b"\\0")',
        f"{KINDS}test_no_row_of_a_broken_shard_is_lost_in_silence",
    ),
    Fault(
        "rows spread over a path leave its last one out",
        "reading/dataset.py",
        "np.linspace(rows.start, rows.stop - 1,",
        "np.linspace(rows.start, rows.stop - 2,",
        "tests/evaluation/test_evaluation.py::test_evaluations_change_nothing_and_their_answers_are_those_of_predict",
    ),
    Fault(
        "the parts of a row that are apart in a shard are two rows",
        "reading/tars.py",
        "np.setdiff1d(np.arange(len(stems)), firsts)",
        "np.setdiff1d(firsts, np.arange(len(stems)))",
        f"{KINDS}test_a_shard_that_cannot_be_meant_is_refused_by_name[apart]",
    ),
    Fault(
        "a revision of the Hub is not the one that is fetched",
        "reading/sources.py",
        'kwargs = {"revision": revision, ',
        'kwargs = {"revision": None, ',
        f"{KINDS}test_an_address_on_the_hub_fetches_what_it_names[@v1.0/train-*.parquet[:1]]",
    ),
    Fault(
        "bytes in lists without a path are no file",
        "reading/copies.py",
        "column if column.type == kind else column.cast(kind)",
        "column.cast(kind)",
        "tests/reading/test_mapping.py::test_bytes_have_other_names_too",
    ),
    Fault(
        "a class in a struct is its number",
        "reading/copies.py",
        "named(inner, feature.get(name, {}))",
        "inner",
        "tests/reading/test_mapping.py::test_a_class_has_the_name_that_the_file_knows",
    ),
    Fault(
        "of several pictures of metadata one is read",
        "reading/mapping.py",
        'if field in ("file_name", "file_names")',
        'if field == "file_name"',
        f"{KINDS}test_metadata_name_the_pictures_of_their_folder[jsonl]",
    ),
    Fault(
        "of the pictures of two fields one is read",
        "reading/mapping.py",
        "[*listed(named[name]), *listed(value)] if name in named",
        "value if name in named",
        "tests/reading/test_mapping.py::test_the_media_of_several_fields_are_in_the_order_of_the_flag",
    ),
    Fault(
        "of several answers the first is proposed",
        "reading/mapping.py",
        'answer.removesuffix("[]")',
        'answer.replace("[]", "[0]")',
        "tests/reading/test_mapping.py::test_what_cannot_be_meant_is_refused_with_the_fix[several answers]",
    ),
    Fault(
        "an id is proposed as the question",
        "reading/mapping.py",
        "elif not NEITHER.match(source) and (",
        "elif (",
        "tests/reading/test_mapping.py::test_what_cannot_be_meant_is_refused_with_the_fix[ids]",
    ),
    Fault(
        "the answers to all questions are proposed for the first",
        "reading/mapping.py",
        "asked_in == replied_in",
        "asked_in != replied_in",
        "tests/reading/test_mapping.py::test_what_is_proposed_reads_the_row[pairs]",
    ),
    Fault(
        "turns by their roles are in the order of their keys",
        "reading/mapping.py",
        "for name in roles for key, text in turn.items() if form.roles.get(key) == name}",
        "for key, text in turn.items() if form.roles.get(key) in roles}",
        "tests/reading/test_mapping.py::test_a_form_of_another_tool_equals_messages[turns by their roles]",
    ),
    Fault(
        "a thought as a part is lost",
        "reading/named_fields.py",
        "return turn | found, others",
        "return found | turn, [part for part in others if not found]",
        "tests/reading/test_mapping.py::test_a_form_of_another_tool_equals_messages[a thought and calls as parts]",
    ),
    Fault(
        "a picture of a result is typed letters",
        "reading/rows.py",
        'if message["role"] in ("user", "tool")]',
        'if message["role"] == "user"]',
        "tests/reading/test_mapping.py::test_a_form_of_another_tool_equals_messages[places in a result]",
    ),
    Fault(
        "a folder that cannot be looked into is passed over",
        "reading/sources.py",
        "in os.walk(folder, onerror=refuse)",
        "in os.walk(folder)",
        f"{KINDS}test_what_the_disk_refuses_is_named",
    ),
    Fault(
        "a medium of the Hub is of its main branch",
        "reading/files.py",
        '"revision": revision and unquote(revision)}',
        '"revision": None}',
        f"{KINDS}test_a_medium_on_the_hub_is_fetched_once_by_its_library",
    ),
    # ---- labels ----
    Fault(
        "the first token of a reply has no label",
        "collators/base.py",
        "first = bisect_right(offsets",
        "first = 1 + bisect_right(offsets",
        f"{COLLATORS}test_tokens_trained_on_golden_texts_are_the_replies_and_their_end[llava-1.5]",
    ),
    Fault(
        "the end of a reply has no label",
        "collators/base.py",
        "mask[first : bisect_left(offsets",
        "mask[first : -1 + bisect_left(offsets",
        f"{COLLATORS}test_tokens_trained_on_golden_texts_are_the_replies_and_their_end[llava-1.5]",
    ),
    Fault(
        "labels do not move where an image is expanded",
        "collators/base.py",
        "char + gained[bisect_right(ends, char)] for",
        "char for",
        f"{COLLATORS}test_every_mixture_in_one_batch_trains_the_replies_and_their_end[qwen2.5-vl]",
    ),
    Fault(
        "the first token has a label",
        "collators/base.py",
        'inputs["labels"][:, 0] = IGNORE_INDEX',
        'inputs["labels"][:, :0] = IGNORE_INDEX',
        f"{COLLATORS}test_unmasked_questions_train_all_text_and_no_media[llava-1.5]",
    ),
    Fault(
        "tokens of an image have labels",
        "collators/base.py",
        'trained = ~self.is_media(inputs["input_ids"])',
        'trained = inputs["input_ids"] >= 0',
        f"{COLLATORS}test_unmasked_questions_train_all_text_and_no_media[llava-1.5]",
    ),
    Fault(
        "BOS is there twice",
        "collators/base.py",
        "add_special_tokens=not self.template.writes_bos(text)",
        "add_special_tokens=True",
        f"{COLLATORS}test_tokens_and_labels_equal_the_librarys[gemma-3]",
    ),
    Fault(
        "a reply with train: false is trained",
        "collators/template.py",
        'if reply.get("train", True)]',
        "]",
        "tests/reading/test_formats.py::test_a_reply_with_train_false_has_no_label[messages-untrained1-llava-1.5]",
    ),
    Fault(
        "weight: 0 of a reply is ignored",
        "reading/rows.py",
        "if False in given.values()",
        'if given.get("train") is False',
        "tests/reading/test_formats.py::test_a_reply_with_train_false_has_no_label[OpenAI-untrained1-llava-1.5]",
    ),
    Fault(
        "the picture of a row does not count where rows are compared",
        "reading/row_index.py",
        "repr([name_or_hash(reference) for",
        "repr([None for",
        "tests/reading/test_dataset.py::test_a_row_counts_as_the_same_in_any_form_and_file",
    ),
    Fault(
        "a picture of another size counts as the one that was indexed",
        "reading/replaced.py",
        "if size_now != size:",
        "if size_now < 0:",
        "tests/reading/test_replaced.py",
    ),
    Fault(
        "a resumed run goes on with other pictures",
        "training/resume.py",
        "if new[1] != old[1]]:",
        "if new[0] != old[0]]:",
        "tests/training/test_resume.py::test_a_run_goes_on_with_the_media_that_it_began_with",
    ),
    Fault(
        "a link in the data leads out of the root of the web page",
        "reading/files.py",
        "resolved = os.path.realpath(path)",
        "resolved = os.path.abspath(path)",
        "tests/web/test_webui.py::test_no_medium_of_the_data_leads_out_of_the_root",
    ),
    Fault(
        "a folder whose name begins alike is in the root",
        "reading/files.py",
        'f"{folder.rstrip(os.sep)}{os.sep}"',
        "folder",
        "tests/web/test_webui.py::test_no_medium_of_the_data_leads_out_of_the_root",
    ),
    Fault(
        "an empty reply is trained",
        "reading/rows.py",
        'any(part["text"].strip() for part',
        'any("text" in part for part',
        "tests/reading/test_dataset.py::test_a_bad_row_is_an_error_that_names_file_sample_and_field",
    ),
    Fault(
        "replies within a prompt are trained",
        "reading/rows.py",
        'turn | {"train": False} if isinstance',
        "turn if isinstance",
        "tests/reading/test_dataset.py::test_every_form_becomes_the_same_canonical_messages",
    ),
    Fault(
        "the stop token of an untagged template is not trained",
        "collators/any_template.py",
        "ends = [at + len(token)",
        "ends = [at",
        "tests/collators/test_any_template.py::test_a_reply_ends_with_a_stop_token",
    ),
    Fault(
        "tokens that somebody added are not named under LoRA",
        "training/added_tokens.py",
        "if id >= loader.vocabulary}",
        "if id > 10 * loader.vocabulary}",
        "tests/training/test_trainable.py::test_added_tokens_that_no_flag_trains_are_listed",
    ),
    # ---- the template compared with the checkpoint's ----
    Fault(
        "differences of templates are ignored",
        "collators/template.py",
        "if not either & {official, as_moved(official)}]",
        "if False]",
        f"{COLLATORS}test_an_altered_checkpoint_template_is_reported[llava-1.5-change0]",
    ),
    Fault(
        "a template that differs where the data meets it is no error",
        "collators/template_check.py",
        "        if differences:",
        "        if False:",
        "tests/collators/test_template_check.py::test_a_difference_counts_where_the_data_meets_it[thinking]",
    ),
    Fault(
        "a template that differs where no data meets it is an error",
        "collators/template_check.py",
        "layout.shape for dataset in datasets if dataset for layout in dataset.layouts()",
        'Layout(shape) for shape in ("UtAt", "StUitAt", "UitAt", "UvtAt")',
        "tests/collators/test_template_check.py::test_a_difference_counts_where_the_data_meets_it[edited]",
    ),
    Fault(
        "only prompts are compared",
        "collators/template.py",
        "found = [(ours, text, self._official_text(messages))]",
        "found = []",
        f"{COLLATORS}test_a_template_that_goes_on_after_the_last_reply_is_reported",
    ),
    Fault(
        "prompts are not compared",
        "collators/template.py",
        "found.append((ours, text[:start], self._official_text(messages[:i], add_generation_prompt=True)))",
        "pass",
        f"{COLLATORS}test_an_altered_checkpoint_template_is_reported[llava-1.5-change0]",
    ),
    Fault(
        "typed control strings become control tokens",
        "collators/frame_tokens.py",
        "self._frame_token = control_pattern(self.tokens)",
        "pass",
        "tests/collators/test_control_strings.py::test_what_was_typed_is_text[llava-1.5-typed]",
    ),
    Fault(
        "rows with typed control strings are not counted",
        "collators/template.py",
        "return frame.marked(said) != said",
        "return False",
        "tests/test_preview.py::test_rows_with_a_typed_control_token_are_counted",
    ),
    # ---- thoughts and tools ----
    Fault(
        "a control string typed in a thought or a call is a token",
        "collators/frame_tokens.py",
        "cuts = [0, *self.marks(value), len(value)]",
        "cuts = [0, len(value)]",
        f"{THOUGHTS}test_typed_control_strings_are_text_in_thoughts_tools_and_calls",
    ),
    Fault(
        "replies whose thought was dropped are trained",
        "collators/thoughts_and_tools.py",
        "replies += [i] * (i > question or as_answered)",
        "replies += [i] * (i > question or not self.thought_format)",
        f"{THOUGHTS}test_tokens_are_the_checkpoints_and_replies_are_trained[two thoughts]",
    ),
    Fault(
        "a row without a thought is asked to think",
        "collators/template.py",
        'told = {"enable_thinking": False} if "enable_thinking" in self.given else {}',
        "told = {}",
        f"{THOUGHTS}test_tokens_are_the_checkpoints_and_replies_are_trained[tools]",
    ),
    Fault(
        "a thought is trained with --train_thoughts False",
        "collators/thoughts_and_tools.py",
        "start = reply.find(mark) + len(mark)",
        "start = 0",
        f"{THOUGHTS}test_the_answer_alone",
    ),
    Fault(
        "a result without a call is taken",
        "reading/named_fields.py",
        "return bool(TURNS.fullmatch(turns))",
        "return True",
        "tests/reading/test_named_fields.py::test_what_cannot_be_meant_is_refused_by_name[a result without a call]",
    ),
    Fault(
        "rows of new tokens under FSDP2 and LoRA fail in the library",
        "training/engines.py",
        'if sum("trainable_tokens_delta" in name for name, _ in model.named_parameters()) == 1:',
        "if False:",
        f"{WORDS}test_under_lora_the_rows_get_the_gradients_of_the_plain_embeddings[qwen2.5-vl]",
    ),
    Fault(
        "the image of a result goes to the question",
        "reading/rows.py",
        'if message["role"] in ("user", "tool")]',
        'if message["role"] == "user"]',
        "tests/reading/test_named_fields.py::test_images_of_results_are_where_their_text_says",
    ),
    Fault(
        "a result is of the first call, whatever its name",
        "reading/named_fields.py",
        "next(named, open_calls[0])",
        "open_calls[0]",
        "tests/reading/test_named_fields.py::test_calls_and_results_without_an_id_get_one_in_their_order",
    ),
    Fault(
        "an image in a result is asked of the template alone",
        "collators/thoughts_and_tools.py",
        'held |= {"found"} if message["role"] == "tool"',
        'held |= set() if message["role"] == "tool"',
        f"{THOUGHTS}test_images_stay_where_the_template_takes_them",
    ),
    Fault(
        "a question next to tools is a list of parts",
        "collators/template.py",
        'known = message["role"] == "tool" or kwargs.get("tools") and message["role"] == "user"',
        'known = message["role"] == "tool"',
        f"{THOUGHTS}test_a_question_next_to_tools_is_a_text_where_it_can_be",
    ),
    Fault(
        "a thought that the prompt begins is no thought",
        "collators/thoughts_and_tools.py",
        "return prompt[len(os.path.commonprefix([prompt, later])) :]",
        'return "<think>\\n" * ("enable_thinking" in self.template.official)',
        f"{THOUGHTS}test_a_model_that_always_thinks_tells_of_the_thoughts_it_drops",
    ),
    Fault(
        "rows that differ in their calls are duplicates",
        "reports/data_report.py",
        'content.append((message["role"], parts, named))',
        'content.append((message["role"], parts))',
        "tests/reports/test_data_report.py::test_rows_with_thoughts_and_calls_are_counted_and_told_apart",
    ),
    Fault(
        "a call is shown as the answer",
        "collators/thoughts_and_tools.py",
        "call = reply.find(self._before_call, start) if self._before_call else -1",
        "call = -1",
        "tests/test_preview.py::test_thoughts_and_calls_are_named",
    ),
    Fault(
        "calls in a row are messages of their own",
        "reading/named_fields.py",
        'if is_more and message.get("train") == found[-1].get("train"):',
        "if False:",
        "tests/reading/test_named_fields.py::test_calls_in_a_row_are_one_message_and_keep_the_text_before",
    ),
    # ---- batches ----
    Fault(
        "dummies have labels",
        "collators/base.py",
        '{"labels": torch.full_like(inputs["labels"], IGNORE_INDEX)}',
        '{"labels": inputs["input_ids"]}',
        f"{COLLATORS}test_dummy_media_teach_nothing_and_reach_every_vision_parameter[llava-1.5]",
    ),
    Fault(
        "a step of texts leaves the vision part out",
        "training/trainer.py",
        "complete_gradients(*args)",
        "None",
        "tests/training/test_gradients.py::test_a_step_of_texts_goes_on_as_one_with_a_dummy_image[full]",
    ),
    Fault(
        "a batch without images gets no dummy",
        "collators/base.py",
        "for kind in sorted(self.vision_calls - present)]",
        "for kind in ()]",
        f"{COLLATORS}test_dummy_media_teach_nothing_and_reach_every_vision_parameter[llava-1.5]",
    ),
    Fault(
        "padding has labels",
        "collators/base.py",
        '"labels": IGNORE_INDEX, "mm_token_type_ids": 0',
        '"labels": 0, "mm_token_type_ids": 0',
        f"{COLLATORS}test_every_mixture_in_one_batch_trains_the_replies_and_their_end[llava-1.5]",
    ),
    Fault(
        "padding is attended to",
        "collators/base.py",
        '"attention_mask": 0',
        '"attention_mask": 1',
        f"{COLLATORS}test_left_padding_ends_every_row_at_the_last_token[llava-1.5]",
    ),
    Fault(
        "padding is on the other side",
        "collators/batch.py",
        'if side == "left":',
        'if side == "right":',
        f"{COLLATORS}test_left_padding_ends_every_row_at_the_last_token[llava-1.5]",
    ),
    Fault(
        "prompts are padded on the right",
        "evaluation/answers.py",
        'side="left"',
        'side="right"',
        "tests/test_merge.py::test_answers_do_not_depend_on_the_batch[llava-1.5]",
    ),
    # ---- samples in one row ----
    Fault(
        "positions of a sample begin at 1",
        "collators/base.py",
        "positions = torch.arange(number)[None]",
        "positions = torch.arange(number)[None] + 1",
        "tests/training/test_padding_free.py::test_positions_begin_again_in_each_sample[llava-1.5]",
    ),
    Fault(
        "samples of a row see each other",
        "loaders/attention.py",
        "states.split(sample_lengths, dim=2)",
        "states.split(query.shape[2], dim=2)",
        f"{ALONE}[llava-1.5]",
    ),
    Fault(
        "a checkpoint is pushed before it is whole",
        "training/resume.py",
        "if not self.is_saving:",
        "if self.is_saving is not None:",
        "tests/training/test_resume.py::test_a_checkpoint_is_pushed_when_it_is_whole",
    ),
    Fault(
        "a kernel of the Hub computes for a class without FlashAttention",
        "loaders/base.py",
        "if not part._supports_flash_attn:",
        "if part is None:",
        "tests/training/test_kernels.py::test_a_kernel_of_the_hub_is_refused_where_the_library_would_drop_masks",
    ),
    Fault(
        "linear attention reads on from one sample into the next",
        "loaders/attention.py",
        "        if self.lengths:\n",
        "        if not self.lengths:\n",
        f"{ALONE}[qwen3.5]",
    ),
    Fault(
        "a sample gets the mask of another",
        "loaders/attention.py",
        "attention_mask[..., start:end, start:end]",
        "attention_mask[..., : end - start, : end - start]",
        f"{ALONE}[gemma-3]",
    ),
    Fault(
        "tokens outside of images see later ones",
        "loaders/attention.py",
        " & (blocks[:, None] >= 0)",
        "",
        f"{ALONE}[gemma-3]",
    ),
    Fault(
        "a pack exceeds the budget by a token",
        "training/sampling.py",
        "bisect_left(rooms, (length,))",
        "bisect_left(rooms, (length - 1,))",
        "tests/training/test_padding_free.py::test_packs_hold_each_row_once_within_the_budget_and_are_nearly_full",
    ),
    Fault(
        "a row is lost where a pack is split",
        "training/sampling.py",
        "packs.append(largest[len(largest) // 2 :])",
        "packs.append(largest[len(largest) // 2 + 1 :])",
        "tests/training/test_padding_free.py::test_packs_hold_each_row_once_within_the_budget_and_are_nearly_full",
    ),
    Fault(
        "processes get unequal numbers of packs",
        "training/sampling.py",
        "-(-most // batch) * batch",
        "most",
        "tests/training/test_padding_free.py::test_packs_hold_each_row_once_within_the_budget_and_are_nearly_full",
    ),
    # ---- the loss ----
    Fault(
        "the loss is that of one process in several",
        "training/trainer.py",
        "loss = loss * self.accelerator.num_processes",
        "pass",
        f"{LOSS}test_two_processes_share_the_labels_of_a_step[llava-1.5-ddp]",
    ),
    Fault(
        "accumulated batches weigh the same",
        "training/trainer.py",
        "(keep.sum() if num_items_in_batch is None else num_items_in_batch)",
        "keep.sum()",
        f"{LOSS}test_accumulated_loss_and_gradients_are_those_of_the_labels[llava-1.5-replies]",
    ),
    Fault(
        "labels are not smoothed",
        "training/loss.py",
        "label_smoothing=label_smoothing)",
        "label_smoothing=0)",
        f"{LOSS}test_accumulated_loss_and_gradients_are_those_of_the_labels[llava-1.5-smoothed text]",
    ),
    Fault(
        "each token predicts itself",
        "training/loss.py",
        "(0, 1), value=IGNORE_INDEX)[:, 1:]",
        "(0, 0))",
        "tests/training/test_trainer.py::test_loss_and_gradients_equal_the_models_own[llava-1.5]",
    ),
    Fault(
        "evaluation takes the mean over samples",
        "training/trainer.py",
        'found[f"{part}loss"] = losses / labels',
        'found[f"{part}loss"] = losses / len(rows)',
        f"{LOSS}test_accumulated_loss_and_gradients_are_those_of_the_labels[llava-1.5-replies]",
    ),
    Fault(
        "the first label of a sample counts for the one before",
        "training/loss.py",
        "right=True)",
        "right=False)",
        f"{LOSS}test_losses_belong_to_their_samples[one row]",
    ),
    Fault(
        "what has no gradient counts as trained",
        "training/gradients.py",
        "if parameter.grad is not None}",
        "}",
        "tests/training/test_gradients.py::test_a_family_that_names_no_unused_module_is_told[full]",
    ),
    # ---- what trains ----
    Fault(
        "a group has the learning rate of another",
        "training/trainer.py",
        '"params": moved, "lr": rate}',
        '"params": moved}',
        "tests/training/test_trainable.py::test_each_component_steps_at_its_own_learning_rate[full-llava-1.5]",
    ),
    Fault(
        "the projector takes the rate of the encoder",
        "training/trainable.py",
        '"vision_projector": model.vision_projector_lr',
        '"vision_projector": model.vision_encoder_lr',
        "tests/training/test_trainable.py::test_each_component_steps_at_its_own_learning_rate[full-llava-1.5]",
    ),
    Fault(
        "what the loss never sees is trained",
        "training/trainable.py",
        "if loader.is_unused(base_name(name)) or single",
        "if single",
        "tests/training/test_trainable.py::test_full_training_trains_all_that_gets_a_gradient[llava-1.5]",
    ),
    Fault(
        "what trains is kept in 16 bits",
        "training/trainable.py",
        "(parameter.requires_grad or beside_trained)",
        "beside_trained",
        "tests/training/test_trainable.py::test_precision_of_trained_and_frozen_weights",
    ),
    Fault(
        "a module is inside of one whose name begins alike",
        "loaders/base.py",
        'name.startswith(path + ".")',
        "name.startswith(path)",
        "tests/loaders/test_base.py",
    ),
    Fault(
        "routers are quantized",
        "loaders/quantization.py",
        "*(*routers, *loader.bare_weights",
        "*(*loader.bare_weights",
        "tests/training/test_trainable.py::test_no_router_is_quantized",
    ),
    Fault(
        "the vision encoder is quantized",
        "loaders/quantization.py",
        "*(*loader.vision_encoder, *loader.vision_projector",
        "*(*loader.vision_projector",
        "tests/training/test_trainable.py::test_only_the_language_model_is_quantized[4-nf4-llava-1.5]",
    ),
    Fault(
        "--train_language_model False trains it",
        "training/trainable.py",
        '"full" if model.train_language_model else "frozen"',
        '"full"',
        TRAINS + "test_names_have_the_last_word[projector alone]",
    ),
    Fault(
        "a name of --train is frozen",
        "training/trainable.py",
        '("train", "full")',
        '("train", "frozen")',
        TRAINS + "test_names_have_the_last_word[last layer]",
    ),
    Fault(
        "what --freeze names has an adapter",
        "training/adapters.py",
        'if (mode := modes[f"{name}.weight"]) != "lora":',
        'if (mode := modes[f"{name}.weight"]) is None:',
        TRAINS + "test_beside_adapters_names_freeze_a_layer_or_train_it_in_full",
    ),
    Fault(
        "--freeze and --train may match the same",
        "training/trainable.py",
        "if found.get(name, mode) != mode)",
        "if found.get(name, mode) is None)",
        TRAINS + "test_names_without_a_meaning_are_refused",
    ),
    Fault(
        "the summary calls a component frozen of which a name trains",
        "training/trainable.py",
        "if named or not trained:",
        "if not trained:",
        TRAINS + "test_names_have_the_last_word[a parameter]",
    ),
    Fault(
        "a new word starts from the last of its pieces",
        "loaders/new_tokens.py",
        "weight[pieces].float().mean(0)",
        "weight[pieces[-1]]",
        WORDS + "test_words_start_from_their_pieces_and_are_found_in_the_saved_tokenizer[llava-1.5]",
    ),
    Fault(
        "the head of new words does not train under LoRA",
        "training/adapters.py",
        "if module is table or module is head and not tied]",
        "if module is table]",
        WORDS + "test_under_lora_the_rows_get_the_gradients_of_the_plain_embeddings[llava-1.5]",
    ),
    Fault(
        "the saved tokenizer has no new words",
        "loaders/output_folder.py",
        "        if self.new_tokens:",
        "        if False:",
        WORDS + "test_plain_transformers_writes_the_words_that_were_learned[llava-1.5-words1-flags1]",
    ),
    Fault(
        "a frame token may be added",
        "training/make_collator.py",
        "if token in word]:",
        "if token in word and False]:",
        WORDS + "test_a_frame_token_is_no_word[<image>]",
    ),
    Fault(
        "a resumed run may have other words",
        "training/resume.py",
        'flags["add_tokens"] = flags.pop("new_tokens")',
        'flags["add_tokens"] = flags.pop("new_tokens") and None',
        WORDS + "test_a_resumed_run_has_the_same_words_wherever_their_file_is",
    ),
    Fault(
        "a word that cannot be written is added",
        "loaders/new_tokens.py",
        "(written := tokenizer.decode([id])) != word:",
        "not (written := tokenizer.decode([id])):",
        WORDS + "test_a_word_that_a_byte_level_tokenizer_cannot_write_is_refused",
    ),
    # ---- the order of samples ----
    Fault(
        "every epoch has the same order",
        "training/sampling.py",
        "manual_seed(self.seed + epoch)",
        "manual_seed(self.seed)",
        "tests/training/test_trainer.py::test_order_is_a_pure_function_of_seed_epoch_and_position",
    ),
    Fault(
        "lengths are grouped by one sample",
        "training/sampling.py",
        "get_length_grouped_indices(lengths, self.group,",
        "get_length_grouped_indices(lengths, 1,",
        "tests/collators/test_lengths.py::test_the_batches_of_a_step_are_of_similar_length_on_all_processes",
    ),
    Fault(
        "half of a path is always the same half",
        "reading/weights.py",
        "first, last = epoch * share, (epoch + 1) * share",
        "first, last = 0, share",
        "tests/reading/test_sources.py::test_counts_follow_the_weight",
    ),
    Fault(
        "a weight is rounded down to none",
        "reading/weights.py",
        "max(round(w * n), min(n, 1))",
        "round(w * n)",
        "tests/reading/test_sources.py::test_a_share_is_rounded_and_no_row_comes_before_its_turn",
    ),
    # ---- boxes ----
    Fault(
        "a box is in pixels of the file as it lies",
        "reading/images.py",
        "        return _seen_size(image)\n",
        "        return image.size\n",
        f"{OBJECTS}test_marks_take_names_boxes_and_points_in_order",
    ),
    Fault(
        "a box outside of its picture is taken",
        "reading/boxes.py",
        "number <= side + 1",
        "number <= side * 9",
        f"{OBJECTS}test_what_cannot_be_meant_is_refused_by_row_and_field",
    ),
    Fault(
        "an index with faulty rows is made again at every start",
        "reading/row_index.py",
        "if len(maker.errors) < len(rows):",
        "if rows:",
        f"{OBJECTS}test_an_index_is_kept_while_its_faulty_rows_are_faulty",
    ),
    Fault(
        "there may be more boxes than marks",
        "reading/boxes.py",
        "found != len(values)",
        "found > len(values)",
        f"{OBJECTS}test_what_cannot_be_meant_is_refused_by_row_and_field",
    ),
    Fault(
        "boxes are in pixels before the processor's resize",
        "collators/boxes.py",
        "and images.do_resize",
        "and not images.do_resize",
        f"{BOXES}test_the_box_in_the_labels_covers_what_it_names[qwen2.5-vl]",
    ),
    Fault(
        "counts of boxes outlive another size of their pictures",
        "collators/budget.py",
        "key.append(asdict(dataset.media))",
        "pass",
        f"{BOXES}test_the_box_in_the_labels_covers_what_it_names[qwen2.5-vl]",
    ),
    Fault(
        "each name is an object of its own",
        "collators/boxes.py",
        'if groups and "at" in found and',
        'if groups and "at" not in found and',
        f"{BOXES}test_names_boxes_and_points_are_written_as_the_makers_do[qwen3.5]",
    ),
    Fault(
        "all boxes are of the first image",
        "collators/boxes.py",
        'chain((one["image"] for one in objects), repeat(0))',
        "repeat(0)",
        f"{SEEN}test_answers_tell_boxes_in_pixels_of_the_original",
    ),
    Fault(
        "boxes beyond those asked for cost nothing",
        "evaluation/boxes.py",
        "max(len(answered), len(right))",
        "len(right)",
        f"{SEEN}test_the_metrics_of_boxes_are_those_worked_out_by_hand",
    ),
    Fault(
        "pixels in a text are resized in silence",
        "collators/template_check.py",
        "if not boxes.in_pixels or not (",
        "if not boxes.in_pixels or (",
        f"{SEEN}test_pixels_in_a_text_are_warned_of_where_flags_resize",
    ),
    # ---- the budget ----
    Fault(
        "a cut goes through an image",
        "collators/base.py",
        "if media_end > budget:",
        "if False:",
        f"{COLLATORS}test_the_first_exchanges_media_must_fit[llava-1.5]",
    ),
    Fault(
        "a cut comes a token late",
        "collators/base.py",
        "v[:, :budget]",
        "v[:, : budget + 1]",
        f"{COLLATORS}test_a_cut_keeps_all_media_and_leaves_the_kept_logits_unchanged[llava-1.5]",
    ),
    Fault(
        "the last token of an image is not counted as one",
        "collators/base.py",
        "positions[-1].item() + 1",
        "positions[-1].item()",
        f"{COLLATORS}test_no_budget_gives_a_broken_sample[llava-1.5]",
    ),
    Fault(
        "tokens of videos are not counted",
        "collators/budget.py",
        '("num_image_tokens", "num_video_tokens")',
        '("num_image_tokens",)',
        f"{COLLATORS}test_media_are_counted_as_they_come[qwen2.5-vl]",
    ),
    Fault(
        "the times of frames are not counted",
        "collators/budget.py",
        "(number + 1) // 2 for number",
        "number // 4 for number",
        "tests/collators/test_lengths.py::test_the_times_of_long_videos_are_within_the_bound[99-qwen3-vl-moe]",
    ),
    Fault(
        "placeholders are counted beside their images",
        "collators/budget.py",
        "sum(islice(lengths, len(of_row))) - number",
        "sum(islice(lengths, len(of_row)))",
        "tests/collators/test_lengths.py::test_texts_and_images_are_counted_to_the_token[llava-1.5]",
    ),
    Fault(
        "counts outlive a change of the tokenizer",
        "collators/budget.py",
        "*self._files(), ",
        "",
        "tests/collators/test_lengths.py::test_it_is_counted_again_when_what_it_depends_on_changes[tokenizer]",
    ),
    Fault(
        "a row of many short messages is taken for short",
        "collators/budget.py",
        "64 * dataset.num_parts()",
        "0 * dataset.num_parts()",
        "tests/collators/test_lengths.py::test_a_row_of_many_short_messages_is_looked_at",
    ),
    # ---- media ----
    Fault(
        "the last frame is never taken",
        "reading/videos.py",
        "indices = np.linspace(first, end - 1, number)",
        "indices = np.linspace(first, end - 2, number)",
        "tests/reading/test_videos.py::test_a_short_clip_repeats_frames",
    ),
    Fault(
        "the first of a list of images is never taken",
        "reading/videos.py",
        "np.linspace(0, len(references) - 1",
        "np.linspace(1, len(references) - 1",
        "tests/reading/test_videos.py::test_a_list_of_images_is_a_video",
    ),
    Fault(
        "frames of a variable rate are taken by number",
        "reading/videos.py",
        "shown = [scan.shown(i) for i in indices]",
        "shown = indices",
        "tests/reading/test_videos.py::test_with_a_variable_rate_frames_are_those_that_a_player_shows",
    ),
    Fault(
        "pixels that are not square stay as they are",
        "reading/videos.py",
        "(stream.sample_aspect_ratio or 1)",
        "1",
        "tests/reading/test_videos.py::test_pixels_that_are_not_square_are_stretched",
    ),
    Fault(
        "a patch of two frames is made of one",
        "collators/base.py",
        "if there >= least:",
        "if True:",
        "tests/collators/test_lengths.py::test_one_frame_is_two_alike_where_a_patch_is_made_of_two",
    ),
    Fault(
        "fps takes a frame too many",
        "reading/videos.py",
        "step = max(1.0, fps / options.fps)",
        "step = max(1.0, fps / (options.fps + 1))",
        "tests/reading/test_videos.py::test_frames_per_second",
    ),
    Fault(
        "an image lies on its side",
        "reading/images.py",
        "ImageOps.exif_transpose(image, in_place=True)",
        "pass",
        "tests/reading/test_media.py::test_exif_turns_the_image_and_its_size",
    ),
    Fault(
        "images come in the reverse order",
        "reading/rows.py",
        "left = iter(references)",
        "left = reversed(references)",
        "tests/reading/test_dataset.py::test_every_form_becomes_the_same_canonical_messages",
    ),
    # ---- stop and resume ----
    Fault(
        "a resumed run may have another lora_alpha",
        "training/resume.py",
        "data_cache dataloader_num_workers",
        "data_cache lora_alpha dataloader_num_workers",
        "tests/training/test_resume.py::test_each_flag_that_decides_the_weights_must_stay",
    ),
    Fault(
        "a file that is cut short is whole",
        "training/resume.py",
        " or os.path.getsize(path) != size",
        "",
        "tests/training/test_resume.py::test_what_cannot_be_resumed_is_refused_or_passed_over",
    ),
    Fault(
        "other rows are the same rows",
        "training/resume.py",
        '"texts": dataset.digest',
        '"texts": ""',
        "tests/training/test_resume.py::test_what_cannot_be_resumed_is_refused_or_passed_over",
    ),
    Fault(
        "a field of one's own does not count",
        "reading/row_index.py",
        "for name, value in row.items() if name not in self.columns}",
        "for name, value in ()}",
        "tests/training/test_resume.py::test_what_cannot_be_resumed_is_refused_or_passed_over",
    ),
    Fault(
        "dropout depends on what was drawn before",
        "training/resume.py",
        "torch.manual_seed(zlib",
        "(zlib",
        "tests/evaluation/test_evaluation.py::test_evaluations_change_nothing_and_their_answers_are_those_of_predict",
    ),
    Fault(
        "losses since the last line of the log are lost",
        "training/resume.py",
        'record["losses"][self.args.process_index]',
        "0.0",
        "tests/training/test_resume.py::test_a_resumed_run_equals_the_unbroken_one[lora]",
    ),
    Fault(
        "wrong bytes between two blocks are resumed",
        "training/checkpoint_files.py",
        "if name := archive.testzip():",
        "if name := None:",
        f"{FILES}test_wrong_bytes_are_found",
    ),
    Fault(
        "a number that is not finite is resumed",
        "training/checkpoint_files.py",
        "if not file.get_tensor(name).float().sum().isfinite():",
        "if False:",
        f"{FILES}test_wrong_bytes_are_found",
    ),
    Fault(
        "a changed checkpoint.json is resumed",
        "training/resume.py",
        'if record.pop("checksum") != zlib.crc32(strict_json(record).encode()):',
        'if not record.pop("checksum"):',
        f"{FILES}test_wrong_bytes_are_found",
    ),
    Fault(
        "what a pickle names may run",
        "training/checkpoint_files.py",
        "if unknown and not is_trusted:",
        "if False:",
        f"{FILES}test_code_in_a_checkpoint_is_refused_and_does_not_run",
    ),
    Fault(
        "an older checkpoint takes the place of one with code",
        "training/resume.py",
        "        except UntrustedCheckpoint:\n            raise\n",
        "",
        f"{FILES}test_code_in_a_checkpoint_is_refused_and_does_not_run",
    ),
    Fault(
        "rotation goes by the clock",
        "training/resume.py",
        "checkpoints = whole_checkpoints(self.args.output_dir)",
        "checkpoints = sorted(whole_checkpoints(self.args.output_dir), key=os.path.getmtime)",
        f"{FILES}test_rotation_goes_by_step_whatever_the_clock_says",
    ),
    Fault(
        "a refused start leaves its folder",
        "training/run_folder.py",
        "os.rmdir(path)",
        "pass",
        "tests/training/test_run_folder.py::test_a_failed_start_is_reused",
    ),
    Fault(
        "an error begins on the line of the progress bar",
        "training/trainer.py",
        "self.progress.bar.close()",
        "pass",
        "tests/training/test_run_folder.py::test_a_folder_that_is_removed_in_mid_run_is_named[flags0]",
    ),
    Fault(
        "a folder that was removed is made again",
        "training/resume.py",
        "check_not_removed(output_dir)  #",
        "pass  #",
        "tests/training/test_run_folder.py::test_a_folder_that_is_removed_in_mid_run_is_named[flags1]",
    ),
    Fault(
        "guesses of a password are taken at once",
        "webui.py",
        "await asyncio.sleep(1)",
        "pass",
        "tests/web/test_webui.py::test_wrong_passwords_wait_in_a_line",
    ),
    Fault(
        "another site may send files",
        "webui.py",
        "return origin is not None and",
        "return False and",
        "tests/web/test_webui.py::test_what_other_sites_send_is_refused",
    ),
    Fault(
        "asking for a run makes its folder",
        "web/runs.py",
        "    known_run(folder)  #",
        "    pass  #",
        "tests/web/test_webui.py::test_asking_for_a_run_that_does_not_exist_makes_nothing",
    ),
    Fault(
        "an untouched form is called wrong",
        "web/tune_page.py",
        "        if missing and re.search",
        "        if not missing and re.search",
        "tests/web/test_webui.py::test_the_form_says_what_is_missing_and_what_is_wrong_where_it_is",
    ),
    Fault(
        "the page is ready before the data were read",
        "web/tune_page.py",
        "        if seen == wanted",
        "        if seen != wanted",
        "tests/web/test_webui.py::test_ready_means_that_the_data_were_read",
    ),
    Fault(
        "the page tells which models are outside its root",
        "web/form.py",
        'runs.check_folder(typed, os.getcwd(), "the model")',
        "typed",
        "tests/web/test_webui.py::test_any_model_that_is_typed_is_taken",
    ),
    Fault(
        "an unfinished flag loses the whole form",
        "web/form.py",
        '        words_of(values | {FURTHER: ""})',
        "        words_of(values)",
        "tests/web/test_webui.py::test_the_form_is_kept_for_every_browser_and_after_a_restart",
    ),
    Fault(
        "a page that is still loading is kept as the form",
        "web/tune_page.py",
        "    if not restored:",
        "    if restored is None:",
        "tests/web/test_webui.py::test_the_form_is_kept_for_every_browser_and_after_a_restart",
    ),
    Fault(
        "a run is written over without a question",
        "web/tune_page.py",
        "if results(folder) and asked != folder:",
        "if results(folder) and asked == folder:",
        "tests/web/test_webui.py::test_starting_over_a_run_asks",
    ),
    Fault(
        "the settings of a run resume it",
        "web/form.py",
        'OF_A_START = ("resume_from_checkpoint", "overwrite_output_dir")',
        'OF_A_START = ("overwrite_output_dir",)',
        "tests/web/test_webui.py::test_the_settings_of_a_run_again",
    ),
    Fault(
        "a folder that is typed as a model is dropped",
        "web/form.py",
        "        if os.path.isabs(typed) or os.path.isdir(typed):",
        "        if os.path.isdir(typed) and not typed:",
        "tests/web/test_webui.py::test_any_model_that_is_typed_is_taken",
    ),
    Fault(
        "a menu of columns is left out of the command",
        "web/form.py",
        "for menu, column in MENUS.items() if values[menu]]",
        'for menu, column in MENUS.items() if values[menu] and column != "image"]',
        "tests/web/test_webui.py::test_a_command_line_becomes_a_form_and_the_same_line_again",
    ),
    Fault(
        "right answers come first",
        "reports/run_report.py",
        'key=lambda answer: answer.get("right", answer["exact_match"]))',
        'key=lambda answer: not answer.get("right", answer["exact_match"]))',
        "tests/reports/test_trackers.py::test_answers_go_to_the_trackers_that_are_named",
    ),
    Fault(
        "every process sends the answers to the trackers",
        "reports/trackers.py",
        "if args.eval_generate and senders and state.is_world_process_zero:",
        "if args.eval_generate and senders:",
        "tests/reports/test_trackers.py::test_answers_go_to_the_trackers_that_are_named",
    ),
    Fault(
        "a comparison of runs shows equal settings too",
        "reports/run_comparison.py",
        "[r for r in rows if r[1] != r[2]]",
        "rows",
        "tests/reports/test_run_comparison.py::test_what_differs_is_said",
    ),
    Fault(
        "answers that both runs got wrong differ",
        "reports/run_comparison.py",
        'a["exact_match"] != b["exact_match"]',
        'a["prediction"] != b["prediction"]',
        "tests/reports/test_run_comparison.py::test_what_differs_is_said",
    ),
    Fault(
        "every loss has a log scale",
        "reports/run_report.py",
        'name.endswith("loss") and 0 < 10 * min(values) < max(values)',
        'name.endswith("loss")',
        "tests/reports/test_run_comparison.py::test_a_loss_over_decades_has_a_log_scale",
    ),
    Fault(
        "a run that cannot be read is left out",
        "web/runs_page.py",
        '            found[name] = ["unreadable", str(error)]',
        "            continue",
        "tests/web/test_webui.py::test_a_run_that_cannot_be_read_is_listed_with_the_reason",
    ),
    Fault(
        "the base answers with its adapter",
        "web/chat_page.py",
        "base=number == 1)",
        "base=False)",
        "tests/web/test_webui.py::test_tuned_and_base_answer_side_by_side_each_in_its_own_conversation",
    ),
    Fault(
        "the page speaks English in any language",
        "web/strings.py",
        "[key][language].format",
        '[key]["en"].format',
        "tests/web/test_webui.py::test_the_page_in_chinese",
    ),
    Fault(
        "a run gets the password of the page",
        "webui.py",
        "    os.environ.pop(PASSWORD, None)",
        "    os.environ.get(PASSWORD, None)",
        "tests/web/test_webui.py::test_runs_and_previews_are_told_of_the_root_and_not_of_the_password",
    ),
    Fault(
        "HTML in a frame is not escaped",
        "web/html.py",
        "frame.format(title, str(html))",
        "frame.format(title, html)",
        "tests/web/test_webui.py::test_held_out_answers_of_any_step_with_their_pictures_the_wrong_ones_first",
    ),
    # ---- merging, and what lies in an output folder ----
    Fault(
        "an adapter is merged at twice its scale",
        "merging/shard_merge.py",
        "        layer.merge()\n",
        '        layer.set_scale("default", 2)\n        layer.merge()\n',
        f"{MERGE}test_shards_keys_and_dtypes_are_the_bases_and_each_sum_is_rounded_once",
    ),
    Fault(
        "a sum is rounded twice",
        "merging/shard_merge.py",
        "return weight.data.float()",
        "return weight.data.bfloat16().float()",
        f"{MERGE}test_shards_keys_and_dtypes_are_the_bases_and_each_sum_is_rounded_once",
    ),
    Fault(
        "the self-check of the files is 100 times looser",
        "merging/shard_merge.py",
        "want.abs() * (eps / 2)",
        "want.abs() * (eps * 50)",
        f"{MERGE}test_the_self_check_allows_one_rounding_and_no_more",
    ),
    Fault(
        "the self-check of the logits is 100 times looser",
        "merging/whole_model.py",
        "difference <= 4 * rounding",
        "difference <= 400 * rounding",
        f"{MERGE}test_the_self_check_of_the_logits_allows_rounding_and_no_more",
    ),
    Fault(
        "args.yaml does not tell the family",
        "loaders/output_folder.py",
        'model_id or saved_arguments(folder).get("model_id")',
        "model_id",
        "tests/loaders/test_output_folder.py",
    ),
    Fault(
        "tekken.json is not copied",
        "loaders/output_folder.py",
        '"tekken.json", ',
        "",
        "tests/loaders/test_output_folder.py",
    ),
    Fault(
        "the preview of a template that train.py refuses ends well",
        "preview.py",
        "    if refusal:\n",
        "    if refusal and own.check:\n",
        "tests/test_preview.py::test_a_difference_of_templates_is_shown_inline",
    ),
    Fault(
        "the check of the data counts no typed control tokens",
        "reports/data_report.py",
        'self.collator.template.holds_frame_tokens(sample["messages"])',
        "False",
        "tests/reports/test_data_report.py::test_typed_control_tokens_are_counted",
    ),
    Fault(
        "a flag that does not exist is passed over",
        "command_line.py",
        "        if written:",
        "        if not known:",
        "tests/test_predict.py::test_wrong_combinations_are_refused[flags2---pompt is not a flag: .*--prompt]",
    ),
    Fault(
        "a server is not asked for the <s> that a template leaves to the tokenizer",
        "collators/template.py",
        "if self._tokenizers_bos and not self.writes_bos(trained[0])",
        "if self.writes_bos(trained[0])",
        "tests/test_check_serving.py::test_what_a_request_adds_for_the_prompt_that_is_trained[llava-1.5]",
    ),
    Fault(
        "weights stay readable by their owner alone",
        "loaders/output_folder.py",
        "        shutil.copymode(config, path)\n",
        "        pass\n",
        "tests/test_check_serving.py::test_an_adapter_and_its_merge",
    ),
    Fault(
        "a folder of the Hub's cache is named by its path",
        "loaders/output_folder.py",
        'return cached[1].replace("--", "/", 1) if cached else os.path.abspath(model_path)',
        "return os.path.abspath(model_path)",
        "tests/test_check_serving.py::test_how_a_base_is_named",
    ),
    Fault(
        "LoRA on the vision encoder is served without the flag that applies it",
        "merging/servers.py",
        '            command.append("--enable-tower-connector-lora")\n',
        "            pass\n",
        "tests/test_check_serving.py::test_the_command_for_an_adapter",
    ),
    Fault(
        "the sizes of pictures are not compared with the server's",
        "merging/ask_server.py",
        "if [t for t in theirs if t not in pictures] ==",
        "if [t for t in theirs if t in pictures] ==",
        "tests/merging/test_ask_server.py::test_what_differs_is_named",
    ),
    Fault(
        "a server is asked with tools and no choice of them",
        "merging/ask_server.py",
        '({"tool_choice": "none"} if self.is_vllm else {})',
        "{}",
        "tests/merging/test_ask_server.py::test_a_call_of_a_tool_comes_as_the_text_that_was_learned",
    ),
    Fault(
        "a server that samples by default passes",
        "merging/ask_server.py",
        "if not cause and any(",
        "if cause and any(",
        "tests/merging/test_ask_server.py::test_a_server_that_samples_is_told_so_last",
    ),
    Fault(
        "a server is said to sample where its prompt differs",
        "merging/ask_server.py",
        "if not cause and any(",
        "if any(",
        "tests/merging/test_ask_server.py::test_a_server_that_samples_is_told_so_last",
    ),
    Fault(
        "a server is asked for a model that it lists instead of the one that is given",
        "merging/ask_server.py",
        "        if not model:  #",
        "        if True:  #",
        "tests/merging/test_ask_server.py::test_which_model_is_asked",
    ),
    Fault(
        "a question that a server refuses is not named",
        "merging/ask_server.py",
        'f"{source}{url} answered',
        'f"{url} answered',
        "tests/merging/test_ask_server.py::test_a_question_that_the_server_refuses_is_named",
    ),
    Fault(
        "vLLM is started to sample",
        "merging/servers.py",
        "command += GREEDY + ",
        "command += ",
        "tests/test_check_serving.py::test_a_sharded_folder_is_whole",
    ),
    Fault(
        "log-probabilities of the server's references are not compared",
        "merging/ask_server.py",
        "(noise or 0) > ROUNDING",
        "(noise or 0) < 0",
        "tests/merging/test_ask_server.py::test_the_same_answers_from_other_weights",
    ),
    Fault(
        "a server that takes frames is asked about no video",
        "merging/ask_server.py",
        "most = int(any(videos) and server.is_vllm and",
        "most = int(any(videos) and not server.is_vllm and",
        "tests/merging/test_ask_server.py::test_videos_go_as_their_frames_to_a_vllm_that_takes_them",
    ),
    Fault(
        "the weights are blamed where only videos differ",
        "merging/ask_server.py",
        "if all(outcome.has_video for outcome in faulty)",
        "if not any(outcome.has_video for outcome in faulty)",
        "tests/merging/test_ask_server.py::test_videos_go_as_their_frames_to_a_vllm_that_takes_them",
    ),
    Fault(
        "the token of the Hub is saved beside the weights, and uploaded with them",
        "arguments.py",
        'vars(self) | {"hub_token": None}',
        "vars(self)",
        "tests/test_arguments.py::test_the_hubs_token_is_not_pickled_beside_the_weights",
    ),
    Fault(
        "an adapter that names a folder is pushed to the Hub",
        "training/checks.py",
        "(lora.use_lora or lora.use_vision_lora) and os.path.isabs(base)",
        "lora.use_lora and not os.path.isabs(base)",
        "tests/test_arguments.py::test_an_adapter_for_the_hub_names_no_folder_of_this_machine",
    ),
    Fault(
        "a tensor in another shard is served",
        "merging/serving.py",
        "if name not in stored[shard]:",
        "if False:",
        "tests/test_check_serving.py::test_each_damage_is_found[a swapped shard]",
    ),
    Fault(
        "answers that never end are served",
        "merging/serving.py",
        "if config.eos_token_id is None:",
        "if False:",
        "tests/test_check_serving.py::test_each_damage_is_found[endless]",
    ),
    Fault(
        "a template without images is served",
        "merging/serving.py",
        "if processor.image_token not in text:",
        "if False:",
        "tests/test_check_serving.py::test_each_damage_is_found[blind template]",
    ),
    # ---- messages ----
    Fault(
        "another organisation's copy is not known",
        "supported_models.py",
        "elif parents:",
        "elif False:",
        "tests/test_supported_models.py::test_an_unknown_id_names_the_nearest",
    ),
    Fault(
        "a family is not known as a model id",
        "supported_models.py",
        "if family := next(iter(nearest(name, families(), cutoff=1)), None):",
        "if family := None:",
        "tests/test_supported_models.py::test_an_unknown_id_names_the_nearest",
    ),
    Fault(
        "only the first wrong flag is named",
        "command_line.py",
        "[*faults, more]",
        "[*faults[:1], more]",
        "tests/test_arguments.py::test_all_keys_of_another_tool_are_named_at_once",
    ),
    Fault(
        "a flag that is refused is suggested",
        "command_line.py",
        ' if name.removeprefix("--") not in self.refused]',
        "]",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure",
    ),
    Fault(
        "the value of another tool's key is ignored",
        "command_line.py",
        'if key in (value, "") and',
        "if",
        "tests/test_arguments.py::test_all_keys_of_another_tool_are_named_at_once",
    ),
    Fault(
        "a folder is a model id",
        "training/checks.py",
        "if os.path.isdir(model.model_id):",
        "if False:",
        "tests/test_arguments.py::test_a_folder_is_no_model_id_and_an_adapter_no_model",
    ),
    Fault(
        "bf16 auto is no value",
        "arguments.py",
        '("bf16", "auto")',
        '("bf16", "none")',
        "tests/test_arguments.py::test_bf16_auto_is_what_the_machine_can",
    ),
    Fault(
        "each process of torchrun says the same",
        "entry.py",
        ', "x").close()',
        ', "w").close()',
        "tests/test_arguments.py::test_under_torchrun_an_error_is_handed_over_once",
    ),
    Fault(
        "an error page is kept",
        "reading/fetch.py",
        "if what := what_it_is(part):",
        "if what := None:",
        "tests/reading/test_fetch.py::test_a_faulty_answer_is_named_and_nothing_is_kept",
    ),
    Fault(
        "a pointer of Git LFS is not known",
        "reading/references.py",
        'rb"version https://git-lfs"',
        'rb"version of git-lfs"',
        "tests/reading/test_media.py::test_what_is_taken_for_a_medium_is_said",
    ),
    Fault(
        "an empty text names the folder",
        "reading/rows.py",
        'if name is None or row[name] == "":',
        "if name is None:",
        "tests/reading/test_dataset.py::test_an_empty_text_is_an_absent_medium",
    ),
    Fault(
        "the same fault is many lines",
        "reading/dataset.py",
        r"""alike[re.sub(r"'[^']*'|\S*[\d/\\]\S*", "", fault.partition(": ")[2])].append(fault)""",
        "alike[fault].append(fault)",
        "tests/reading/test_dataset.py::test_faults_that_are_alike_are_one_line_with_a_count",
    ),
    Fault(
        "samples left out at the start are not counted",
        "training/trainer.py",
        "(dataset.dataset.num_bad + found for",
        "(found for",
        "tests/training/test_faults.py::test_samples_left_out_at_the_start_count_too",
    ),
    Fault(
        "names of data are emoji",
        "reports/terminal.py",
        "emoji=False, ",
        "",
        "tests/reports/test_data_report.py::test_the_terminal_prints_text_as_it_is",
    ),
    Fault(
        "what a pattern matches without effect is not named",
        "training/adapters.py",
        "if reasons[name] not in (None, NOT_LINEAR)}",
        "if not name}",
        "tests/training/test_lora.py::test_a_pattern_names_what_it_matches_without_an_adapter",
    ),
    Fault(
        "a whole checkpoint is not known in a merge",
        "merge_lora_weights.py",
        'if glob.glob(os.path.join(path, "model*.safetensors")):',
        "if False:",
        "tests/test_merge.py::test_merge_refuses_what_it_cannot_do",
    ),
    # ---- what is measured and reported ----
    Fault(
        "replies with train: false are asked",
        "evaluation/answers.py",
        ' and messages[i].get("train", True)',
        "",
        "tests/evaluation/test_evaluation.py::test_replies_that_are_not_trained_are_not_asked",
    ),
    Fault(
        "ANLS counts what is half wrong",
        "evaluation/metrics.py",
        "if distance < 0.5",
        "if distance <= 0.5",
        "tests/evaluation/test_metrics.py",
    ),
    Fault(
        "the probe takes a part of a word for the answer",
        "training/probe.py",
        "(?![a-z0-9])",
        "",
        "tests/training/test_probe.py::test_an_answer_that_names_a_reference_is_right",
    ),
    Fault(
        "the probe reads its rows by the flags of the training data",
        "train.py",
        "DataArguments(data_path=[path], data_cache=arguments.data.data_cache)",
        "arguments.data",
        "tests/training/test_probe.py::test_a_run_tells_what_it_forgot",
    ),
    Fault(
        "the loss of an evaluation path is of those before it too",
        "training/trainer.py",
        "sums[:, rows.start : rows.stop]",
        "sums[:, : rows.stop]",
        "tests/training/test_loss.py::test_each_evaluation_path_has_a_loss_of_its_own",
    ),
    Fault(
        "two evaluation files of one name are measured as one",
        "reading/sources.py",
        "== len(paths) + 2:",
        "> 0:",
        "tests/reading/test_mapping.py::test_paths_have_short_names_of_their_own",
    ),
    Fault(
        "of several answers the first is trained",
        "reading/rows.py",
        "Counter(references).most_common(1)[0][0]",
        "references[0]",
        "tests/reading/test_mapping.py::test_of_several_answers_the_most_frequent_is_the_reply_and_all_are_references",
    ),
    Fault(
        "a person agrees with their own answer",
        "evaluation/metrics.py",
        " - (other == answer)",
        "",
        "tests/evaluation/test_metrics.py::test_the_accuracy_of_vqa_by_hand",
    ),
    Fault(
        "more wrong characters are better",
        "evaluation/metrics.py",
        "str.strip), higher_is_better=False",
        "str.strip), higher_is_better=True",
        "tests/evaluation/test_metrics.py::test_the_direction_of_a_metric_is_known_by_its_name",
    ),
    Fault(
        "the best checkpoint has the most wrong characters",
        "arguments.py",
        "self.greater_is_better = METRICS[kind].higher_is_better",
        "self.greater_is_better = True",
        "tests/evaluation/test_evaluation.py::test_the_direction_of_a_metric_and_the_names_of_files_are_known_before_anything_is_loaded",
    ),
    Fault(
        "an error rate is the mean of those of the answers",
        "evaluation/metrics.py",
        "edits, length = edits + nearest[0], length + nearest[1]",
        "edits, length = edits + nearest[0] / nearest[1], length + 1",
        "tests/evaluation/test_metrics.py::test_rates_by_hand",
    ),
    Fault(
        "the verdict on a file counts the answers of all",
        "evaluation/verdict.py",
        'if f"eval_{metric}".startswith(head)), key=len',
        'if head == "eval_"), key=len',
        "tests/evaluation/test_verdict.py::test_the_chosen_metric_decides",
    ),
    Fault(
        "tokens that are cut count as trained",
        "reports/data_report.py",
        ' - rows["cut"]',
        "",
        "tests/reports/test_data_report.py::test_a_row_beyond_the_budget_is_cut_or_an_error_or_dropped",
    ),
    Fault(
        "the last accumulated batches make no step",
        "reports/data_report.py",
        "math.ceil(batches / training.gradient_accumulation_steps)",
        "batches // training.gradient_accumulation_steps",
        "tests/reports/test_data_report.py::test_steps_of_an_epoch",
    ),
    Fault(
        "a row that repeats another is not counted",
        "reports/data_report.py",
        "first[inverse] != np.arange(len(opened))",
        "first[inverse] > np.arange(len(opened))",
        "tests/reports/test_data_report.py::test_duplicates_and_what_stands_in_both_data_sets",
    ),
    # ---- verdicts, defaults, flags ----
    Fault(
        "a gain within two standard errors is learned",
        "evaluation/verdict.py",
        "and gain > error",
        "and gain > 0",
        "tests/evaluation/test_verdict.py::test_what_a_run_learned",
    ),
    Fault(
        "the blind guess is not asked",
        "evaluation/verdict.py",
        "max(values[0], blind)",
        "values[0]",
        "tests/evaluation/test_verdict.py::test_what_a_run_learned",
    ),
    Fault(
        "a lower metric is always worse",
        "evaluation/verdict.py",
        "higher_is_better is not False",
        "True",
        "tests/evaluation/test_verdict.py::test_the_chosen_metric_decides",
    ),
    Fault(
        "a risen evaluation loss is no overfitting",
        "evaluation/verdict.py",
        "RISEN = 1.02",
        "RISEN = 9",
        "tests/evaluation/test_verdict.py::test_what_a_run_learned",
    ),
    Fault(
        "a run that is not finite only failed",
        "evaluation/verdict.py",
        '"diverged" if isinstance(ended, Diverged) else "failed"',
        '"failed"',
        "tests/evaluation/test_verdict.py::test_states_and_their_colours",
    ),
    Fault(
        "a stopped run failed",
        "evaluation/verdict.py",
        "if number in signals:",
        "if False:",
        "tests/evaluation/test_verdict.py::test_states_and_their_colours",
    ),
    Fault(
        "a blind guess is the same for all questions",
        "evaluation/answers.py",
        'guesses.get(answer["question"], other)',
        "other",
        "tests/evaluation/test_verdict.py::test_a_blind_guess_is_the_most_frequent_reply",
    ),
    Fault(
        "a resumed run forgets its earlier time",
        "training/progress.py",
        "return self.earlier + (",
        "return (",
        "tests/training/test_progress.py::test_the_log_counts_the_time_of_all_parts",
    ),
    Fault(
        "the time left counts the first step",
        "training/progress.py",
        "self.begin, self.first_step = time.monotonic(), state.global_step",
        "self.begin, self.first_step = 0, 0",
        "tests/training/test_progress.py::test_the_start_and_the_time_left",
    ),
    Fault(
        "infinity is written as JSON",
        "reading/strict_json.py",
        "parse_constant=lambda _: None",
        "parse_constant=float",
        "tests/reading/test_strict_json.py::test_what_is_not_finite_becomes_null",
    ),
    Fault(
        "an image size without a limit",
        "reading/options.py",
        "if width * height > self.image_pixel_limit:",
        "if False:",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure[--image_size 99999]",
    ),
    Fault(
        "null is a value",
        "arguments.py",
        'value == "null" or',
        "False or",
        "tests/test_arguments.py::test_a_later_flag_switches_off_what_a_yaml_file_says",
    ),
    Fault(
        "flags of media that no row holds are not named",
        "train.py",
        "if kind not in found else ()",
        "if not found else ()",
        "tests/test_arguments.py::test_flags_of_media_that_no_row_holds_are_named",
    ),
    Fault(
        "flags of evaluation need no data",
        "training/checks.py",
        "load_best_model_at_end eval_delay",
        "load_best_model_at_end",
        "tests/test_arguments.py::test_a_wrong_flag_is_refused_with_its_name_and_the_cure[--eval_delay 2]",
    ),
]


def run_tests(folder: Path, *tests: str) -> tuple[int, str]:
    """Run tests in a copy of the repository; returns pytest's exit code and what it printed."""
    with tempfile.NamedTemporaryFile("r", dir=folder.parent) as printed:
        if not (child := os.fork()):  # the libraries are imported already, which takes longer than most tests
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(printed.name, os.O_WRONLY | os.O_APPEND), stream.fileno())
            os.chdir(folder)
            sys.path[0], tempfile.tempdir = str(folder), str(folder.parent)
            sys.dont_write_bytecode = True  # of a fault
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # which tests/conftest.py undoes
            os._exit(pytest.main(["-x", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider", *tests]))
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), printed.read()


def outcome(fault: Fault, folder: Path) -> str:
    path = folder / fault.file
    held = path.read_text(encoding="utf-8")
    path.write_text(fault.plant(held), encoding="utf-8")
    code, printed = run_tests(folder, fault.test)
    path.write_text(held, encoding="utf-8")
    if code not in (0, 1):  # all passed, some failed; else the test could not be run
        raise RuntimeError(f"{fault.name}: {fault.test} cannot be run:\n{printed[-3000:]}")
    return "died" if code else "survived"


def read_table() -> dict[str, list[str]]:
    """Name of a fault -> its row: name, file, test, what became of it, seconds, date."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.is_file() else []
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in lines if line.startswith("|")][2:]
    return {row[0]: [cell.strip("`") for cell in row] for row in rows}


def write_table(rows: dict[str, list[str]]) -> None:
    lines = ["# Planted faults", "", "By `python tests/mutants.py --write`, before each release.", ""]
    lines += ["| fault | file | test | | seconds | date |", "| --- | --- | --- | --- | --- | --- |"]
    for fault in FAULTS:
        if fault.name in rows:
            name, file, test, *rest = rows[fault.name]
            lines.append(f"| {name} | `{file}` | `{test}` | {' | '.join(rest)} |")
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=[""])
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    faults = [fault for fault in FAULTS if any(word in fault.name for word in args.words)]
    survivors, rows = 0, read_table()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "checkpoints", "out")
        shutil.copytree(REPO, folder, ignore=ignored)
        code, printed = run_tests(folder, *dict.fromkeys(fault.test for fault in faults))
        if code:
            raise SystemExit(f"Without any fault, the tests fail:\n{printed[-3000:]}")
        for fault in faults:
            start = time.monotonic()
            found = outcome(fault, folder)
            survivors += found != "died"
            seconds, date = f"{time.monotonic() - start:.0f}", datetime.date.today().isoformat()
            rows[fault.name] = [fault.name, fault.file, fault.test, found, seconds, date]
            if args.write:  # after each, since all take a quarter of an hour
                write_table(rows)
            print(f"{found:<10}{seconds:>4} s  {fault.name}  ({fault.file}, {fault.test})", flush=True)
    print(f"{len(faults)} faults, {survivors} survived")
    sys.exit(bool(survivors))


if __name__ == "__main__":
    # As tests/conftest.py has it; read when these libraries are imported.
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    import peft  # noqa: F401
    from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer  # noqa: F401

    main()
