"""Training on a chat template without {% generation %} tags: its replies are found by rendering."""


class UnfitTemplate(ValueError):
    """A chat template that cannot render a conversation, or not in a way that shows where the replies are."""


PROBE = {"system": "Be brief.", "user": "Name a colour.", "assistant": "Red."}


def find_replies(
    messages: list[dict], render, stop_tokens: list[str], chosen: list[int] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Render message by message: a reply begins where the prompt for it ends, and ends with a stop token.

    A template may end a reply with the stop token that the next message begins with (GLM's `<|user|>`). One that writes
    none at all teaches no end: there, the first one is put in the place of the white space that it ends the reply with.

    Args:
        messages: a canonical sample's.
        render: `render(messages, add_generation_prompt=False)` gives the template's text.
        stop_tokens: any of them ends generation.
        chosen: the places of the replies to find, by default of all.

    Returns:
        The training text and the character span of each reply, its stop token included.

    Raises:
        UnfitTemplate: a prompt is not the beginning of the text that follows from it.
    """
    text, rendered, spans = "", "", []  # what is trained on, and as the template renders it
    if chosen is None:
        chosen = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in chosen:
        prompt, history = render(messages[:i], add_generation_prompt=True), render(messages[: i + 1])
        for longer, shorter in ((prompt, rendered), (history, prompt)):
            if not longer.startswith(shorter):
                raise UnfitTemplate(
                    "the chat template renders a conversation differently from the prompt for its reply: "
                    f"{shorter[-80:]!r} is not the beginning of {longer[: len(shorter)][-80:]!r}. Give a template with "
                    "{% generation %} tags with --chat_template, or add a family (docs/add_new_model.md)."
                )
        reply = history[len(prompt) :]
        text += prompt[len(rendered) :]
        ends = [at + len(token) for token in stop_tokens if (at := reply.find(token)) >= 0]
        header = "" if ends else following_header(messages[i], render)
        if token := next((token for token in stop_tokens if header.startswith(token)), None):
            ends = [len(reply) + len(token)]
            reply += token if i == chosen[-1] else ""  # else it begins what follows
        elif not ends:
            typed = joined_text(messages[i]["content"])
            kept, own_space = reply.rstrip(), typed[len(typed.rstrip()) :]
            reply = kept + (own_space if reply.startswith(kept + own_space) else "") + stop_tokens[0]
            ends = [len(reply)]
        spans.append((len(text), len(text) + min(ends)))
        text += reply
        rendered = history
    return text, spans


def joined_text(content: list[dict]) -> str:
    """The text parts of a message as one."""
    return "".join(part.get("text", "") for part in content)


def following_header(reply: dict, render) -> str:
    """What the template writes right after a reply: the header of a result, if it calls a tool, or of a question."""
    text = [{"type": "text", "text": "x"}]
    asked = {"role": "user", "content": text}
    shown = [asked, reply | {"content": text, "reasoning_content": ""}]
    role = "tool" if "tool_calls" in reply else "user"
    before, after = render(shown), render([*shown, asked | {"role": role}])
    return after[len(before) :] if after.startswith(before) else ""


def find_string_roles(render) -> tuple[str, ...]:
    """The roles whose content a template takes as a string, where most take a list of parts.

    Args:
        render: `render(messages, string_roles)` gives the template's text, or raises an UnfitTemplate.

    Raises:
        UnfitTemplate: no choice of roles brings every text of a probe into the template's text.
    """
    for roles in (("system", "user", "assistant"), ("user", "assistant")):  # some refuse a system message
        messages = [{"role": role, "content": [{"type": "text", "text": PROBE[role]}]} for role in roles]
        for strings in ((), ("system",), ("assistant",), ("system", "assistant"), ("system", "user", "assistant")):
            try:
                text = render(messages, strings)
            except UnfitTemplate:
                continue
            if all(PROBE[role] in text for role in roles) and "'type'" not in text:
                return strings
    raise UnfitTemplate("the chat template renders neither a list of parts nor a string as a message's content.")


def with_variables(template: str, variables: dict) -> str:
    """A template with its variables, as a file that other programs read."""
    return "".join(f"{{% set {name} = {value!r} %}}" for name, value in variables.items()) + template
