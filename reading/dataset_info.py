"""Read LLaMA-Factory's dataset_info.json, which lists data sets and their fields, and map it to our flags."""

import json
import os

NAME = "dataset_info.json"
# Format -> the name of each field in dataset_info.json, its default name in the data, and the name that we use.
FIELDS_OF_FORMAT = {
    "alpaca": [
        *(("prompt", "instruction", "instruction"), ("query", "input", "input"), ("response", "output", "output")),
        ("history", None, "history"),
    ],
    "sharegpt": [("messages", "conversations", "conversations")],
}
FIELDS_OF_ALL = [("system", None, "system"), ("images", None, "images"), ("videos", None, "videos")]
FIELDS_OF_ALL += [("tools", None, "tools")]


def read_entry(file: str, name: str | None) -> tuple[str, dict[str, object]]:
    """Return the path of the data set `name`, and other fields for its `sources.Source`."""
    try:
        with open(file, encoding="utf-8") as stream:
            entries = json.load(stream)
        entry = entries.get(name)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file} is not a valid dataset_info.json of LLaMA-Factory: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: add the name of one of its data sets, such as {file}:{next(iter(entries), 'NAME')}.")
    where = f"{file}, {name}"
    if not (place := entry.get("file_name") or entry.get("hf_hub_url")):
        raise ValueError(f"{where} needs a file_name or an hf_hub_url, but has only {', '.join(entry)}.")
    if entry.get("ranking") or entry.get("columns", {}).keys() & {"chosen", "rejected", "kto_tag"}:
        raise ValueError(f"{where} contains ranked answers, which are not supported.")
    form = entry.get("formatting", "alpaca")
    if form not in FIELDS_OF_FORMAT:
        raise ValueError(f"{where} has the formatting {form!r}, expected {' or '.join(FIELDS_OF_FORMAT)}.")
    columns, tags = entry.get("columns", {}), entry.get("tags", {})
    fields = {ours: columns.get(theirs, default) for theirs, default, ours in FIELDS_OF_FORMAT[form] + FIELDS_OF_ALL}
    roles, contents = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    keys = {"user_key": tags.get("user_tag", "human"), "assistant_key": tags.get("assistant_tag", "gpt")}
    keys |= {"system_key": tags.get("system_tag", "system"), "turn_keys": ((roles,), (contents,))}
    path = os.path.join(os.path.dirname(file), place)
    if "file_name" not in entry:
        path = f"{place}:{'/'.join(filter(None, (entry.get('subset'), entry.get('split', 'train'))))}"
    return path, {
        "bounds": (None, str(entry["num_samples"]) if entry.get("num_samples") else None),
        "columns": tuple(f"{ours}={field}" for ours, field in fields.items() if field and field != ours),
        "keys": keys if form == "sharegpt" else {},
        "folder": os.path.dirname(os.path.abspath(file)),
    }
