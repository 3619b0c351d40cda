"""VQA v2 -> a row of each question with its ten answers, of which the most frequent is trained.

    python example_data/convert/vqa_v2.py v2_OpenEnded_mscoco_train2014_questions.json \
        v2_mscoco_train2014_annotations.json rows.jsonl
    python train.py --data_path rows.jsonl --image_folder train2014 ...
"""

from common import read_json, write_rows


def rows(questions, annotations):
    asked = read_json(questions)
    given = {found["question_id"]: found["answers"] for found in read_json(annotations)["annotations"]}
    for question in asked["questions"]:
        image = f"COCO_{asked['data_subtype']}_{question['image_id']:012d}.jpg"
        answers = [found["answer"] for found in given[question["question_id"]]]
        yield {"image": image, "question": question["question"], "answer": answers}


write_rows(rows)
