"""COCO instances -> a row of each picture that shows any: the names of their classes, in the order of the file.

    python example_data/convert/coco_instances.py instances_train2017.json rows.jsonl
    python train.py --data_path rows.jsonl --image_folder train2017 ...

Their boxes are left out.
"""

from common import read_json, write_rows

QUESTION = "Which objects are in the image?"


def rows(instances):
    about = read_json(instances)
    names = {category["id"]: category["name"] for category in about["categories"]}
    shown = {image["id"]: set() for image in about["images"]}
    for instance in about["annotations"]:
        shown[instance["image_id"]].add(instance["category_id"])
    for image in about["images"]:
        if classes := shown[image["id"]]:
            answer = ", ".join(name for number, name in names.items() if number in classes)
            yield {"image": image["file_name"], "question": QUESTION, "answer": answer}


write_rows(rows)
