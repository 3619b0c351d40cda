"""The command-line parser of all scripts, with errors that suggest what to write instead of a wrong flag."""

import argparse
import difflib
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

# The page with tables that translate the keys of other tools into our flags.
COMING_FROM = Path(__file__).resolve().parent / "docs" / "coming_from.md"


def by_flag(words: list[str]) -> list[tuple[str, list[str]]]:
    """Return the name and the words of each flag on a command line: the flag as it is written, then its values."""
    flags = []
    for word in words:
        if word.startswith("--") or not flags:
            flags.append((word.removeprefix("--").split("=")[0].replace("-", "_"), []))
        flags[-1][1].append(word)
    return flags


class FlagParser(argparse.ArgumentParser):
    """A parser that raises a ValueError where argparse would print its usage and exit. It reports all unknown flags.

    others: options that the script leaves to another parser.
    refused: names of flags that exist but must not be suggested.
    more: the end of the error message, which says where all flags are listed.
    """

    others: Collection[str] = ()
    refused: Collection[str] = ()
    more = "`python {} --help` lists all flags."

    def __init__(self, *args, **kwargs):
        form = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **form | kwargs)

    @property
    def fields_of(self) -> dict[str, str]:
        """Map each option to the field that it sets: `--no-dataloader-pin-memory` sets `dataloader_pin_memory`."""
        return {option: action.dest for action in self._actions for option in action.option_strings}

    def given(self, words: list[str]) -> set[str]:
        """Return the fields that a command line sets."""
        written = {own[0].partition("=")[0] for _, own in by_flag(words)}
        return {name for option, name in self.fields_of.items() if option in written}

    def error(self, message: str):
        raise ValueError(f"{message[:1].upper()}{message[1:]}; see `python {self.prog} --help`.")

    def parse_known_args(self, args=None, namespace=None):
        words = sys.argv[1:] if args is None else list(args)
        known = {*self.fields_of, *self.others}
        written = {}
        for _, own in by_flag(words):
            option, _, value = own[0].partition("=")
            if option.startswith("--") and option not in known:
                written[option] = value or "".join(own[1:2])
        if written:
            names = [name for name in known if name.removeprefix("--") not in self.refused]
            raise ValueError(unknown_flags(written, names, self.more.format(self.prog)))
        return super().parse_known_args(words, namespace)


def unknown_flags(written: dict[str, str], known: list[str], more: str) -> str:
    """Return the error message about unknown flags (`written`, with their values). It may suggest flags in `known`."""
    names = {option: option.removeprefix("--").replace("-", "_") for option in written}
    tools = sorted(keys_of_tools(), key=lambda keys: -len(keys.keys() & {*names.values()}))
    faults = []
    for option, name in names.items():
        fix = instead(name, written[option], known, tools)
        faults.append(f"{option} is not a flag{': ' if fix else '.'}{fix}")
    return ("\n" if faults[1:] else " ").join([*faults, more])


def instead(name: str, value: str, known: list[str], tools: list[dict]) -> str:
    """Return a suggestion for a flag that does not exist, or an empty text."""
    value = value.lower()
    for key, here, note in next((keys[name] for keys in tools if name in keys), ()):
        if key in (value, "") and {*known}.issuperset(re.findall(r"--\w+", here)):
            is_off = not key and value in ("false", "0", "0.0")
            fix = "leave it out" if is_off or here == "nothing" else f"use {here}"
            return f"{fix}{f' ({note})' if note and not is_off else ''}."
    # Suggest `--max_steps` rather than argparse's second spelling, `--max-steps`.
    found = nearest(name, [other for other in known if "-" not in other.removeprefix("--")], cutoff=0.7)
    return f"did you mean {', '.join(found)}?" if found else ""


def keys_of_tools() -> list[dict[str, list[tuple[str, str, str]]]]:
    """Read the tables of docs/coming_from.md as one dict per tool: its key -> [(value or "", our flag, note)]."""
    found = []
    text = COMING_FROM.read_text(encoding="utf-8") if COMING_FROM.is_file() else ""
    for section in text.split("\n## "):
        found.append(defaultdict(list))
        for there, *cells in re.findall(r"(?m)^\| (`.*?) \| (.*?) \| (.*?) ?\|$", section):
            here, note = (re.sub(r"`|\[([^]]*)\]\([^)]*\)", r"\1", cell) for cell in cells)
            for key, value in re.findall(r"`([\w-]+)(?:: ([^`]+))?`", there):
                found[-1][key].append((value, here, note))
    return found


def nearest(wrong: str, names: Iterable[str], cutoff: float) -> list[str]:
    """Return the name that differs from `wrong` only in punctuation and case, or up to three similar names."""
    by_form = {only_letters(name): name for name in reversed(list(names))}  # the first name of a form wins
    form = only_letters(wrong)
    forms = [form] if form in by_form else difflib.get_close_matches(form, by_form, n=3, cutoff=cutoff)
    return [by_form[form] for form in forms]


def only_letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
