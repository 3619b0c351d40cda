"""Generate answers to the questions of a data set, or stream the answer to one conversation.

The prompt contains the reference replies to earlier questions, in the checkpoint's own template. Decoding is greedy.
Generating answers during training does not change the gradients, the random numbers or the weights of the run.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from threading import Event, Thread
from typing import NamedTuple

import torch
from transformers import StoppingCriteriaList, TextIteratorStreamer

from reading.dataset import MultimodalDataset, evenly_spread

ANSWERS_FOLDER = "eval_answers"  # in the output folder, with one file per evaluation
MOST_COUNTED = 10_000  # rows of the training data that `guess_blindly` counts, evenly spread


class Question(NamedTuple):
    """Locates a trained reply to a user's message. The model is asked to write this reply itself."""

    index: int  # of the row in the data set
    turn: int  # index of the reply among the replies of the row
    message: int  # index of the reply among all messages of the row


def questions(dataset: MultimodalDataset, rows: Iterable[int] | None = None) -> list[Question]:
    """Return the questions of the given rows, or of all rows, in order, without opening media files."""
    found = []
    for index in range(len(dataset)) if rows is None else rows:
        messages = dataset.rows[index]["messages"]
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for turn, i in enumerate(replies):
            is_text = "tool_calls" not in messages[i]  # a tool call is not compared
            if i and is_text and messages[i - 1]["role"] == "user" and messages[i].get("train", True):
                found.append(Question(index, turn, i))
    return found


def generate_answers(
    model,
    collator,
    dataset: MultimodalDataset,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    asked: list[Question] | None = None,
    **options,
) -> Iterator[dict]:
    """Generate greedy answers to the questions in `asked`, or to all questions of a data set.

    Args:
        options: passed to `model.generate`.

    Yields:
        {"index", "turn", "question", "prediction", "reference", "exact_match"}, in order. Some answers also have
        "thought", "references" (if there are several), or "boxes" and "reference_boxes" in pixels.

    Raises:
        ValueError: the media of a row cannot be opened.
    """
    asked = questions(dataset) if asked is None else asked
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        samples = [dataset[question.index] for question in batch]
        prompts = [
            collator.encode_prompt(sample["messages"][: question.message], sample["source"])
            for question, sample in zip(batch, samples)
        ]
        predictions = _generate(model, collator, prompts, max_new_tokens, **options)
        for question, sample, prediction in zip(batch, samples, predictions):
            boxes, reply = collator.template.boxes, sample["messages"][question.message]
            asked_text, reference = texts_of(boxes.written(sample["messages"]), question)
            references = reply.get("references", [])
            thought, prediction = collator.template.thoughts_and_tools.split(prediction)
            told = [boxes.told(text, sample["messages"], [reply]) for text in (prediction, reference)]
            found = [dataset.in_pixels(question.index, one) for one in told if any(told)]
            yield {
                "index": question.index,
                "turn": question.turn,
                "question": asked_text,
                **({"thought": thought} if thought else {}),
                "prediction": prediction,
                "reference": reference,
                **({"references": references} if references else {}),
                "exact_match": prediction in [reference, *map(str.strip, references)],
                **dict(zip(("boxes", "reference_boxes"), found)),
            }


def texts_of(messages: list[dict], question: Question) -> tuple[str, str]:
    """Return the text of the question and the text of its reference reply."""
    exchange = messages[question.message - 1 : question.message + 1]
    asked, reply = ("".join(part.get("text", "") for part in message["content"]).strip() for message in exchange)
    return asked, reply


def guess_blindly(dataset: MultimodalDataset, answers: list[dict]) -> list[dict]:
    """Replace each prediction with a guess that ignores the media. It is the most frequent training reply to the same
    question or, if no training row has this question, the most frequent training reply of all.
    """
    replies, of_all = defaultdict(Counter), Counter()
    for question in questions(dataset, evenly_spread(range(len(dataset)), MOST_COUNTED)):
        asked, reply = texts_of(dataset.rows[question.index]["messages"], question)
        replies[asked][reply] += 1
        of_all[reply] += 1
    guesses = {asked: counts.most_common(1)[0][0] for asked, counts in replies.items()}
    other = of_all.most_common(1)[0][0] if of_all else ""
    return [answer | {"prediction": guesses.get(answer["question"], other)} for answer in answers]


@torch.no_grad()  # inference_mode would create tensors that training cannot use
def _generate(model, collator, prompts: list[dict], max_new_tokens: int, **options) -> list[str]:
    model.eval()
    batch = collator.pad(prompts, side="left")
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, **options)
    tokens = tokens[:, inputs["input_ids"].shape[1] :]
    return [collator.template.frame.decode(answer).strip() for answer in tokens]


def stream_answer(model, collator, messages: list[dict], max_new_tokens: int = 512) -> Iterator[str]:
    """Yield the greedy answer to a conversation that ends with a user's message, piece by piece.

    If the iterator is closed, or interrupted while it waits, the generation stops at the next token.

    Args:
        messages: in the canonical form (reading/dataset.py), with opened media.

    Raises:
        ValueError: the template or the processor refuses the conversation.
    """
    prompt = collator.encode_prompt(messages, "the conversation")
    streamer = TextIteratorStreamer(collator.template.frame, skip_prompt=True)  # the streamer only calls `decode`
    closed, failed = Event(), []

    def is_closed(tokens: torch.Tensor, *_, **__) -> torch.Tensor:
        return torch.full(tokens.shape[:1], closed.is_set(), device=tokens.device)

    def generate() -> None:
        try:
            stopping = StoppingCriteriaList([is_closed])
            _generate(model, collator, [prompt], max_new_tokens, streamer=streamer, stopping_criteria=stopping)
        except Exception as error:  # raised again below, in the caller's thread
            failed.append(error)
            streamer.end()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        closed.set()
        thread.join()
    if failed:
        raise failed[0]


def write_answers(output_dir: str, step: int, answers: list[dict]) -> None:
    """Write the answers to `eval_answers/step-N.jsonl` in the output folder."""
    folder = os.path.join(output_dir, ANSWERS_FOLDER)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"step-{step}.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n" for answer in answers)


def read_answers(output_dir: str, step: int) -> list[dict]:
    with open(os.path.join(output_dir, ANSWERS_FOLDER, f"step-{step}.jsonl"), encoding="utf-8") as file:
        return list(map(json.loads, file))
