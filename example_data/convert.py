"""Convert well-known data sets, which store images and annotations separately, to rows in one JSONL file.

    python example_data/convert.py coco_captions captions_train2017.json rows.jsonl
    python example_data/convert.py vqa_v2 --help    # which files it needs, and how to train on its rows

To change the questions, edit the constants at the top of this file.
"""

import argparse
import inspect
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

CAPTION = "Describe the image in one sentence."
OBJECTS = "Where is each object in the image?"
EXPRESSION, ITS_BOX = "Where is <ref-object>?", "<ref-object><bbox>"

# Names from your labeling configuration in Label Studio.
LABELED = "image"  # of <Image value="$image"/>
ASKED = {}  # name of <Choices> or <TextArea> -> its question; by default, the name
GIVEN = {"choices": "choices", "textarea": "text"}  # type of a result -> the key of its answers


def coco_captions(captions):
    """COCO captions: one row per caption. Train with --image_folder train2017."""
    about = read_json(captions)
    images = {image["id"]: image["file_name"] for image in about["images"]}
    for caption in about["annotations"]:
        yield {"image": images[caption["image_id"]], "question": CAPTION, "answer": caption["caption"].strip()}


def coco_instances(instances):
    """COCO instances: one row per image with objects. The answer lists the names and boxes of the objects, by class.

    Crowd boxes and boxes without area are left out. Train with --image_folder train2017.
    """
    about = read_json(instances)
    names = {category["id"]: category["name"] for category in about["categories"]}
    shown = {image["id"]: {} for image in about["images"]}  # class -> boxes
    for instance in about["annotations"]:
        if min(instance["bbox"][2:]) > 0 and not instance["iscrowd"]:
            boxes = shown[instance["image_id"]].setdefault(instance["category_id"], [])
            boxes.append(corners(instance["bbox"]))
    for image in about["images"]:
        if classes := sorted(shown[image["id"]].items()):
            answer = ", ".join("<ref-object>" + "<bbox>" * len(boxes) for _, boxes in classes)
            boxes = [box for _, found in classes for box in found]
            objects = {"ref": [names[number] for number, _ in classes], "bbox": boxes}
            yield {"image": image["file_name"], "question": OBJECTS, "answer": answer, "objects": objects}


def vqa_v2(questions, annotations):
    """VQA v2: one row per question, with ten answers. The most frequent answer is trained.

    For example: v2_OpenEnded_mscoco_train2014_questions.json v2_mscoco_train2014_annotations.json. Train with
    --image_folder train2014.
    """
    asked = read_json(questions)
    given = {found["question_id"]: found["answers"] for found in read_json(annotations)["annotations"]}
    for question in asked["questions"]:
        image = f"COCO_{asked['data_subtype']}_{question['image_id']:012d}.jpg"
        answers = [found["answer"] for found in given[question["question_id"]]]
        yield {"image": image, "question": question["question"], "answer": answers}


def refcoco(refs, instances, split):
    """RefCOCO, RefCOCO+ or RefCOCOg: one row per expression of a split. The answer is the box of the object.

    For example: 'refs(unc).p' instances.json train. Train with --image_folder train2014.
    """
    about = read_json(instances)
    images = {image["id"]: image["file_name"] for image in about["images"]}  # file names in `refs` do not exist
    boxes = {instance["id"]: corners(instance["bbox"]) for instance in about["annotations"]}
    with open(refs, "rb") as file:
        found = PlainPickle(file, encoding="latin1").load()  # a pickle of Python 2
    for ref in found:
        for sentence in ref["sentences"] if ref["split"] == split else []:
            objects = {"ref": [sentence["sent"]] * 2, "bbox": [boxes[ref["ann_id"]]]}
            yield {"image": images[ref["image_id"]], "question": EXPRESSION, "answer": ITS_BOX, "objects": objects}


def visual_genome(question_answers, image_data):
    """Visual Genome's questions: one row per question.

    Train with --image_folder visual_genome, a folder that contains VG_100K and VG_100K_2.
    """
    images = {image["image_id"]: "/".join(image["url"].split("/")[-2:]) for image in read_json(image_data)}
    for image in read_json(question_answers):
        for asked in image["qas"]:
            yield {"image": images[asked["image_id"]], "question": asked["question"], "answer": asked["answer"]}


def label_studio(tasks):
    """Label Studio's JSON export: one row per choice or text that was given for an image.

    First set the names from your labeling configuration at the top of this file. Skipped tasks are left out. Regions
    are left out too, and counted in a message. Train with --image_folder ~/.local/share/label-studio/media/upload.
    """
    left_out = Counter()
    for task in read_json(tasks):
        url = urlsplit(task["data"][LABELED])
        local = parse_qs(url.query).get("d", [url.path])[0].removeprefix("/data/upload/")
        image = url.geturl() if url.scheme else local
        for annotation in task["annotations"]:
            for result in [] if annotation.get("was_cancelled") else annotation["result"]:
                if result["type"] in GIVEN:
                    name, answers = result["from_name"], result["value"][GIVEN[result["type"]]]
                    yield {"image": image, "question": ASKED.get(name, name), "answer": ", ".join(answers)}
                else:
                    left_out[result["type"]] += 1
    for kind, number in left_out.items():
        print(f"left out {number:,} results of type {kind}")


def internvl_meta(meta):
    """The meta file of an InternVL training: all rows of the files that it lists, with absolute paths and repetitions.

    Run this in the folder where you ran InternVL's training, since the paths in the file are relative to it.
    """
    for about in read_json(meta).values():
        with open(about["annotation"], encoding="utf-8") as file:
            found = [with_media(json.loads(line), about["root"]) for line in file if line.strip()]
        repeat = about.get("repeat_time", 1)  # below 1: use only this fraction of the rows, starting with the first
        yield from found[: int(len(found) * repeat)] if repeat < 1 else found * int(repeat)


CONVERTERS = (coco_captions, coco_instances, vqa_v2, refcoco, visual_genome, label_studio, internvl_meta)


# ---- functions for several converters ----


def read_json(path: str) -> dict | list:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def corners(box: list[float]) -> list[float]:
    """Convert x, y, width and height to the corners x1, y1, x2 and y2, which `objects` of a row needs."""
    x, y, width, height = box
    return [x, y, x + width, y + height]


class PlainPickle(pickle.Unpickler):
    """Read only lists, dictionaries, text and numbers, because a pickle may contain code, which must not run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"the file contains a {module}.{name}, not only lists, texts and numbers")


def with_media(row: dict, root: str) -> dict:
    """Return a row of InternVL's format with absolute media paths."""
    for kind in {"image", "video"} & row.keys():
        paths = [row[kind]] if isinstance(row[kind], str) else row[kind] or []
        paths = [os.path.abspath(os.path.join(root, path)) for path in paths if path]
        first, *others = row["conversations"]
        if len(paths) == 1 and f"<{kind}>" not in json.dumps(row["conversations"]):  # InternVL puts the media in front
            first = first | {"value": f"<{kind}>\n{first['value']}"}
        row |= {kind: paths, "conversations": [first, *others]}
    return row


def main() -> None:
    plain = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(description=__doc__, **plain)
    commands = parser.add_subparsers(required=True)
    for rows in CONVERTERS:
        command = commands.add_parser(rows.__name__, description=inspect.getdoc(rows), **plain)
        for name in (*inspect.signature(rows).parameters, "output"):
            command.add_argument(name)
        command.set_defaults(rows=rows)
    args = vars(parser.parse_args())
    rows = args.pop("rows")
    *given, output = args.values()
    try:
        lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows(*given)]
    except (KeyError, OSError, TypeError, ValueError) as error:  # for example, two files in the wrong order
        raise SystemExit(f"{' '.join(given)}: {type(error).__name__}: {error}. See --help for the files.") from error
    if not lines:
        raise SystemExit(f"{given[0]} gives no rows; nothing was written.")
    Path(output).write_text("".join(lines), encoding="utf-8")
    print(f"wrote {output}: {len(lines):,} rows")


if __name__ == "__main__":
    main()
