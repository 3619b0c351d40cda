"""Thoughts, tools, calls and their results: only the checkpoint's own template knows how it writes them.

So a conversation that has any is trained on that template's text, whatever the family's training template is, and each
reply is what the text has beyond the prompt for it. Many templates drop the thoughts of earlier turns. A reply before
the last question is then not what the model wrote at the time, and it is trained only where the text up to its end is
that of its own prompt and reply.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial

from collators.untagged_template import UnfitTemplate, find_replies, joined_text, with_variables
from reading.strict_json import strict_json

MESSAGE_FIELDS = ("reasoning_content", "tool_calls", "tool_call_id", "name")  # of messages, as templates know them
THINKING = {"enable_thinking": True}
SERVER_TEMPLATE = "server_chat_template.jinja"  # of an output folder, next to the checkpoint's own
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # tags that not all servers know
WORD = {"type": "object", "properties": {"word": {"type": "string", "description": "The word."}}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up a word.", "parameters": WORD}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": {"word": "crimson"}}}


def message(role: str, text: str, **fields) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}] if text else [], **fields}


THOUGHT_PROBE = [message("user", "Name a colour."), message("assistant", "Red.", reasoning_content="Hm, a colour.")]
TOOL_PROBE = [
    *(message("user", "Name a colour.", tools=[TOOL]), message("assistant", "", tool_calls=[CALL])),
    *(message("tool", "Found it.", tool_call_id=CALL["id"], name="look_up"), message("assistant", "Red.")),
]
IMAGE = {"content": [{"type": "image"}]}
# What a conversation holds -> how errors name it, the probe that has it, and what a template writes of it, or "" for an
# image.
PARTS = {
    "tools": ("`tools`", TOOL_PROBE[:1], "Looks up a word."),
    "tool_calls": ("a tool call (`tool_calls`)", TOOL_PROBE[:2], "crimson"),
    "tool": ("a tool result", TOOL_PROBE, "Found it."),
    "asked": ("an image in the first question next to `tools`", [TOOL_PROBE[0] | IMAGE], ""),
    "found": ("an image in a tool result", [*TOOL_PROBE[:2], TOOL_PROBE[2] | IMAGE], ""),
}
NO_PLACE = (
    "holds {}, for which the chat template has no place: leave the row out, or give a template that has one by "
    "--chat_template"
)


class ThoughtsAndTools:
    """Renders conversations that have any of these; its arguments are those of the collator."""

    def __init__(self, template, thought_format: str, train_thoughts: bool):
        self.template, self.thought_format, self.train_thoughts = template, thought_format, train_thoughts
        self._written: dict[str, bool] = {}
        self._marks = {} if template.processor.chat_template else {False: None, True: None}

    def are_in(self, messages: list[dict]) -> bool:
        return has_thought(messages) or any({"tools", "tool_calls"} & message.keys() for message in messages)

    def are_rendered(self, messages: list[dict]) -> bool:
        """Whether a conversation is trained on the checkpoint's own text.

        Without thoughts, where the history leaves out what the prompt had of one, and replies there are history alone.
        """
        has_history = any(message["role"] == "assistant" for message in messages[: last_question(messages)])
        return self.are_in(messages) or has_history and not has_several(messages) and bool(self._left_out)

    def placed(self, messages: list[dict]) -> list[dict]:
        """The messages with boxes written as text, and typed thoughts too if the template has no place for them."""
        messages = self.template.boxes.written(messages)
        if not any("typed_thought" in m for m in messages) or self._around_thought(thinking=True):
            return messages
        return [as_typed(message) if "typed_thought" in message else message for message in messages]

    # ---- what the checkpoint's template has a place for ----

    def check(self, messages: list[dict]) -> None:
        """Raise an UnfitTemplate that names what the messages hold and the template does not write."""
        if has_thought(messages) and not self._around_thought():
            name = "a thought (`reasoning_content`)"
            if not self._around_thought(thinking=True):
                raise UnfitTemplate(NO_PLACE.format(name))
            raise UnfitTemplate(
                f"holds {name}, but the prompt tells the model not to think: add --template_kwargs "
                "'{\"enable_thinking\": true}'"
            )
        held = {key for message in messages for key in (message["role"], *message)}
        first = next(message for message in messages if message["role"] == "user")
        for message in messages if "tools" in held or "tool" in held else ():
            if any(part["type"] == "image" for part in message["content"]):
                held |= {"found"} if message["role"] == "tool" else {"asked"} if message is first else set()
        for part, (name, _, _) in PARTS.items():
            if part in held and not self._writes(part):
                raise UnfitTemplate(NO_PLACE.format(name))

    def _around_thought(self, thinking: bool = False) -> tuple[str, str] | None:
        """What a reply has before its thought and after it; None where the template has no place for a thought."""
        if thinking not in self._marks:
            self._marks[thinking] = None
            with suppress(UnfitTemplate):
                render = self._renderer(THOUGHT_PROBE, self.template.prompt_kwargs | (THINKING if thinking else {}))
                text, [(start, end)] = find_replies(THOUGHT_PROBE, render, self.template.stop_tokens)
                before, thought, rest = text[start:end].partition("Hm, a colour.")
                behind, answer, _ = rest.partition("Red.")
                self._marks[thinking] = (before, behind) if thought and answer else None
        return self._marks[thinking]

    def _writes(self, part: str) -> bool:
        """Whether the template writes one of PARTS."""
        if part not in self._written:
            self._written[part], (_, probe, text) = False, PARTS[part]
            with suppress(UnfitTemplate):
                found = self.template.render_official(probe, add_generation_prompt=probe[-1]["role"] != "assistant")
                self._written[part] = (text or self.template.processor.image_token) in found
        return self._written[part]

    def notes(self, conversations: list[list[dict]]) -> list[str]:
        """Notes on the variables, and on the thoughts in these conversations, one per line."""
        notes = []
        if self.template.given:
            notes.append(
                f"Servers need the variables of the chat template too: vLLM and SGLang take them in each request, as "
                f"chat_template_kwargs={strict_json(self.template.given)}."
            )
        several = any(has_thought(c) and has_several(c) for c in conversations)
        if several and self._around_thought() and len(self.render(THOUGHT_PROBE * 2)[1]) < 2:
            notes.append(
                "The chat template drops the thoughts of earlier replies: in a conversation with thoughts, only what "
                "follows the last question is trained. --train_replies each trains every reply, as a sample of its own."
            )
        if self._adds_empty_thoughts(conversations):
            fix = "train with --train_replies each"
            if self._keeps_thoughts:
                fix = "train with --template_kwargs '{\"preserve_thinking\": true}', which they then need too"
            elif self.server_template(conversations):
                fix = f"give them {SERVER_TEMPLATE} from the output folder"
            notes.append(
                "Conversations are trained with the empty thought of each reply, which the chat template leaves out of "
                f"the history. For servers to keep it there too, {fix}."
            )
        return notes

    def server_template(self, conversations: list[list[dict]]) -> str | None:
        """The template with which servers show these as they are trained, where the checkpoint's own cannot."""
        if not self._adds_empty_thoughts(conversations) or self._keeps_thoughts or any(map(self.are_in, conversations)):
            return None
        text = with_variables(self.template.text, self.template.kwargs)
        return GENERATION.sub(lambda tag: "{% endif %}" if tag[1] else "{% if true %}", text)

    def _adds_empty_thoughts(self, conversations: list[list[dict]]) -> bool:
        """Whether some are trained in one pass with empty thoughts that the checkpoint's template leaves out."""
        several = any(has_several(c) and not has_thought(c) for c in conversations)
        return several and not self.template.is_replaced and bool(self._left_out)

    @property
    def _keeps_thoughts(self) -> bool:
        return "preserve_thinking" in self.template.official

    def split(self, answer: str, is_whole: bool = True) -> tuple[str, str]:
        """A generated answer -> its thought, "" if it has none, and what comes after it.

        Args:
            is_whole: False while it is being written, when what has no end of a thought yet may be one.
        """
        before, behind = (mark.strip() for mark in self._around_thought() or ("", ""))
        thought, mark, rest = answer.partition(behind) if behind else (answer, "", "")
        if mark or behind and not is_whole:
            thought = thought.strip()
            return "" if before.startswith(thought) else thought.removeprefix(before).strip(), rest.strip()
        return "", answer

    def parts_of(self, reply: str) -> list[tuple[str, str]]:
        """The text of a trained reply -> ("thought", "answer" or "call"; its text), in order."""
        _, behind = self._around_thought(thinking=True) or ("", "")
        mark, start = behind.strip(), 0
        if mark and mark in reply:  # calls may follow it without the white space that an answer does
            start = reply.find(mark) + len(mark)
            start += len(os.path.commonprefix([behind[len(behind.rstrip()) :], reply[start:]]))
        call = reply.find(self._before_call, start) if self._before_call else -1
        end = call if call >= 0 else len(reply)
        parts = [("thought", reply[:start]), ("answer", reply[start:end]), ("call", reply[end:])]
        return [(part, text) for part, text in parts if text]

    @cached_property
    def _before_call(self) -> str:
        """What the template writes between the start of a reply and the name of the tool that it calls."""
        if not self._writes("tool_calls"):
            return ""
        render = self._renderer(TOOL_PROBE[:2], self.template.kwargs)
        text, [(start, end)] = find_replies(TOOL_PROBE[:2], render, self.template.stop_tokens)
        before, name, _ = text[start:end].partition("look_up")
        return before.strip() if name else ""

    # ---- messages -> text ----

    def render(self, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """The checkpoint's text of a conversation, and the spans of what is trained.

        Raises:
            UnfitTemplate: the template has no place for what the messages hold, or hides where the replies are.
        """
        self.check(messages)
        question = last_question(messages)
        shown = [i for i, message in enumerate(messages) if is_shown(message, i, question)]
        # A thought that is not trained, since the template drops it, tells no other reply to think.
        thinks = has_thought([messages[i] for i in shown])
        for variables in (*[self.template.prompt_kwargs] * thinks, self.template.kwargs):
            render, replies = self._renderer(messages, variables), []
            whole = render(messages)
            for i in shown:
                prompt, history = messages[:i], messages[: i + 1]
                as_answered = whole.startswith(render(prompt, True)) and whole.startswith(render(history))
                replies += [i] * (as_answered or i > question and messages[i].get("train", True))
            if has_thought([messages[i] for i in replies]):
                break
        text, spans = find_replies(messages, render, self.template.stop_tokens, replies)
        for i, (start, end) in zip(replies, spans):
            said = [joined_text(messages[i]["content"])]
            said += [call["function"]["name"] for call in messages[i].get("tool_calls", ())]
            if left_out := [part for part in said if self.frame.marked(part).strip() not in text[start:end]]:
                raise UnfitTemplate(
                    f"the chat template drops {left_out[0][:80]!r} from a reply, such as text next to a tool call"
                )
        spans = [span for i, span in zip(replies, spans) if messages[i].get("train", True)]
        if not spans:
            raise UnfitTemplate("the chat template alters every trained reply of this sample")
        if not self.train_thoughts:  # which typed control strings cannot end
            parts = [dict(self.parts_of(text[start:end])) for start, end in spans]
            spans = [(start + len(of.get("thought", "")), end) for (start, end), of in zip(spans, parts)]
        return text, spans

    def _renderer(self, conversation: list[dict], variables: dict) -> Callable[..., str]:
        """`render(messages, add_generation_prompt=False)` for the first messages of a conversation.

        The checkpoint's text, and what its template leaves out of the history: the empty thought that the prompt for a
        reply ends with, and a thought that the model writes but no template does (`thought_format`).
        """
        official = partial(self.template.render_official, frame=self.frame)
        whole, prompts = official(conversation, False, variables), {}
        thinks = "enable_thinking" not in self.template.official or variables.get("enable_thinking")

        def completed(text: str, messages: list[dict]) -> str:
            for i, prompt in prompts.items():
                if i >= len(messages):
                    break
                if not conversation[i].get("train", True) and i < len(conversation) - 1:
                    continue  # of the history, as a server shows it
                thought = self.frame.marked(messages[i].get("reasoning_content", "")).strip()
                if not thought and not text.startswith(prompt):
                    begin = prompt.removesuffix(self._empty_thought)
                    text = prompt + text.removeprefix(begin) if text.startswith(begin) else text
                elif i == len(messages) - 1 and self.thought_format and thinks:
                    reply = text.removeprefix(prompt)
                    if text.startswith(prompt) and thought not in reply:
                        text = prompt + self.thought_format.format(thought) + reply
            return text

        for i, message in enumerate(conversation):
            if is_shown(message, i, last_question(conversation)):
                prompt = official(conversation[:i], True, variables)
                if not message.get("reasoning_content"):
                    # The prompt of a model that is told not to think: the empty thought is not the model's to write.
                    untold = official(conversation[:i], True, self.template.kwargs)
                    prompt = untold if whole.startswith(untold) else prompt
                prompts[i] = completed(prompt, conversation[:i])
                asked = conversation[: last_question(conversation[:i]) + 1]  # before any reply to this question
                if message.get("train", True) and prompts[i] != completed(prompt, asked):
                    raise UnfitTemplate(
                        "has a tool call without a thought, then another reply: the call's prompt ends with an empty "
                        "thought, the reply's does not. Add --train_replies each"
                    )

        def render(messages: list[dict], add_generation_prompt: bool = False) -> str:
            if add_generation_prompt:
                return prompts[len(messages)]
            return completed(official(messages, False, variables), messages)

        return render

    @cached_property
    def _left_out(self) -> str:
        """The thought that the prompt for a reply ends with, empty or begun, where the history leaves it out."""
        if not self._around_thought(thinking=True):
            return ""
        official, asked = self.template.render_official, THOUGHT_PROBE[:1]
        prompt, later = official(asked, True), official([*asked, message("assistant", "Red."), *asked])
        return prompt[len(os.path.commonprefix([prompt, later])) :]

    @cached_property
    def _empty_thought(self) -> str:
        """The empty thought of a model that can be told not to think, and is."""
        official, asked = self.template.render_official, THOUGHT_PROBE[:1]
        is_told = self._left_out and official(asked, True) != official(asked, True, self.template.kwargs | THINKING)
        return self._left_out if is_told else ""

    # ---- control strings ----

    @cached_property
    def frame(self):
        """Here the added tokens that the template writes, such as `</think>`, are plain text too inside a message."""
        frame = self.template.frame
        return frame.with_tokens(token for token in frame.added_tokens.values() if token in self.template.official)


def last_question(messages: list[dict]) -> int:
    """Where in a conversation the last question is."""
    return max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)


def is_shown(message: dict, place: int, question: int) -> bool:
    """Whether a message is a reply that follows the last question or is trained; another is history alone."""
    return message["role"] == "assistant" and place > 0 and (place > question or message.get("train", True))


def has_several(messages: list[dict]) -> bool:
    """Whether a reply before the last question is trained too."""
    return any(m["role"] == "assistant" and m.get("train", True) for m in messages[: last_question(messages)])


def has_thought(messages: list[dict]) -> bool:
    return any(message.get("reasoning_content") for message in messages)


def as_typed(message: dict) -> dict:
    """A message with its thought put back into the text, as it was typed."""
    fields = {name: value for name, value in message.items() if name not in ("typed_thought", "reasoning_content")}
    return fields | {"content": [{"type": "text", "text": message["typed_thought"]}, *message["content"]]}
