"""RefCOCO, RefCOCO+ or RefCOCOg -> a row of each expression of a split: the box of the object that it means.

python example_data/convert/refcoco.py 'refs(unc).p' instances.json train rows.jsonl
python train.py --data_path rows.jsonl --image_folder train2014 ...
"""

import pickle

from common import corners, read_json, write_rows

QUESTION, ANSWER = "Where is <ref-object>?", "<ref-object><bbox>"


class PlainPickle(pickle.Unpickler):
    """Reads lists, objects, texts and numbers; a pickle may hold code, which is not run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"the file holds a {module}.{name}, and not only lists, texts and numbers")


def rows(refs, instances, split):
    about = read_json(instances)
    images = {image["id"]: image["file_name"] for image in about["images"]}  # the names in `refs` are no files
    boxes = {instance["id"]: corners(instance["bbox"]) for instance in about["annotations"]}
    with open(refs, "rb") as file:
        found = PlainPickle(file, encoding="latin1").load()  # of Python 2
    for ref in found:
        for sentence in ref["sentences"] if ref["split"] == split else []:
            objects = {"ref": [sentence["sent"]] * 2, "bbox": [boxes[ref["ann_id"]]]}
            yield {"image": images[ref["image_id"]], "question": QUESTION, "answer": ANSWER, "objects": objects}


write_rows(rows)
