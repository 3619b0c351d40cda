"""Print the exact match of a model and of a blind baseline on held-out questions.

    python example_data/report.py train.json answers.jsonl

The blind baseline answers each question with its most frequent training answer.
"""

import json
import sys
from collections import Counter, defaultdict


def most_frequent_answers(path: str) -> dict[str, str]:
    """Map each question of a LLaVA-style file to its most frequent answer."""
    answers = defaultdict(Counter)
    with open(path, encoding="utf-8") as file:
        for row in json.load(file):
            texts = [turn["value"].split(">\n")[-1] for turn in row["conversations"]]
            for question, answer in zip(texts[::2], texts[1::2]):
                answers[question][answer] += 1
    return {question: counts.most_common(1)[0][0] for question, counts in answers.items()}


def main(train_path: str, answers_path: str) -> None:
    blind, per_question = most_frequent_answers(train_path), defaultdict(list)
    with open(answers_path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        per_question[line["question"]].append((line["exact_match"], blind[line["question"]] == line["reference"]))
    print("\nA few held-out questions:")
    for line in lines[:8]:
        print(f"  {line['question']:<30}{line['prediction']:<16}(is: {line['reference']})")
    print(f"\n{'held-out questions':<32}{'number':>8}{'exact match':>13}{'blind baseline':>16}")
    rows = [*per_question.items(), ("all", [hit for hits in per_question.values() for hit in hits])]
    for question, hits in rows:
        right, guessed = (sum(column) / len(hits) for column in zip(*hits))
        print(f"{question:<32}{len(hits):>8}{right:>13.2f}{guessed:>16.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
