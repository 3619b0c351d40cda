"""Render thoughts, tools, tool calls and tool results, whose format is only in the checkpoint's own template.

A conversation with any of these is trained with that template, never with the family's. A reply is the text that the
template adds to the prompt for this reply. Many templates drop the thoughts of earlier turns, so the rendered
conversation may show an earlier reply differently from what the model wrote. A reply before the last question is thus
trained only if the conversation up to the reply's end is exactly the prompt for the reply, followed by the reply.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial

from collators.untagged_template import UnfitTemplate, find_replies, joined_text, with_variables
from reading.strict_json import strict_json

MESSAGE_FIELDS = ("reasoning_content", "tool_calls", "tool_call_id", "name")  # field names in templates
THINKING = {"enable_thinking": True}
SERVER_TEMPLATE = "server_chat_template.jinja"  # in the output folder, next to the checkpoint's template
GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")  # tags that some servers do not support
WORD = {"type": "object", "properties": {"word": {"type": "string", "description": "The word."}}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up a word.", "parameters": WORD}}
CALL = {"id": "call00001", "type": "function", "function": {"name": "look_up", "arguments": {"word": "crimson"}}}


def message(role: str, text: str, **fields) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}] if text else [], **fields}


THOUGHT_EXAMPLE = [message("user", "Name a colour."), message("assistant", "Red.", reasoning_content="Hm, a colour.")]
TOOL_EXAMPLE = [
    *(message("user", "Name a colour.", tools=[TOOL]), message("assistant", "", tool_calls=[CALL])),
    *(message("tool", "Found it.", tool_call_id=CALL["id"], name="look_up"), message("assistant", "Red.")),
]
IMAGE = {"content": [{"type": "image"}]}
# What a template may not support -> its name in errors, an example that contains it, and a string that the rendered
# example must contain ("" stands for the image token).
PARTS = {
    "tools": ("`tools`", TOOL_EXAMPLE[:1], "Looks up a word."),
    "tool_calls": ("a tool call (`tool_calls`)", TOOL_EXAMPLE[:2], "crimson"),
    "tool": ("a tool result", TOOL_EXAMPLE, "Found it."),
    "asked": ("an image in the first question next to `tools`", [TOOL_EXAMPLE[0] | IMAGE], ""),
    "found": ("an image in a tool result", [*TOOL_EXAMPLE[:2], TOOL_EXAMPLE[2] | IMAGE], ""),
}
NO_PLACE = (
    "contains {}, which the chat template does not support. Remove the row, or pass a template that supports this with "
    "--chat_template"
)


class ThoughtsAndTools:
    """Renders conversations with thoughts or tools. `thought_format` and `train_thoughts` are the collator's."""

    def __init__(self, template, thought_format: str, train_thoughts: bool):
        self.template, self.thought_format, self.train_thoughts = template, thought_format, train_thoughts
        self._written: dict[str, bool] = {}
        self._marks = {} if template.processor.chat_template else {False: None, True: None}

    def are_in(self, messages: list[dict]) -> bool:
        return has_thought(messages) or any({"tools", "tool_calls"} & message.keys() for message in messages)

    def are_rendered(self, messages: list[dict]) -> bool:
        """Return whether a conversation is trained with the checkpoint's own template. That is so if it has thoughts or
        tools, or if it has earlier replies that are not trained and whose empty thoughts the template drops.
        """
        has_history = any(message["role"] == "assistant" for message in messages[: last_question(messages)])
        return self.are_in(messages) or has_history and not has_several(messages) and bool(self._left_out)

    def placed(self, messages: list[dict]) -> list[dict]:
        """Write boxes as text. If the template does not support thoughts, put typed thoughts back into the text."""
        messages = self.template.boxes.written(messages)
        if not any("typed_thought" in m for m in messages) or self._around_thought(thinking=True):
            return messages
        return [as_typed(message) if "typed_thought" in message else message for message in messages]

    # ---- what the checkpoint's template supports ----

    def check(self, messages: list[dict]) -> None:
        """Raise an UnfitTemplate if the messages contain something that the template does not write."""
        if has_thought(messages) and not self._around_thought():
            name = "a thought (`reasoning_content`)"
            if not self._around_thought(thinking=True):
                raise UnfitTemplate(NO_PLACE.format(name))
            raise UnfitTemplate(
                f"contains {name}, but the prompt tells the model not to think: add --template_kwargs "
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
        """Return what the template writes before and after a reply's thought, or None if it writes no thoughts."""
        if thinking not in self._marks:
            self._marks[thinking] = None
            with suppress(UnfitTemplate):
                render = self._renderer(THOUGHT_EXAMPLE, self.template.prompt_kwargs | (THINKING if thinking else {}))
                text, [(start, end)] = find_replies(THOUGHT_EXAMPLE, render, self.template.stop_tokens)
                before, thought, rest = text[start:end].partition("Hm, a colour.")
                behind, answer, _ = rest.partition("Red.")
                self._marks[thinking] = (before, behind) if thought and answer else None
        return self._marks[thinking]

    def _writes(self, part: str) -> bool:
        """Whether the template supports this key of PARTS."""
        if part not in self._written:
            self._written[part], (_, example, text) = False, PARTS[part]
            with suppress(UnfitTemplate):
                found = self.template.render_official(example, add_generation_prompt=example[-1]["role"] != "assistant")
                self._written[part] = (text or self.template.processor.image_token) in found
        return self._written[part]

    def notes(self, conversations: list[list[dict]]) -> list[str]:
        """Return notes for the user about template variables and about thoughts in these conversations."""
        notes = []
        if self.template.given:
            notes.append(
                f"A server needs the same template variables. For vLLM and SGLang, add to each request: "
                f"chat_template_kwargs={strict_json(self.template.given)}."
            )
        several = any(has_thought(c) and has_several(c) for c in conversations)
        if several and self._around_thought() and len(self.render(THOUGHT_EXAMPLE * 2)[1]) < 2:
            notes.append(
                "The chat template drops the thoughts of earlier replies, so only the replies after the last question "
                "are trained. Add --train_replies each to train every reply, as a separate sample."
            )
        if self._adds_empty_thoughts(conversations):
            fix = "train with --train_replies each"
            if self._keeps_thoughts:
                fix = "train and serve with --template_kwargs '{\"preserve_thinking\": true}'"
            elif self.server_template(conversations):
                fix = f"start the server with {SERVER_TEMPLATE} from the output folder"
            notes.append(
                "Each reply is trained after an empty thought, but a server's chat template drops the empty thoughts "
                f"of earlier replies. To get the same prompts when serving, {fix}."
            )
        return notes

    def server_template(self, conversations: list[list[dict]]) -> str | None:
        """Return a server template that renders these conversations as trained, or None if unneeded or impossible."""
        if not self._adds_empty_thoughts(conversations) or self._keeps_thoughts or any(map(self.are_in, conversations)):
            return None
        text = with_variables(self.template.text, self.template.kwargs)
        return GENERATION.sub(lambda tag: "{% endif %}" if tag[1] else "{% if true %}", text)

    def _adds_empty_thoughts(self, conversations: list[list[dict]]) -> bool:
        """Return whether a conversation is trained with empty thoughts that the checkpoint's template drops."""
        several = any(has_several(c) and not has_thought(c) for c in conversations)
        return several and not self.template.is_replaced and bool(self._left_out)

    @property
    def _keeps_thoughts(self) -> bool:
        return "preserve_thinking" in self.template.official

    def split(self, answer: str, is_whole: bool = True) -> tuple[str, str]:
        """Split a generated answer into its thought ("" if there is none) and the text after the thought.

        Args:
            is_whole: False while the answer is being generated, when text without an end of a thought may be a thought.
        """
        before, behind = (mark.strip() for mark in self._around_thought() or ("", ""))
        thought, mark, rest = answer.partition(behind) if behind else (answer, "", "")
        if mark or behind and not is_whole:
            thought = thought.strip()
            return "" if before.startswith(thought) else thought.removeprefix(before).strip(), rest.strip()
        return "", answer

    def parts_of(self, reply: str) -> list[tuple[str, str]]:
        """Split a trained reply into (kind, text) pairs, in order. The kinds are "thought", "answer" and "call"."""
        _, behind = self._around_thought(thinking=True) or ("", "")
        mark, start = behind.strip(), 0
        if mark and mark in reply:  # the white space after the mark may be missing before a call
            start = reply.find(mark) + len(mark)
            start += len(os.path.commonprefix([behind[len(behind.rstrip()) :], reply[start:]]))
        call = reply.find(self._before_call, start) if self._before_call else -1
        end = call if call >= 0 else len(reply)
        parts = [("thought", reply[:start]), ("answer", reply[start:end]), ("call", reply[end:])]
        return [(part, text) for part, text in parts if text]

    @cached_property
    def _before_call(self) -> str:
        """The text that the template writes between the start of a reply and the name of a called tool."""
        if not self._writes("tool_calls"):
            return ""
        render = self._renderer(TOOL_EXAMPLE[:2], self.template.kwargs)
        text, [(start, end)] = find_replies(TOOL_EXAMPLE[:2], render, self.template.stop_tokens)
        before, name, _ = text[start:end].partition("look_up")
        return before.strip() if name else ""

    # ---- messages -> text ----

    def render(self, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """Return the checkpoint's text of a conversation, and the spans to train.

        Raises:
            UnfitTemplate: the template does not support something in the messages, or the replies cannot be found.
        """
        self.check(messages)
        question = last_question(messages)
        shown = [i for i, message in enumerate(messages) if is_shown(message, i, question)]
        # Thinking is turned on only for trained thoughts, not for those that the template drops.
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
                    f"the chat template drops {left_out[0][:80]!r} from a reply (some do so next to a tool call)"
                )
        spans = [span for i, span in zip(replies, spans) if messages[i].get("train", True)]
        if not spans:
            raise UnfitTemplate("the chat template changes every trained reply, so none can be trained. Remove the row")
        if not self.train_thoughts:  # frame tokens are marked, so a typed one cannot end the thought
            parts = [dict(self.parts_of(text[start:end])) for start, end in spans]
            spans = [(start + len(of.get("thought", "")), end) for (start, end), of in zip(spans, parts)]
        return text, spans

    def _renderer(self, conversation: list[dict], variables: dict) -> Callable[..., str]:
        """Return a function `render(messages, add_generation_prompt=False)` for the first messages of a conversation.

        It uses the checkpoint's template and adds what this template drops: the empty thought at the end of the prompt
        for a reply, and (with `thought_format`) the thoughts that the model writes but the template does not.
        """
        official = partial(self.template.render_official, frame=self.frame)
        whole, prompts = official(conversation, False, variables), {}
        thinks = "enable_thinking" not in self.template.official or variables.get("enable_thinking")

        def completed(text: str, messages: list[dict]) -> str:
            for i, prompt in prompts.items():
                if i >= len(messages):
                    break
                if not conversation[i].get("train", True) and i < len(conversation) - 1:
                    continue  # leave an untrained reply as a server renders it
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
                    # With thinking off, the prompt contains the empty thought, so the model does not write it.
                    untold = official(conversation[:i], True, self.template.kwargs)
                    prompt = untold if whole.startswith(untold) else prompt
                prompts[i] = completed(prompt, conversation[:i])
                asked = conversation[: last_question(conversation[:i]) + 1]  # without any reply to this question
                if message.get("train", True) and prompts[i] != completed(prompt, asked):
                    raise UnfitTemplate(
                        "has a tool call without a thought, then another reply. The prompt for the call ends with an "
                        "empty thought, but the prompt for the reply does not. Add --train_replies each"
                    )

        def render(messages: list[dict], add_generation_prompt: bool = False) -> str:
            if add_generation_prompt:
                return prompts[len(messages)]
            return completed(official(messages, False, variables), messages)

        return render

    @cached_property
    def _left_out(self) -> str:
        """The empty or unfinished thought that ends a prompt, if later prompts drop it; otherwise ""."""
        if not self._around_thought(thinking=True):
            return ""
        official, asked = self.template.render_official, THOUGHT_EXAMPLE[:1]
        prompt, later = official(asked, True), official([*asked, message("assistant", "Red."), *asked])
        return prompt[len(os.path.commonprefix([prompt, later])) :]

    @cached_property
    def _empty_thought(self) -> str:
        """The empty thought that ends a prompt only if thinking is off, if later prompts drop it; otherwise ""."""
        official, asked = self.template.render_official, THOUGHT_EXAMPLE[:1]
        is_told = self._left_out and official(asked, True) != official(asked, True, self.template.kwargs | THINKING)
        return self._left_out if is_told else ""

    # ---- control strings ----

    @cached_property
    def frame(self):
        """The frame tokens, plus added tokens in the template's source, such as `</think>`."""
        frame = self.template.frame
        return frame.with_tokens(token for token in frame.added_tokens.values() if token in self.template.official)


def last_question(messages: list[dict]) -> int:
    """Return the index of the last user message, or 0 if there is none."""
    return max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)


def is_shown(message: dict, place: int, question: int) -> bool:
    """Return whether a message is a reply that is trained or follows the last question."""
    return message["role"] == "assistant" and place > 0 and (place > question or message.get("train", True))


def has_several(messages: list[dict]) -> bool:
    """Return whether a reply before the last question is trained."""
    return any(m["role"] == "assistant" and m.get("train", True) for m in messages[: last_question(messages)])


def has_thought(messages: list[dict]) -> bool:
    return any(message.get("reasoning_content") for message in messages)


def as_typed(message: dict) -> dict:
    """Put a message's thought back into its text, as it was typed."""
    fields = {name: value for name, value in message.items() if name not in ("typed_thought", "reasoning_content")}
    return fields | {"content": [{"type": "text", "text": message["typed_thought"]}, *message["content"]]}
