"""Draw the plain questions of `--probe`: six pictures with two questions each, and twelve questions without any.

    python benchmarks/plain_questions.py --output_dir example_data/plain

Nothing in them is a matter of taste, each answer is a word or a number, and no question is asked twice: what a
vision-language model of any size should still know after a finetuning on something else.
"""

import argparse
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = 224
RED, BLUE, GREEN, BLACK, YELLOW = "#d2282e", "#2356c4", "#2c9a48", "#1e1e1e", "#f2c216"
PICTURES = {
    "shapes": [("What colour is the circle?", "Red"), ("Which shape is to the right of the circle?", "Square")],
    "word": [("Which word is written in the picture?", "Hello"), ("What colour is the word?", "Green")],
    "triangles": [("How many triangles are there?", "3"), ("What colour are the triangles?", "Yellow")],
    "sum": [("What is the result of the sum in the picture?", ["12", "twelve"]), ("Which number is added to 7?", "5")],
    "bars": [("What is the letter of the tallest bar?", "B"), ("What is the letter of the shortest bar?", "C")],
    "halves": [("What colour is the upper half?", "Black"), ("What colour is the lower half?", "Blue")],
}
TEXTS = [
    ("What is the capital of France?", "Paris"),
    ("What is 7 times 8?", "56"),
    ("What is the opposite of hot?", "Cold"),
    ("Which day comes after Monday?", "Tuesday"),
    ("How many legs does a spider have?", "8"),
    ("What is the chemical formula of water?", "H2O"),
    ("On which planet do we live?", "Earth"),
    ("What colour is a ripe banana?", "Yellow"),
    ("What is the last letter of the alphabet?", "Z"),
    ("What is the Spanish word for dog?", "Perro"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("Which ocean is the largest?", "Pacific"),
]


def written(canvas: ImageDraw.ImageDraw, text: str, x: int, y: int, size: int, colour: str) -> None:
    canvas.text((x, y), text, colour, ImageFont.load_default(size), anchor="mm")


def draw(name: str) -> Image.Image:
    image = Image.new("RGB", (SIZE, SIZE), "white")
    canvas = ImageDraw.Draw(image)
    if name == "shapes":
        canvas.ellipse((24, 72, 100, 148), RED)
        canvas.rectangle((128, 76, 200, 148), BLUE)
    elif name == "word":
        written(canvas, "HELLO", SIZE // 2, SIZE // 2, 60, GREEN)
    elif name == "triangles":
        for left, top in ((20, 40), (130, 30), (76, 130)):
            canvas.polygon([(left + 36, top), (left, top + 64), (left + 72, top + 64)], YELLOW, BLACK)
    elif name == "sum":
        written(canvas, "7 + 5 = ?", SIZE // 2, SIZE // 2, 48, BLACK)
    elif name == "bars":
        for x, height, letter in ((40, 90, "A"), (100, 150, "B"), (160, 40, "C")):
            canvas.rectangle((x, 180 - height, x + 36, 180), BLUE)
            written(canvas, letter, x + 18, 200, 28, BLACK)
    else:
        canvas.rectangle((0, 0, SIZE, SIZE // 2), BLACK)
        canvas.rectangle((0, SIZE // 2, SIZE, SIZE), BLUE)
    return image


def rows() -> list[dict]:
    of_pictures = [
        {"image": f"{name}.png", "question": question, "answer": answer}
        for name, asked in PICTURES.items()
        for question, answer in asked
    ]
    return [*of_pictures, *({"question": question, "answer": answer} for question, answer in TEXTS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    folder = parser.parse_args().output_dir
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        draw(name).quantize(32).save(folder / f"{name}.png", optimize=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    print(f"{len(rows())} questions, {len(PICTURES)} pictures in {folder}")


if __name__ == "__main__":
    main()
