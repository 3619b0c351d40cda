"""COCO instances -> a row of each picture that shows any: the names and boxes of its objects, by class.

    python example_data/convert/coco_instances.py instances_train2017.json rows.jsonl
    python train.py --data_path rows.jsonl --image_folder train2017 ...

Boxes of crowds, and those without an area, are left out.
"""

from common import corners, read_json, write_rows

QUESTION = "Where is each object in the image?"


def rows(instances):
    about = read_json(instances)
    names = {category["id"]: category["name"] for category in about["categories"]}
    shown = {image["id"]: {} for image in about["images"]}  # class -> its boxes
    for instance in about["annotations"]:
        if min(instance["bbox"][2:]) > 0 and not instance["iscrowd"]:
            boxes = shown[instance["image_id"]].setdefault(instance["category_id"], [])
            boxes.append(corners(instance["bbox"]))
    for image in about["images"]:
        if classes := sorted(shown[image["id"]].items()):
            answer = ", ".join("<ref-object>" + "<bbox>" * len(boxes) for _, boxes in classes)
            boxes = [box for _, found in classes for box in found]
            objects = {"ref": [names[number] for number, _ in classes], "bbox": boxes}
            yield {"image": image["file_name"], "question": QUESTION, "answer": answer, "objects": objects}


write_rows(rows)
