"""Draw the example data: images of gauges, or videos of moving shapes, with questions about them.

    python example_data/draw.py                      # images/, train.json, test.json
    python example_data/draw.py --videos             # videos/, video_train.json, video_test.json
    python example_data/draw.py --pairs              # the images, and rows of two images: pair_train.json, ...
    python example_data/draw.py --texts              # the images, and rows without images: text_train.json, ...
    python example_data/draw.py --boxes              # images of one shape, and the shape's box: box_train.json, ...
    python example_data/draw.py --sample             # a dozen images and two videos to look at: sample.json, ...
    python example_data/draw.py --output_dir /tmp/gauges

An image shows a gauge, and a video shows one moving shape. The test set has combinations of properties that are not in
the training set (see `combinations`), so a model must recognise each property separately. The answers to a question are
equally frequent: a model that does not look can be right in at most a quarter of the cases. A pair consists of two
images of the same set. With --boxes, an image shows one shape anywhere. With --texts, colours are to be sorted
alphabetically, and the test set has other orders than the training set.

Drawing is seeded: every run writes the same bytes. A second run does not draw gauges and videos again.
"""

import argparse
import itertools
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIZE, GAUGE_SIZE = 64, 224  # width and height in pixels: of images with shapes, with gauges
SMOOTH = 4  # draw at this multiple of the size and shrink, for smooth edges
COLOURS = {
    "Red": (220, 40, 40),
    "Yellow": (245, 195, 20),
    "Green": (40, 160, 70),
    "Blue": (40, 90, 220),
    "Purple": (150, 60, 180),
    "Black": (30, 30, 30),
}
SHAPES = ["Circle", "Square", "Triangle", "Star", "Cross"]
PLACES = ["First", "Second"]  # of the images of a pair
MOVES = {"Left": (-1, 0), "Right": (1, 0), "Up": (0, -1), "Down": (0, 1)}
FRAMES, FPS = 16, 8

# For images and videos, the questions (None: not asked) and their answers, in the order of the answers of a scene.
IMAGE_PROPERTIES = [
    ("What does the gauge read?", [str(i) for i in range(11)]),
    ("Where does the red zone begin?", ["2", "4", "6", "8"]),
    ("Which unit is on the dial?", ["bar", "V", "A", "rpm"]),
    ("What colour is the rim?", ["Red", "Yellow", "Green", "Blue"]),
]
VIDEO_PROPERTIES = [
    ("What colour is the shape?", list(COLOURS)),
    (None, SHAPES),  # drawn but not asked, since a tiny model cannot tell a circle from a square in four frames
    ("Which way does it move?", list(MOVES)),
]
PROPERTIES = {"image": IMAGE_PROPERTIES, "video": VIDEO_PROPERTIES}


def combinations(properties, test):
    """Return the answer tuples of the test set (a quarter of all, with each answer equally often) or training set."""
    indices = itertools.product(*(range(len(answers)) for _, answers in properties))
    chosen = [row for row in indices if (sum(row) % 4 == 0) == test]
    return [tuple(answers[i] for i, (_, answers) in zip(row, properties)) for row in chosen]


def draw_shape(canvas, shape, colour, x, y, radius):
    """Draw one shape around (x, y), all in pixels of the final picture."""
    x, y, radius = x * SMOOTH, y * SMOOTH, radius * SMOOTH

    def polygon(points):  # (angle in degrees clockwise from the top, distance from the centre) for each corner
        rays = [(math.radians(angle), distance * radius) for angle, distance in points]
        canvas.polygon([(x + r * math.sin(a), y - r * math.cos(a)) for a, r in rays], fill=colour)

    if shape == "Circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "Square":
        canvas.rectangle((x - 0.9 * radius, y - 0.9 * radius, x + 0.9 * radius, y + 0.9 * radius), fill=colour)
    elif shape == "Triangle":
        polygon([(0, 1.0), (130, 1.2), (230, 1.2)])
    elif shape == "Star":
        polygon([(36 * i, 0.42 if i % 2 else 1.15) for i in range(10)])
    else:
        for w, h in ((1.0, 0.3), (0.3, 1.0)):
            canvas.rectangle((x - w * radius, y - h * radius, x + w * radius, y + h * radius), fill=colour)


def draw_scene(shapes, background):
    """Return an image of SIZE x SIZE. `shapes` are the arguments of `draw_shape` after the canvas."""
    image = Image.new("RGB", (SIZE * SMOOTH, SIZE * SMOOTH), background)
    canvas = ImageDraw.Draw(image)
    for shape in shapes:
        draw_shape(canvas, *shape)
    return image.reduce(SMOOTH)


def write_image(path, answers, rng):
    """Write a PNG of `answers` = (reading, start of the red zone, unit, rim). The position and brightness vary."""
    reading, red, unit, rim = answers
    image = Image.new("RGB", (2 * GAUGE_SIZE,) * 2, (rng.randint(170, 215),) * 3)
    canvas, (x, y) = ImageDraw.Draw(image), (GAUGE_SIZE + rng.uniform(-8, 8) for _ in "xy")
    radius, black = rng.uniform(180, 190), COLOURS["Black"]

    def at(value, distance):  # the point at this fraction of the radius, in the direction of a value from 0 to 10
        angle = math.radians(24 * value - 120)
        return x + distance * radius * math.sin(angle), y - distance * radius * math.cos(angle)

    def write(point, text, size):
        canvas.text(point, text, black, ImageFont.load_default(size * radius), anchor="mm")

    canvas.circle((x, y), 1.1 * radius, COLOURS[rim])
    canvas.circle((x, y), 0.98 * radius, (rng.randint(235, 255),) * 3)
    edge = (x - 0.92 * radius, y - 0.92 * radius, x + 0.92 * radius, y + 0.92 * radius)
    canvas.arc(edge, 24 * int(red) - 210, 30, COLOURS["Red"], round(0.2 * radius))
    for value in range(11):
        canvas.line((at(value, 0.78), at(value, 0.92)), black, 5)
        if value % 2 == 0:
            write(at(value, 0.62), str(value), 0.15)
    write((x, y + 0.5 * radius), unit, 0.34)
    canvas.line((at(int(reading) - 7.5, 0.18), at(int(reading), 0.85)), black, 14)
    canvas.circle((x, y), 0.1 * radius, black)
    image.reduce(2).save(path)


def write_video(path, answers, rng):
    """Write an MP4 of `answers` = (colour, shape, move). Start and speed vary, so one frame does not show the move."""
    import av

    colour, shape, move = answers
    dx, dy = MOVES[move]
    travel, radius, shade = rng.uniform(24, 32), rng.uniform(9, 11), rng.randint(235, 255)
    low, high = 12 + travel / 2, SIZE - 12 - travel / 2  # the range for the middle of the path
    x = rng.uniform(low, high) if dx else rng.uniform(12, SIZE - 12)
    y = rng.uniform(low, high) if dy else rng.uniform(12, SIZE - 12)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)  # the one MP4 encoder that every FFmpeg build has
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = SIZE, SIZE, "yuv420p", 400_000
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for i in range(FRAMES):
            way = travel * (i / (FRAMES - 1) - 0.5)
            frame = draw_scene([(shape, COLOURS[colour], x + dx * way, y + dy * way, radius)], (shade,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_split(output_dir, name, media, scenes):
    """Write the files of `scenes` (tuples of answers), then NAME.json, which exists only if all the files do."""
    folder, suffix, write = {"image": ("images", "png", write_image), "video": ("videos", "mp4", write_video)}[media]
    rows, questions = [], 0
    for i, answers in enumerate(scenes):
        turns = [(question, answer) for (question, _), answer in zip(PROPERTIES[media], answers) if question]
        random.Random(f"questions {name} {i}").shuffle(turns)
        conversations = []
        for question, answer in turns:
            conversations += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        conversations[0]["value"] = f"<{media}>\n" + conversations[0]["value"]
        path = f"{folder}/{name.removeprefix('video_')}/{i:05d}.{suffix}"
        questions += len(turns)
        rows.append({"id": f"{name}-{i:05d}", media: path, "conversations": conversations})

    json_path, files = output_dir / f"{name}.json", [output_dir / row[media] for row in rows]
    if all(path.exists() for path in (json_path, *files)) and json_path.read_text() == as_json(rows):
        return f"{json_path} is complete"
    json_path.unlink(missing_ok=True)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for i, (path, answers) in enumerate(zip(files, scenes)):
        write(path, answers, random.Random(f"{media} {name} {i}"))
    write_rows(json_path, rows)
    return f"wrote {json_path}: {len(rows)} {folder}, {questions} questions"


def as_json(rows):
    return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "\n]\n"


def write_rows(path, rows):
    partial = path.with_suffix(".partial")
    partial.write_text(as_json(rows))
    partial.replace(path)


def pair_rows(part):
    """Return rows with two random images of a set. They ask which gauge reads more, and for the rim colour of one."""
    scenes, draw = combinations(IMAGE_PROPERTIES, test=part == "test"), random.Random(f"pairs {part}")
    rows = []
    while len(rows) < (100 if part == "test" else 1000):
        pair = [draw.randrange(len(scenes)) for _ in PLACES]
        readings, colours = [int(scenes[i][0]) for i in pair], [scenes[i][-1] for i in pair]
        if readings[0] == readings[1] or colours[0] == colours[1]:
            continue
        more, asked = readings[1] > readings[0], draw.randrange(2)
        conversations = [
            {"from": "human", "value": "<image>\n<image>\nWhich gauge reads more?"},
            {"from": "gpt", "value": PLACES[more]},
            {"from": "human", "value": f"What colour is the rim of the {PLACES[asked].lower()}?"},
            {"from": "gpt", "value": colours[asked]},
        ]
        rows.append({"image": [f"images/{part}/{i:05d}.png" for i in pair], "conversations": conversations})
    return rows


def box_rows(part, output_dir):
    """Write images of one shape anywhere. Return rows that ask where the shape is, with its box in pixels."""
    kinds, folder = combinations(VIDEO_PROPERTIES[:2], test=part == "test"), f"images/box_{part}"
    (output_dir / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(100 if part == "test" else 6000):
        rng = random.Random(f"box {part} {i}")
        (colour, shape), radius = rng.choice(kinds), rng.uniform(9, 14)
        x, y = (rng.uniform(1.25 * radius, SIZE - 1.25 * radius) for _ in "xy")
        drawn, path = (shape, COLOURS[colour], x, y, radius), f"{folder}/{i:05d}.png"
        draw_scene([drawn], (rng.randint(235, 255),) * 3).save(output_dir / path)
        box = ImageOps.invert(draw_scene([drawn], (255,) * 3)).getbbox()
        question = f"Where is the {colour.lower()} {shape.lower()}?"
        rows.append({"image": path, "question": question, "answer": "<bbox>", "objects": {"bbox": [box]}})
    return rows


def text_rows(part):
    """Return rows without media. They ask to sort three colours."""
    orders = list(itertools.permutations(COLOURS, 3))
    random.Random("texts").shuffle(orders)
    rows = []
    for order in orders[:20] if part == "test" else orders[20:] * 10:
        question, answer = f"Sort by the alphabet: {', '.join(order)}", ", ".join(sorted(order))
        rows.append({"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).resolve().parent, help="the output folder")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--videos", action="store_true", help="draw videos instead of images")
    kind.add_argument("--pairs", action="store_true", help="also write rows of two images")
    kind.add_argument("--texts", action="store_true", help="also write rows without images")
    kind.add_argument("--boxes", action="store_true", help="draw single shapes instead of gauges, with their boxes")
    kind.add_argument("--sample", action="store_true", help="draw only a dozen images and two videos")
    args = parser.parse_args()

    if args.sample:
        draw = random.Random(0)
        for name, media, number in (("sample", "image", 12), ("video_sample", "video", 2)):
            scenes = draw.sample(combinations(PROPERTIES[media], test=False), number)
            print(write_split(args.output_dir, name, media, scenes))
        return
    if args.boxes:
        for part in ("train", "test"):
            write_rows(args.output_dir / f"box_{part}.json", box_rows(part, args.output_dir))
        return
    # How many different files are drawn per combination, in the training set and in the test set.
    media, prefix, times = ("video", "video_", (6, 3)) if args.videos else ("image", "", (3, 1))
    said = []
    for part, number in zip(("train", "test"), times):
        scenes = combinations(PROPERTIES[media], test=part == "test") * number
        said.append(write_split(args.output_dir, prefix + part, media, scenes))
    print("; ".join(said))
    if args.pairs or args.texts:
        kind, make_rows = ("pair", pair_rows) if args.pairs else ("text", text_rows)
        for part in ("train", "test"):
            write_rows(args.output_dir / f"{kind}_{part}.json", make_rows(part))


if __name__ == "__main__":
    main()
