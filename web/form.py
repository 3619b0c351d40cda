"""What the form of the page stands for: a command line of train.py, a run's flags, a YAML file, what it held before.

Its values are a dict by the names of NAMES, as gradio's components have them: text, a bool, or a list of texts.
"""

import json
import os
import re
import shlex
from enum import Enum
from pathlib import Path
from typing import get_args, get_origin

import torch
import yaml
from transformers.hf_argparser import string_to_bool

from loaders import family_of
from reading.copies import cells_of_csv, cells_of_sheet, is_copied, open_columns
from reading.mapping import proposal
from reading.rows import MEDIA_KINDS, PAIRS, RowForm
from reading.sources import find_source, has_ending, scan
from supported_models import AUTO, MODELS, find_model, likely, media_of
from web import runs, strings
from web.runs import DECLARED, HERE

LAYOUT = yaml.safe_load(Path(__file__).with_name("form.yaml").read_text(encoding="utf-8"))
MODEL, DATA, NUMBERS, FOLDED = (LAYOUT[name] for name in ("model", "data", "numbers", "folded"))
STRATEGIES, ENGINES, PRESETS = (LAYOUT[name] for name in ("strategies", "engines", "presets"))
FLAGS = [*MODEL, *DATA, "output_dir", *NUMBERS, *(name for names in FOLDED.values() for name in names)]
MENUS = {f"{name} from": name for name in ("question", "answer", "image", "video")}  # of --columns
DEVICES, ENGINE, FURTHER = "devices", "engine", "further flags"
NAMES = [*FLAGS, *MENUS, *STRATEGIES, DEVICES, ENGINE, FURTHER]
SHOWN_BY = [*LAYOUT["shown_by"], *MENUS, FURTHER]
INPUT_OF = {flag: name for name, ways in STRATEGIES.items() for way in ways.values() for flag in way}
INPUT_OF |= {name: ENGINE for flags in ENGINES.values() for name in flags} | {name: name for name in FLAGS}
OF_PRESETS = [*STRATEGIES, *dict.fromkeys(flag for flags in PRESETS.values() for flag in flags if flag in FLAGS)]
KEPT = ".finelmm_form.json"  # in the root: the form, for every browser and after a restart
OF_A_START = ("resume_from_checkpoint", "overwrite_output_dir")  # not of a run's settings


def help_of(name: str) -> str:
    """What is said under a field: of a flag in English, whole sentences of its help."""
    if strings.language in (own := strings.TABLE["help"][name]):
        return own[strings.language]
    first, *others = re.split(r"(?<=\.) ", DECLARED[name].metadata["help"].replace("%%", "%"))
    for sentence in others:
        if len(first) + len(sentence) > 140:
            break
        first += f" {sentence}"
    return first


# ---- a form and its words ----


def default(name: str) -> object:
    """What a field holds where train.py's default is meant."""
    flag = DECLARED[name]
    if list[str] in kinds_of(name):
        return []
    value = "" if flag.default is None else flag.default
    return value if isinstance(value, bool) else str(value.value if isinstance(value, Enum) else value)


def kinds_of(name: str) -> tuple[type, ...]:
    """The types of a flag; of one that may be left out, HfArgumentParser takes away the None (transformers 5.23)."""
    declared = DECLARED[name].type
    return (declared,) if get_origin(declared) is list else get_args(declared) or (declared,)


def words_of(values: dict) -> list[str]:
    """The words of train.py's command line; a ValueError where the further flags are no flags."""
    flags = {name: values[name] for name in FLAGS}
    mapped = [f"{column}={values[menu]}" for menu, column in MENUS.items() if values[menu]]
    flags["columns"] = [*mapped, *values["columns"]]
    for name, ways in STRATEGIES.items():
        flags |= {flag: flag in ways[values[name]] for way in ways.values() for flag in way}
    away = "" if os.path.samefile(".", HERE) else HERE
    flags |= {flag: its if its is True else os.path.join(away, its) for flag, its in ENGINES[values[ENGINE]].items()}
    return runs.words_of(flags, values[FURTHER])


def values_of(words: list[str]) -> dict:
    """The form that stands for some words; flags without a field are its further flags."""
    given = {name: its for name, its in runs.flags_of(words) if name not in OF_A_START}
    values = {name: default(name) for name in FLAGS} | dict.fromkeys(MENUS, "")
    for name in given.keys() & {*FLAGS}:
        its = given.pop(name)
        is_switch = isinstance(values[name], bool)
        values[name] = is_on(its) if is_switch else its if values[name] == [] else " ".join(its)
    for column in values["columns"]:
        name, _, source = column.partition("=")
        values |= {f"{name} from": source} if source and name in MENUS.values() else {}
    values["columns"] = [c for c in values["columns"] if c.endswith("=") or c.partition("=")[0] not in MENUS.values()]
    for component, ways in STRATEGIES.items():
        flags = dict.fromkeys(flag for way in ways.values() for flag in way)
        on = {flag for flag in flags if is_on(given.pop(flag, ["False"]))}
        values[component] = next((way for way, its in ways.items() if on <= {*its}), [*ways][-1])
    values |= {ENGINE: next(iter(ENGINES)), DEVICES: max(1, torch.accelerator.device_count())}
    for engine, flags in ENGINES.items():
        names = {flag: os.path.basename(" ".join(given.get(flag, []))) for flag in flags}
        if flags and names == {flag: os.path.basename(str(value)) for flag, value in flags.items()}:
            values[ENGINE] = engine
            given = {name: its for name, its in given.items() if name not in flags}
    further = {n: its for n, its in given.items() if n not in DECLARED or str(DECLARED[n].default) != " ".join(its)}
    values[FURTHER] = shlex.join(word for name, its in further.items() for word in (f"--{name}", *its))
    return {name: values[name] for name in NAMES}


def is_on(words: list[str]) -> bool:
    return not words or string_to_bool(words[0])


def preset(name: str = next(iter(PRESETS))) -> dict:
    return values_of(runs.words_of(PRESETS[name]))


def preset_of(values: dict) -> str | None:
    """The preset whose numbers a form holds."""
    return next((name for name in PRESETS if all(preset(name)[key] == values[key] for key in OF_PRESETS)), None)


# ---- kept forms ----


def kept(root: str) -> dict:
    """The form as it was last, or the first one."""
    try:
        held = json.loads(Path(runs.check_inside(KEPT, root, "the form")).read_text(encoding="utf-8"))
        values = preset()
        values |= {name: value for name, value in held.items() if type(value) is type(values.get(name))}
        words_of(values | {FURTHER: ""})  # which may be unfinished
        return values
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or of another version
        return preset()


def save(values: dict, path: str, root: str) -> None:
    """Write the form as a YAML file for train.py; a ValueError where it is there already, or not in the root."""
    file = runs.check_inside(path, root, "the YAML file")
    if not path.endswith((".yaml", ".yml")) or os.path.lexists(file):
        raise ValueError(strings.text("new_yaml", path=path))
    flags = runs.flags_of(words_of(values))
    with open(file, "x", encoding="utf-8") as target:
        yaml.safe_dump({n: its[0] if len(its) == 1 else its for n, its in flags}, target, sort_keys=False)


# ---- the model ----


def choices_of_models(search: str) -> list[tuple[str, str]]:
    """(label, id) of the listed models whose label holds each word: ids, sizes, families, media, Hub paths."""
    labels = {f"{id} ({media_of(model.family)}; {model.hub_path})": id for id, model in MODELS.items()}
    return [(label, id) for label, id in labels.items() if all(w in label.lower() for w in search.lower().split())]


def model_of(typed: str) -> tuple[str, str]:
    """(model id, local path) of an id, of any Hub path, or of a folder, whose config tells its family.

    Raises:
        ValueError: a folder whose family cannot be told, or one that is not in the root.
    """
    try:
        find_model(typed)
        return typed, ""
    except ValueError:
        if os.path.isabs(typed) or os.path.isdir(typed):
            family = family_of(runs.check_folder(typed, os.getcwd(), "the model"))
            return next((id for id, model in MODELS.items() if model.family == family), AUTO), typed
        return ((likely(os.path.basename(typed)) or [AUTO])[0], typed) if "/" in typed else (typed, "")


# ---- the data ----


def first_row(path: str) -> dict:
    """The first row of a path of --data_path under the names of its file; empty where it has no names."""
    file, found = find_source(path).files[0], {}  # of a folder of pictures and a tar file
    if not is_copied(file) and not has_ending(file, ".tar"):
        found = next((row for *_, row in scan(file)), {})
    elif has_ending(file, ".parquet", ".arrow"):
        with open_columns(file) as (schema, batches_of):
            found = next(iter(batches_of(schema.names))).slice(0, 1).to_pylist()[0]
    elif has_ending(file, ".csv", ".tsv", ".xlsx"):
        cells = (cells_of_sheet if has_ending(file, ".xlsx") else cells_of_csv)(file)
        found = dict(zip([name.strip().lower() for name in next(cells, [])], next(cells, [])))
    return found if isinstance(found, dict) else {}


def columns_for(row: dict) -> list[str]:
    """The --columns that are proposed for a row which could not be read without."""
    if not row or {"messages", "conversations"} & {*row} or any({*pair} <= {*row} for pair in PAIRS.items()):
        return []
    words = shlex.split(proposal(row, RowForm(dict.fromkeys(MEDIA_KINDS, os.getcwd()))))
    found = words[words.index("--columns") + 1 :] if "--columns" in words else []
    return [word for word in found if "=" in word]
