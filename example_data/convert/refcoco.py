"""RefCOCO, RefCOCO+ or RefCOCOg -> a row of each expression of a split: the class of the object that it means.

    python example_data/convert/refcoco.py 'refs(unc).p' instances.json train rows.jsonl
    python train.py --data_path rows.jsonl --image_folder train2014 ...

The boxes are left out.
"""

import pickle

from common import read_json, write_rows

QUESTION = 'What kind of object is "{}"?'


class PlainPickle(pickle.Unpickler):
    """Reads lists, objects, texts and numbers; a pickle may hold code, which is not run."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"the file holds a {module}.{name}, and not only lists, texts and numbers")


def rows(refs, instances, split):
    about = read_json(instances)
    images = {image["id"]: image["file_name"] for image in about["images"]}  # the names in `refs` are no files
    names = {category["id"]: category["name"] for category in about["categories"]}
    with open(refs, "rb") as file:
        found = PlainPickle(file, encoding="latin1").load()  # of Python 2
    for ref in found:
        for sentence in ref["sentences"] if ref["split"] == split else []:
            question, answer = QUESTION.format(sentence["sent"]), names[ref["category_id"]]
            yield {"image": images[ref["image_id"]], "question": question, "answer": answer}


write_rows(rows)
