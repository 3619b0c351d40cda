"""Label Studio's JSON export -> a row of each choice and text that was given for a picture.

    python example_data/convert/label_studio.py project-1.json rows.jsonl
    python train.py --data_path rows.jsonl --image_folder ~/.local/share/label-studio/media/upload ...

Write the names of your labeling configuration below. Skipped tasks are left out; so are
regions, with a line that says so.
"""

from collections import Counter
from urllib.parse import parse_qs, urlsplit

from common import read_json, write_rows

IMAGE = "image"  # of <Image value="$image"/>
QUESTIONS = {}  # name of <Choices> or <TextArea> -> what is asked; without one, the name is
ANSWERS = {"choices": "choices", "textarea": "text"}  # type of a result -> where its list of answers is


def rows(tasks):
    left_out = Counter()
    for task in read_json(tasks):
        url = urlsplit(task["data"][IMAGE])
        local = parse_qs(url.query).get("d", [url.path])[0].removeprefix("/data/upload/")
        image = url.geturl() if url.scheme else local
        for annotation in task["annotations"]:
            for result in [] if annotation.get("was_cancelled") else annotation["result"]:
                if result["type"] in ANSWERS:
                    name, answers = result["from_name"], result["value"][ANSWERS[result["type"]]]
                    yield {"image": image, "question": QUESTIONS.get(name, name), "answer": ", ".join(answers)}
                else:
                    left_out[result["type"]] += 1
    for kind, number in left_out.items():
        print(f"left out {number:,} results of type {kind}")


write_rows(rows)
