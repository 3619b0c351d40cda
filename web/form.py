"""Convert the form to and from flags of train.py, and restore the last form.

The values of a form are a dict with the names of INPUTS. As in gradio, a value is text, a bool, or a list of texts.
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
from supported_models import AUTO, MODELS, find_model, likely, media_of
from web import parts, runs
from web.runs import DECLARED, OWN_FOLDER

LAYOUT = yaml.safe_load(Path(__file__).with_name("form.yaml").read_text(encoding="utf-8"))
MODEL, DATA, NUMBERS, FOLDED = (LAYOUT[name] for name in ("model", "data", "numbers", "folded"))
STRATEGIES, ENGINES, PRESETS = (LAYOUT[name] for name in ("strategies", "engines", "presets"))
FLAGS = [*MODEL, *DATA, "output_dir", *NUMBERS, *(name for names in FOLDED.values() for name in names)]
MENUS = {f"{name} from": name for name in ("question", "answer", "image", "video")}  # of --columns
DEVICES, ENGINE, FURTHER = "devices", "engine", "further flags"
INPUTS = [*FLAGS, *MENUS, *STRATEGIES, DEVICES, ENGINE, FURTHER]
SHOWN_BY = [*LAYOUT["shown_by"], *MENUS, FURTHER]
INPUT_OF = {flag: name for name, ways in STRATEGIES.items() for way in ways.values() for flag in way}
INPUT_OF |= {name: ENGINE for flags in ENGINES.values() for name in flags} | {name: name for name in FLAGS}
OF_PRESETS = [*STRATEGIES, *dict.fromkeys(flag for flags in PRESETS.values() for flag in flags if flag in FLAGS)]
KEPT = ".finelmm_form.json"  # in the root: the last form, for all browsers and after a restart
OF_A_START = ("resume_from_checkpoint", "overwrite_output_dir")  # not part of a run's settings


def help_of(name: str) -> str:
    """Return the help text under a field. For a flag in English, it is the beginning of the flag's help."""
    if parts.language in (own := parts.TABLE["help"][name]):
        return own[parts.language]
    return re.match(r"(.{,139}\.|.*?\.)(?= |\Z)", DECLARED[name].metadata["help"].replace("%%", "%"))[0]


def default(name: str) -> object:
    """Return the value that a field has when its flag has the default of train.py."""
    flag = DECLARED[name]
    if list[str] in kinds_of(name):
        return []
    value = "" if flag.default is None else flag.default
    return value if isinstance(value, bool) else str(value.value if isinstance(value, Enum) else value)


def kinds_of(name: str) -> tuple[type, ...]:
    """Return the types of a flag. HfArgumentParser drops the None of an optional flag (transformers 5.23)."""
    declared = DECLARED[name].type
    return (declared,) if get_origin(declared) is list else get_args(declared) or (declared,)


def words_of_form(values: dict) -> list[str]:
    """Return the words of train.py's command line. Raises a ValueError if "further flags" contains other text."""
    flags = {name: values[name] for name in FLAGS}
    mapped = [f"{column}={values[menu]}" for menu, column in MENUS.items() if values[menu]]
    flags["columns"] = [*mapped, *values["columns"]]
    for name, ways in STRATEGIES.items():
        flags |= {flag: flag in ways[values[name]] for way in ways.values() for flag in way}
    away = "" if os.path.samefile(".", OWN_FOLDER) else OWN_FOLDER
    flags |= {flag: its if its is True else os.path.join(away, its) for flag, its in ENGINES[values[ENGINE]].items()}
    return runs.words_of(flags, values[FURTHER])


def values_of(words: list[str]) -> dict:
    """Return the values of the form for a command line. Flags without a field are put into "further flags"."""
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
    return {name: values[name] for name in INPUTS}


def is_on(words: list[str]) -> bool:
    return not words or string_to_bool(words[0])


def preset(name: str = next(iter(PRESETS))) -> dict:
    return values_of(runs.words_of(PRESETS[name]))


def preset_of(values: dict) -> str | None:
    """Return the name of the preset that the values of the form match, or None."""
    return next((name for name in PRESETS if all(preset(name)[key] == values[key] for key in OF_PRESETS)), None)


def kept(root: str) -> dict:
    """Return the last form, or the first preset if there is none."""
    try:
        held = json.loads(Path(runs.check_inside(KEPT, root, "the form")).read_text(encoding="utf-8"))
        values = preset()
        values |= {name: value for name, value in held.items() if type(value) is type(values.get(name))}
        words_of_form(values | {FURTHER: ""})  # "further flags" may be half typed
        return values
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # no file, or one of another version
        return preset()


def choices_of_models(search: str) -> list[tuple[str, str]]:
    """Return (label, id) of the listed models whose label (id, media, Hub path) contains each word of the search."""
    labels = {f"{id} ({media_of(model.family)}; {model.hub_path})": id for id, model in MODELS.items()}
    return [(label, id) for label, id in labels.items() if all(w in label.lower() for w in search.lower().split())]


def model_of(typed: str) -> tuple[str, str]:
    """Return (model id, local path) for an id, a Hub path or a folder in the root, whose config gives the family."""
    try:
        find_model(typed)
        return typed, ""
    except ValueError:
        if os.path.isabs(typed) or os.path.isdir(typed):
            family = family_of(runs.check_folder_inside(typed, os.getcwd(), "the model"))
            return next((id for id, model in MODELS.items() if model.family == family), AUTO), typed
        return ((likely(os.path.basename(typed)) or [AUTO])[0], typed) if "/" in typed else (typed, "")
