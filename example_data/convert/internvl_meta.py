"""The meta file of InternVL's own training -> all rows that it names, with absolute paths and repeated as it says.

    python example_data/convert/internvl_meta.py meta.json rows.jsonl
    python train.py --data_path rows.jsonl ...

Start it where InternVL's training was started: the paths in the file begin there.
"""

import json
import os

from common import read_json, write_rows


def with_media(row, root):
    for kind in {"image", "video"} & row.keys():
        paths = [row[kind]] if isinstance(row[kind], str) else row[kind] or []
        paths = [os.path.abspath(os.path.join(root, path)) for path in paths if path]
        first, *others = row["conversations"]
        if len(paths) == 1 and f"<{kind}>" not in json.dumps(row["conversations"]):  # InternVL puts it in front
            first = first | {"value": f"<{kind}>\n{first['value']}"}
        row |= {kind: paths, "conversations": [first, *others]}
    return row


def rows(meta):
    for about in read_json(meta).values():
        with open(about["annotation"], encoding="utf-8") as file:
            found = [with_media(json.loads(line), about["root"]) for line in file if line.strip()]
        repeat = about.get("repeat_time", 1)  # below 1 it is the share of the rows, from the first
        yield from found[: int(len(found) * repeat)] if repeat < 1 else found * int(repeat)


write_rows(rows)
