"""Render messages to the training text and the spans to train, and compare it with the checkpoint's own template."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from functools import cache, cached_property, reduce
from typing import NamedTuple

from jinja2 import Environment, TemplateError, TemplateSyntaxError, meta
from transformers.utils.chat_template_utils import render_jinja_template

from collators.boxes import Boxes
from collators.frame_tokens import FrameTokens
from collators.thoughts_and_tools import GENERATION, MESSAGE_FIELDS, ThoughtsAndTools
from collators.untagged_template import UnfitTemplate, find_replies, find_string_roles, joined_text, with_variables
from reading.rows import RESERVED_CHARACTER, content_parts

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
UNTIMED = (
    "`video` is a list of images, and this model needs the time of each image: add `fps` (images per second) or "
    "`times` (in seconds) to the row or next to `video` (docs/moments.md)"
)


class TemplateException(NamedTuple):
    """A documented difference between our training text and the checkpoint's template."""

    ours: str
    official: str
    reason: str
    # Or "end": only at the end of a conversation; "history": only before the last exchange; "moved": everywhere, and
    # the checkpoint's text may contain `ours` in another place.
    where: str = "everywhere"


class ChatFormat(NamedTuple):
    """One of several training templates of a family."""

    template: str
    exceptions: tuple[TemplateException, ...] = ()


class Template:
    """Renders conversations for training and generation. Families whose texts need more than Jinja have a subclass.

    Args:
        processor: the checkpoint's processor. Its tokenizer gets modified (frame_tokens.py).
        family: the collator class, which has the formats and other facts about the templates.
        boxes: writes the boxes of messages as text.
        replacement: the collator's `chat_template`: a template, "checkpoint" or "family".
        stop_tokens: the tokens that end generation; by default the tokenizer's end token.
        replies_only: the collator's `mask_question_tokens`.
        given: the collator's `template_kwargs`; `enable_thinking` applies only to prompts and rows with thoughts.
        train_thoughts: False trains only the text after a reply's thought.
    """

    frame_class: type[FrameTokens] = FrameTokens

    def __init__(
        self,
        processor,
        family: type,
        boxes: Boxes,
        replacement: str | None = None,
        stop_tokens: list[str] | None = None,
        replies_only: bool = True,
        given: dict | None = None,
        train_thoughts: bool = True,
    ):
        self.processor, self.tokenizer, self.boxes = processor, processor.tokenizer, boxes
        self.given, self.string_roles, self.replies_only = given or {}, family.string_roles, replies_only
        told = {"enable_thinking": False} if "enable_thinking" in self.given else {}
        self.kwargs, self.told_times = family.template_kwargs | self.given | told, family.told_times
        self.thoughts_and_tools = ThoughtsAndTools(self, family.thought_format, train_thoughts)
        self.stop_tokens = stop_tokens or [self.tokenizer.eos_token]
        formats = [ChatFormat(family.chat_template, family.template_exceptions), *family.other_formats]
        self.is_replaced, is_family = bool(replacement), replacement == "family"
        if replacement == "checkpoint":
            replacement = official_template(processor)
        if replacement and not is_family:
            processor.chat_template = replacement
            formats = [ChatFormat(replacement)]
        elif not all(GENERATION_TAG.search(format.template) for format in formats):
            raise ValueError(
                "the collator's chat_template has no {% generation %} tag, so no token would be trained. Put the tag "
                "around each reply and its end-of-turn token."
            )
        self.frame = self.frame_class(processor, self.stop_tokens)
        (self.text, self.exceptions), known = formats[0], variables_of(str(processor.chat_template))
        if replacement and not is_family:
            self.string_roles = find_string_roles(lambda *args: self._render(args[0], replacement, args[1])[0])
        elif len(formats) > 1:
            official_template(processor)  # raises an error if there is none to compare with
            self.text, self.exceptions = min(formats, key=self._distance)
        if unknown := self.given.keys() - variables_of(self.text) - known:
            raise ValueError(f"--template_kwargs: the chat template has no variable {min(unknown)!r}; remove it.")
        if is_family:  # the template is saved, and other programs do not know the values of its variables
            self.text = with_variables(self.text, self.kwargs)
            processor.chat_template, self.exceptions, self.string_roles = self.text, (), ()

    @property
    def is_tagged(self) -> bool:
        """Whether the training template marks the replies with tags."""
        return bool(GENERATION_TAG.search(self.text))

    @property
    def prompt_kwargs(self) -> dict:
        """The template variables for prompts. Unlike `kwargs`, they may turn thinking on."""
        return self.kwargs | self.given

    @property
    def takes_videos(self) -> bool:
        return getattr(self.processor, "video_processor", None) is not None

    # ---- messages -> text ----

    def render(self, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """Return the training text of messages, and the character spans to train.

        Raises:
            UnfitTemplate: the template does not support something in the messages.
        """
        messages = self.thoughts_and_tools.placed(messages)
        if self.thoughts_and_tools.are_rendered(messages):
            text, spans = self.thoughts_and_tools.render(messages)
            self.check_media(text, messages)
            return with_line_breaks_apart(text, spans)
        if self.is_tagged:
            roles = self.string_roles if self.is_replaced else ()
            text, spans = self._render(messages, self.text, roles, return_assistant_tokens_mask=True)
        else:
            text, spans = find_replies(messages, self.render_official, self.stop_tokens)
        replies = [message for message in messages if message["role"] == "assistant"]
        for token in self.frame.thought:
            if any(token in joined_text(reply["content"]) for reply in replies):
                raise UnfitTemplate(
                    f"a reply contains {token}, but this format already writes a thought before each reply, so there "
                    "would be two thoughts. Remove the thought, or begin the reply with a complete thought."
                )
        spans = [span for span, reply in zip(spans, replies, strict=True) if reply.get("train", True)]
        return with_line_breaks_apart(text, spans)

    def render_official(
        self,
        messages: list[dict],
        add_generation_prompt: bool = False,
        variables: dict | None = None,
        frame: FrameTokens | None = None,
    ) -> str:
        """Render messages with the checkpoint's own template, by default with thinking turned off."""
        frame = frame or self.frame
        tools = frame.marked(messages[0].get("tools") if messages else None)
        roles = self.string_roles
        return self._render(messages, self.official, roles, add_generation_prompt, variables, frame, tools=tools)[0]

    def render_prompt(self, messages: list[dict]) -> str:
        """Return the prompt for a reply, given messages that end with a question or a tool result."""
        messages = self.thoughts_and_tools.placed(messages)
        frame = self.thoughts_and_tools.frame if self.thoughts_and_tools.are_rendered(messages) else None
        return self.render_official(messages, True, self.prompt_kwargs, frame)

    def _render(
        self, messages, template, string_roles=(), add_generation_prompt=False, variables=None, frame=None, **kwargs
    ):
        plain = self._plain_messages(messages, frame or self.frame)
        for message in plain:
            # For tool results, and for questions in rows with tools, some templates expect a string (Llama).
            known = message["role"] == "tool" or kwargs.get("tools") and message["role"] == "user"
            is_string = known and all("text" in part for part in message["content"])
            if message["role"] in string_roles or is_string:
                if any("text" not in part for part in message["content"]):
                    raise UnfitTemplate(f"the chat template does not support media in a {message['role']} message.")
                message["content"] = "".join(part["text"] for part in message["content"])
        try:
            texts, spans = render_jinja_template(
                conversations=[plain],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **kwargs,
                **self.tokenizer.special_tokens_map,
                **(self.kwargs if variables is None else variables),
            )
        except (TemplateError, TypeError) as error:  # such as roles that the template refuses
            raise UnfitTemplate(f"the chat template cannot render the conversation: {error}") from error
        return texts[0], spans[0] if spans else []

    def writes_bos(self, text: str) -> bool:
        """Return whether a rendered text begins with BOS, so that the tokenizer must not add another one."""
        return bool(self.tokenizer.bos_token) and text.startswith(self.tokenizer.bos_token)

    def as_tokenized(self, text: str) -> str:
        """Add the BOS that the tokenizer would add to a rendered text, and remove reserved characters."""
        return ("" if self.writes_bos(text) else self._tokenizers_bos) + text.replace(RESERVED_CHARACTER, "")

    @cached_property
    def _tokenizers_bos(self) -> str:
        """The BOS that the tokenizer adds to a text without one, or ""."""
        return self.tokenizer.bos_token if self.tokenizer("").input_ids[:1] == [self.tokenizer.bos_token_id] else ""

    def request_options(self) -> dict:
        """Return the `extra_body` (OpenAI client) with which a server uses the same prompt as in training.

        A server does not know our template variables. Also, vLLM (0.32) adds no special tokens to a rendered prompt.
        Some templates, such as LLaVA's, leave `<s>` to the tokenizer, so their prompts would lack it.
        """
        # Several prompts, since some templates write a date only without images, and some drop earlier thoughts.
        asked = [conversation(("user", "image", "?")), conversation(("user", "?")), EXAMPLES[0] + EXAMPLES[0][:1]]
        trained, served = ([self.render_official(q, True, given) for q in asked] for given in (self.prompt_kwargs, {}))
        options = {"add_special_tokens": True} if self._tokenizers_bos and not self.writes_bos(trained[0]) else {}
        return options | ({"chat_template_kwargs": self.prompt_kwargs} if served != trained else {})

    # ---- what it supports ----

    def check_layout(self, messages: list[dict]) -> None:
        """Refuse messages that the format does not support, such as videos or a reply before the first question, and
        videos without times if the model needs times.

        Raises:
            ValueError: a message is not supported. The error's text is meant to follow "train.json, sample 7: ".
        """
        self.thoughts_and_tools.check(self.thoughts_and_tools.placed(messages))
        if not self.takes_videos and any(part["type"] == "video" for part in content_parts({"messages": messages})):
            raise ValueError("the model does not support videos")
        if self.told_times and any("untimed" in part for part in content_parts({"messages": messages})):
            raise ValueError(UNTIMED)
        if any("train" in message for message in messages) and not self.replies_only:
            raise ValueError('"train": false has no effect with --mask_question_tokens False, which trains all text')
        roles = "".join(message["role"][0] for message in messages if message["role"] != "system")
        for order, (_, what, fix) in ORDERS.items():
            if re.search(order, roles) and order not in self.orders:
                raise ValueError(f"{what}, which the chat template does not support; {fix}")

    @cached_property
    def orders(self) -> set[str]:
        """The ORDERS that both the checkpoint's template and ours support."""
        found = set()
        for order, (messages, *_) in ORDERS.items():
            with suppress(UnfitTemplate):
                self.render_official(messages)
                replies = sum(message["role"] == "assistant" for message in messages)
                if len(self.render(messages)[1]) == replies and not self.differences_in(messages):
                    found.add(order)
        return found

    def check_rendering(self, messages: list[dict]) -> None:
        """Raise an UnfitTemplate if a --chat_template drops media, or has no tags and replies cannot be found."""
        if self.is_replaced:
            self.check_media(self.render(messages)[0], messages)

    def check_media(self, text: str, messages: list[dict]) -> None:
        """Raise an UnfitTemplate if the rendered text has more or fewer media than the messages."""
        kinds = [part["type"] for part in content_parts({"messages": messages})]
        for kind in {*kinds} - {"text"}:
            names = (f"{kind}_placeholder_token", f"{kind}_token")  # Qianfan-OCR's text placeholder is not a token
            token = next(getattr(self.processor, name) for name in names if hasattr(self.processor, name))
            if (found := text.count(token)) != (number := kinds.count(kind)):
                raise UnfitTemplate(f"the chat template writes {token} {found} times for {number} {kind}(s).")

    # ---- control strings ----

    def holds_frame_tokens(self, messages: list[dict]) -> bool:
        """Return whether the texts of these messages contain a frame token, which is then kept as plain text."""
        frame = self.thoughts_and_tools.frame if self.thoughts_and_tools.are_rendered(messages) else self.frame
        messages = self.thoughts_and_tools.placed(messages)
        said = [[joined_text(m["content"]), *(m.get(name) for name in (*MESSAGE_FIELDS, "tools"))] for m in messages]
        return frame.marked(said) != said

    def _plain_messages(self, messages: list[dict], frame: FrameTokens) -> list[dict]:
        """Return the messages for a template, without pixels and with the frame tokens in texts marked."""
        named = lambda m: {name: frame.marked(m[name]) for name in MESSAGE_FIELDS if m.get(name)}  # noqa: E731
        parts = [plain_parts(message["content"], frame) for message in messages]
        return [{"role": m["role"], "content": content} | named(m) for m, content in zip(messages, parts)]

    # ---- comparison with the checkpoint's template ----

    @property
    def official(self) -> str:
        """The checkpoint's own template."""
        return official_template(self.processor)

    def _distance(self, format: ChatFormat) -> float:
        """Switch to a format and return how much its texts differ from the checkpoint's texts, summed over EXAMPLES."""
        self.text, self.exceptions = format
        return sum(1 - SequenceMatcher(None, *pair).ratio() for pair in self.differences())

    def differences(self) -> list[tuple[str, str]]:
        """Compare the training template with the checkpoint's.

        Returns:
            (our text, the checkpoint's text) for each example that differs by more than `exceptions`. Empty if the
            checkpoint has no template.
        """
        differences = []
        for messages in EXAMPLES if self.processor.chat_template else ():
            if not hasattr(self.processor, "video_token") and any(p["type"] == "video" for p in messages[0]["content"]):
                continue
            try:
                differences += self.differences_in(messages)
            except UnfitTemplate:
                continue  # the data may not contain what this --chat_template does not support
        return differences

    def differences_in(self, messages: list[dict]) -> list[tuple[str, str]]:
        """Compare the training text of a conversation and the prompts for its replies with the checkpoint's template.

        Returns:
            (our text, the checkpoint's text) of the conversation and of each prompt, if they differ by more than
            `exceptions`. Empty if the checkpoint has no template, or if its template is also used for training. A
            reply that begins the conversation has no prompt to compare.

        Raises:
            UnfitTemplate: the training template cannot render the conversation.
        """
        if not self.is_tagged or not self.processor.chat_template:
            return []
        messages = self.thoughts_and_tools.placed(messages)
        if self.thoughts_and_tools.are_rendered(messages):  # with the checkpoint's template
            return []
        messages = [{name: message[name] for name in ("role", "content")} for message in messages]
        text, spans = self.render(messages)
        history_ends = [0, *(end for _, end in spans)]
        ours = as_official(self.exceptions, text[: history_ends[-2]], text[history_ends[-2] :])
        found = [(ours, text, self._official_text(messages))]
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for i, (start, _), history_end in zip(replies, spans, history_ends):
            if i == 0:
                continue
            header = text[history_end:start].replace(RESERVED_CHARACTER, "")
            ours = as_official(self.exceptions, text[:history_end]) + header
            found.append((ours, text[:start], self._official_text(messages[:i], add_generation_prompt=True)))
        # An exception need not apply to every conversation: our text may equal the checkpoint's without it.
        moved = [(ours, other) for ours, other, _, where in self.exceptions if where == "moved"]
        as_moved = lambda official: reduce(lambda text, pair: text.replace(*pair), moved, official)  # noqa: E731
        texts = [(ours, {ours, plain.replace(RESERVED_CHARACTER, "")}, official) for ours, plain, official in found]
        return [(ours, official) for ours, either, official in texts if not either & {official, as_moved(official)}]

    def _official_text(self, messages: list[dict], **kwargs) -> str:
        """Return the checkpoint's text. If its template fails, such as on a system message, return [the error]."""
        try:
            return self.render_official(messages, **kwargs).replace(RESERVED_CHARACTER, "")
        except UnfitTemplate as error:
            return f"[{error}]"


def with_line_breaks_apart(text: str, spans: list[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    """Prevent white space at a reply's start from merging into one token with the end of the generation prompt."""
    for start, _ in reversed(spans):
        if text[start - 1 : start + 1].isspace():
            text = text[:start] + RESERVED_CHARACTER + text[start:]
            spans = [(s + (s > start), e + (e > start)) for s, e in spans]
    return text, spans


def plain_parts(content: list[dict], frame: FrameTokens) -> list[dict]:
    """Return a message's parts for the template: media without pixels, and texts with frame tokens marked.

    The texts are searched as one string, since a template may concatenate them.
    """
    joined = joined_text(content)
    marks = frame.marks(joined)
    plain, begin = [], 0
    for part in content:
        if part["type"] != "text":
            plain.append({"type": part["type"]})
            continue
        end = begin + len(part["text"])
        cuts = [begin, *(mark for mark in marks if begin < mark <= end), end]
        plain.append({"type": "text", "text": RESERVED_CHARACTER.join(joined[i:j] for i, j in zip(cuts, cuts[1:]))})
        begin = end
    return plain


def as_official(exceptions: Iterable[TemplateException], history: str, last: str = "") -> str:
    """Undo the documented differences in our text, which consists of `history` and the last exchange, `last`."""
    for ours, official, _, where in exceptions:
        if where != "end":
            history = history.replace(ours, official)
        if where in ("everywhere", "moved"):
            last = last.replace(ours, official)
        elif where == "end" and last.endswith(ours):
            last = last.removesuffix(ours) + official
    # Unmark frame tokens last, so that the exceptions do not match frame tokens that a user typed.
    return (history + last).replace(RESERVED_CHARACTER, "")


@cache
def variables_of(template: str) -> set[str]:
    """Return the names of variables that a template reads but does not set."""
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        return meta.find_undeclared_variables(environment.parse(GENERATION.sub("", template)))  # Jinja has no such tag
    except TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not valid Jinja, line {error.lineno}: {error}") from error


def official_template(processor) -> str:
    """Return the chat template of a checkpoint."""
    template = processor.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template:
        raise ValueError("the checkpoint has no chat template; pass one with --chat_template.")
    return template


@contextmanager
def naming(source: str, processor) -> Iterator[None]:
    """Turn errors of the template and the processor into a ValueError that names the sample."""
    try:
        yield
    except UnfitTemplate as error:
        raise ValueError(f"{source}: {error}") from error
    except (ValueError, LookupError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{source}: {type(processor).__name__} refuses it: {error}") from error


def conversation(*turns: tuple[str, str | list[str]]) -> list[dict]:
    """Make canonical messages from (role, part, part, ...). The parts "image" and "video" stand for media."""
    part = lambda p: {"type": p} if p in ("image", "video") else {"type": "text", "text": p}  # noqa: E731
    return [{"role": role, "content": [part(p) for p in parts]} for role, *parts in turns]


PAIR = ("user", "Name a colour."), ("assistant", "Red.")
OLDER = ("user", "First", "image", "second", "image", "Which is older?"), ("assistant", "The first.")
EXAMPLES = [
    conversation(*PAIR),
    conversation(("system", "Be brief."), ("user", "image", "What is it?"), ("assistant", "A cat.")),
    conversation(*OLDER, ("user", "Why?"), ("assistant", "It is grey.")),
    conversation(("user", "video", "What happens?"), ("assistant", "A ball rolls.")),
]

# Orders of roles (patterns of first letters) that some templates do not support -> example, fault, fix.
ORDERS = {
    "^a": (conversation(("assistant", "Hello."), *PAIR), "begins with a reply", "put a user message before"),
    "uu": (conversation(("user", "I see."), *PAIR), "has two user messages in a row", "merge them into one message"),
}
