"""COCO captions -> a row of each caption.

python example_data/convert/coco_captions.py captions_train2017.json rows.jsonl
python train.py --data_path rows.jsonl --image_folder train2017 ...
"""

from common import read_json, write_rows

QUESTION = "Describe the image in one sentence."


def rows(captions):
    about = read_json(captions)
    images = {image["id"]: image["file_name"] for image in about["images"]}
    for caption in about["annotations"]:
        yield {"image": images[caption["image_id"]], "question": QUESTION, "answer": caption["caption"].strip()}


write_rows(rows)
