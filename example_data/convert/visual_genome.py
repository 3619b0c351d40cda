"""Visual Genome's questions -> a row of each.

    python example_data/convert/visual_genome.py question_answers.json image_data.json rows.jsonl
    python train.py --data_path rows.jsonl --image_folder visual_genome ...

The folder holds VG_100K and VG_100K_2.
"""

from common import read_json, write_rows


def rows(question_answers, image_data):
    images = {image["image_id"]: "/".join(image["url"].split("/")[-2:]) for image in read_json(image_data)}
    for image in read_json(question_answers):
        for asked in image["qas"]:
            yield {"image": images[asked["image_id"]], "question": asked["question"], "answer": asked["answer"]}


write_rows(rows)
