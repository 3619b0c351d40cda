"""Compare the answers of a running server and of the folder that it should serve to questions of held-out rows.

Requests use OpenAI's protocol, with the fields that a request must add (merging/servers.py) and the media as in
training. For vLLM, the tokens of the prompts and the log-probabilities of the references are also compared; for other
servers, only the number of prompt tokens. If several causes of a difference apply, the first in this order is reported:
prompt, image size, weights, sampling.
"""

import argparse
import base64
import json
import os
import re
import shlex
import urllib.error
import urllib.request
from io import BytesIO
from typing import NamedTuple
from urllib.parse import urljoin

import torch
from PIL import Image

import predict
from evaluation.answers import generate_answers, questions
from loaders.output_folder import adapter_config, saved_arguments
from merging.servers import GREEDY
from reading.dataset import IGNORE_INDEX, make_dataset
from reading.strict_json import strict_json

SECONDS = 600  # timeout of a request: a server may compile during the first one
SHOWN = 3  # number of differing answers to print
FRAMES = "servers choose other frames, except vLLM with --trust-request-mm-kwargs, for one video per request"
# Mean difference in log-probability per reference token. bfloat16 causes about 0.02, a different adapter far more.
ROUNDING = 0.1


class Server:
    """A model on an OpenAI-compatible server.

    Args:
        url: such as http://127.0.0.1:8000/v1.
        model: name of the model on the server. Default: `name`, if the server lists it, or the only listed model.
        name: name of the folder.
        options: fields that each request adds (`Template.request_options`).
    """

    def __init__(self, url: str, model: str | None, name: str, options: dict):
        self.url, self.options = url.rstrip("/") + "/", options
        if not model:  # a given name may be unlisted: `transformers serve` lists only Hub repositories
            models = [listed["id"] for listed in self.call("models")["data"]]
            if name not in models and len(models) != 1:
                raise ValueError(
                    f"{url} lists {', '.join(models) or 'no model'}: pass the right name as --served_model_name."
                )
            model = name if name in models else models[0]
        self.model = model
        self.is_vllm = self.takes("../version")

    def call(self, path: str, body: dict | None = None, source: str = "") -> dict:
        url, headers = urljoin(self.url, path), {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, strict_json(body).encode() if body else None, headers)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            said = error.read(1000).decode(errors="replace")
            raise ValueError(f"{source}{url} answered {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise ValueError(f"--url {self.url} cannot be reached ({error}). Is the server running?") from error

    def takes(self, path: str, body: dict | None = None) -> bool:
        """Return whether the server answers a request without an error."""
        try:
            return bool(self.call(path, body))
        except ValueError:
            return False

    def ask(self, messages: list[dict], source: str, **options) -> dict:
        """Send the canonical messages of a sample and their tools as a chat request, and return the response."""
        body = {"model": self.model, "messages": [as_openai(message) for message in messages]}
        if tools := messages[0].get("tools"):
            # With tool_choice none, vLLM needs no tool parser, and an answer is raw text, as in training.
            body |= {"tools": tools} | ({"tool_choice": "none"} if self.is_vllm else {})
        for video in videos_in(messages):
            known = {name: value for name, value in video["metadata"].items() if value is not None}
            body["media_io_kwargs"] = {"video": {"num_frames": -1} | known}  # vLLM's field
        return self.call("chat/completions", body | self.options | options, f"{source}: ")


class Outcome(NamedTuple):
    """The answers of folder and server to a question, and how they differ."""

    question: str
    prediction: str  # answer of the folder
    answer: str  # answer of the server at temperature 0
    cause: str  # how the prompt differs; "" if it does not
    sampled: bool  # whether the answer changes if the request has no temperature
    noise: float | None  # mean difference in log-probability per reference token
    has_video: bool


def compare_answers(args: argparse.Namespace, other: list[str]) -> str:
    """Return one line that says how many answers of the server and the folder are the same.

    Args:
        args: flags of check_serving.py.
        other: words for predict.py.

    Raises:
        ValueError: the two differ (the message names the cause), or the server cannot be reached.
    """
    words = ["--model_path", args.model_path, "--data_path", args.data_path, "--output_path", os.devnull]
    flags = predict.parse(words + other)
    predict.check_words(flags)
    dataset = make_dataset(flags, "data_path", flags.data_path)
    model, collator = predict.load_with_options(flags)
    name = os.path.basename(os.path.abspath(args.model_path))
    server = Server(args.url, args.served_model_name, name, collator.template.request_options())
    asked = questions(dataset)
    videos = [len(videos_in(dataset.rows[q.index]["messages"][: q.message])) for q in asked]
    body = {"model": server.model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
    body["media_io_kwargs"] = {"video": {"fps": 1}}
    most = int(any(videos) and server.is_vllm and server.takes("chat/completions", body))  # one list of times
    asked = [question for question, count in zip(asked, videos) if count <= most][: args.rows]
    if any(count > most for count in videos):
        print(f"Questions with more than {most} videos are left out: {FRAMES}.")
    if not asked:
        raise ValueError(f"{args.data_path} has no question for the server" + (f": {FRAMES}." if videos else "."))
    length = flags.max_new_tokens or 128

    def predictions(model) -> list[dict]:
        return list(generate_answers(model, collator, dataset, flags.batch_size, length, asked))

    pairs = zip(asked, predictions(model))
    found = [ask(server, model, collator, dataset[q.index], q.message, answer, length) for q, answer in pairs]
    cause = next(filter(None, (outcome.cause for outcome in found)), "")
    different = [outcome for outcome in found if outcome.answer != outcome.prediction]
    noise = max((outcome.noise for outcome in found if outcome.noise is not None), default=None)
    if not cause and (different or (noise or 0) > ROUNDING):
        cause = blame_weights(found, noise, of_base(model, flags, predictions))
    if not cause and any(outcome.sampled for outcome in found):
        cause = "the server samples unless a request sets the temperature; send temperature=0"
        cause += f", or start vLLM with {shlex.join(GREEDY)}" if server.is_vllm else ""
    for outcome in different[:SHOWN]:
        print(f"  {outcome.question!r}: the server answers {outcome.answer!r}, predict.py {outcome.prediction!r}")
    same = f"{len(found) - len(different)} of {len(found)} answers are the same"
    if noise is not None:
        same += f", log-probabilities of the references within {noise:.2g}"
    if cause:
        raise ValueError(f"{server.model} at {args.url} does not match {args.model_path}: {cause} ({same}).")
    return f"{server.model} at {args.url} answers like {args.model_path}: {same}."


def videos_in(messages: list[dict]) -> list[dict]:
    return [part for message in messages for part in message["content"] if part["type"] == "video"]


def ask(server: Server, model, collator, sample: dict, place: int, ours: dict, length: int) -> Outcome:
    messages = collator.template.thoughts_and_tools.placed(sample["messages"][: place + 1])
    (*prompt, reply), source = messages, sample["source"]
    options = {"max_tokens": length} | ({"return_token_ids": True} if server.is_vllm else {})

    def answer_of(response: dict) -> str:
        choice = response["choices"][0]
        if tokens := choice.get("token_ids"):  # the text lacks the special tokens that some families write
            text = collator.template.frame.decode(tokens).strip()
        else:
            text = (choice["message"]["content"] or "").strip()
        return collator.template.thoughts_and_tools.split(text)[1]

    usual = server.ask(prompt, source, **options)  # without a temperature, like most clients
    answer = greedy = answer_of(usual)
    cause = difference(collator.encode_prompt(prompt, source)["input_ids"][0].tolist(), usual, collator)
    if answer != ours["prediction"]:
        greedy = answer_of(server.ask(prompt, source, temperature=0, **options))
    noise = None
    if server.is_vllm and not cause and reply["content"]:
        noise = difference_of_scores(server, model, collator, messages, source)
    has_video = bool(videos_in(prompt))
    return Outcome(ours["question"], ours["prediction"], greedy, cause, greedy != answer, noise, has_video)


def difference(ours: list[int], response: dict, collator) -> str:
    """Return how a server's prompt differs from the prompt in training, or "" if no difference is visible."""
    theirs = response.get("prompt_token_ids")
    if theirs is None:
        number = response["usage"]["prompt_tokens"]
        if number == len(ours):
            return ""
        return f"a different prompt or image size: {number} prompt tokens instead of {len(ours)}"
    if theirs == ours:
        return ""
    pictures = picture_tokens(collator)
    if [t for t in theirs if t not in pictures] == [t for t in ours if t not in pictures]:
        return f"a different image size: {len(theirs)} prompt tokens instead of {len(ours)}"
    place = next((i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    shown = [collator.template.tokenizer.decode(tokens[place : place + 8]) for tokens in (theirs, ours)]
    return f"a different prompt: at token {place} the server has {shown[0]!r}, training had {shown[1]!r}"


def picture_tokens(collator) -> set[int]:
    """Return the ids of tokens that only media add to a prompt, and of tokens that differ from them only in numbers."""
    image, text = {"type": "image", "image": Image.new("RGB", (640, 480))}, {"type": "text", "text": "?"}
    prompts = [[{"role": "user", "content": content}] for content in ([image, text], [text])]
    seen, plain = ({*collator.encode_prompt(prompt)["input_ids"][0].tolist()} for prompt in prompts)
    added = collator.template.frame.added_tokens
    seen = {re.sub(r"\d+", "0", added[id]) for id in seen - plain if id in added}
    seen = {id for id, token in added.items() if re.sub(r"\d+", "0", token) in seen}
    return seen.union(collator.media_token_ids["video"].tolist())


def difference_of_scores(server: Server, model, collator, messages: list[dict], source: str) -> float | None:
    """Return the mean difference in log-probability per reference token, or None if the server's tokens differ."""
    inputs = collator.encode({"messages": messages, "source": source}).inputs
    inputs = {name: value.to(model.device) for name, value in collator.pad([inputs]).items()}
    labels = inputs.pop("labels")[0]
    with torch.no_grad():
        scores = model(**inputs).logits[0].float().log_softmax(-1)
    ids = inputs["input_ids"][0].tolist()
    options = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": 0}
    listed = server.ask(messages, source, max_tokens=1, temperature=0, **options)["prompt_logprobs"]
    places = [i for i in range(1, min(len(ids), len(listed))) if labels[i] != IGNORE_INDEX]
    pairs = [(scores[i - 1, ids[i]].item(), listed[i].get(str(ids[i]))) for i in places]
    if not pairs or any(theirs is None for _, theirs in pairs):
        return None
    return sum(abs(ours - theirs["logprob"]) for ours, theirs in pairs) / len(pairs)


def of_base(model, flags: argparse.Namespace, predictions) -> list[str] | None:
    """Return the answers of the base model, or None if the base model is not available."""
    if adapter_config(flags.model_path):
        with model.disable_adapter():
            return [answer["prediction"] for answer in predictions(model)]
    base = saved_arguments(flags.model_path).get("model_local_path")
    if not base or not os.path.isdir(base) or os.path.samefile(base, flags.model_path):
        return None
    model, _ = predict.load(base, flags.model_id)
    return [answer["prediction"] for answer in predictions(model)]


def blame_weights(found: list[Outcome], noise: float | None, of_base: list[str] | None) -> str:
    """Return why the answers differ although the prompts do not."""
    if of_base and all(outcome.answer == base for outcome, base in zip(found, of_base)):
        return "the answers are those of the base model, so the server does not use what was trained"
    faulty = [outcome for outcome in found if outcome.answer != outcome.prediction or (outcome.noise or 0) > ROUNDING]
    if all(outcome.has_video for outcome in faulty) and not all(outcome.has_video for outcome in found):
        return "the server reads videos differently, such as without their times: all answers without videos agree"
    if noise is None:
        return "the cause is unknown: the prompts have the same length, and the answers are not the base model's"
    if noise <= ROUNDING:
        return "the cause is unknown: the weights are the same except for rounding, such as from another precision"
    if all(outcome.answer == outcome.prediction for outcome in found):
        return "different weights, or different attention (docs/serving.md): only the log-probabilities differ"
    return "different weights: the prompts are the same, but the answers are neither this folder's nor its base's"


# ---- canonical messages -> OpenAI's ----


def as_openai(message: dict) -> dict:
    fields = {key: message[key] for key in ("reasoning_content", "tool_call_id", "name") if key in message}
    for i, call in enumerate(message.get("tool_calls", [])):
        function = call["function"] | {"arguments": strict_json(call["function"]["arguments"])}
        fields.setdefault("tool_calls", []).append({"id": f"call_{i}"} | call | {"function": function})
    content = [as_part(part) for part in message["content"]]
    if all(part["type"] == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not content and "tool_calls" in fields:
        content = None  # as clients do; vLLM would pass "" on as a text part, and a template may start a line for it
    return {"role": message["role"], "content": content} | fields


def as_part(part: dict) -> dict:
    """Convert a content part. Images and frames are sent as lossless PNG, frames under vLLM's media type video/jpeg."""
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] == "video":
        frames = ",".join(as_png(Image.fromarray(frame)) for frame in part["video"])
        return {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{frames}"}}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{as_png(part['image'])}"}}


def as_png(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
