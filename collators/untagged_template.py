"""Train with a chat template that has no {% generation %} tags: find the replies by rendering."""


class UnfitTemplate(ValueError):
    """A chat template cannot render a conversation, or its text does not show where the replies are."""


EXAMPLE_TEXTS = {"system": "Be brief.", "user": "Name a colour.", "assistant": "Red."}


def find_replies(
    messages: list[dict], render, stop_tokens: list[str], chosen: list[int] | None = None
) -> tuple[str, list[tuple[int, int]]]:
    """Find replies by rendering message by message. A reply is the text from its prompt's end to a stop token.

    The stop token may be the one that begins the next message (GLM's `<|user|>`). If a template writes no stop
    token, the first of `stop_tokens` replaces the white space after the reply, so that the model learns to stop.

    Args:
        messages: the messages of a canonical sample.
        render: `render(messages, add_generation_prompt=False)` returns the template's text.
        stop_tokens: the tokens that end generation.
        chosen: the indices of the replies to find; by default all replies.

    Returns:
        The training text, and the character span of each reply with its stop token.

    Raises:
        UnfitTemplate: the text of a conversation does not begin with the prompt for its last reply.
    """
    text, rendered, spans = "", "", []  # the training text, and the text as the template renders it
    if chosen is None:
        chosen = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for i in chosen:
        prompt, history = render(messages[:i], add_generation_prompt=True), render(messages[: i + 1])
        for longer, shorter in ((prompt, rendered), (history, prompt)):
            if not longer.startswith(shorter):
                raise UnfitTemplate(
                    "the chat template renders a conversation differently from the prompt for its reply: "
                    f"{shorter[-80:]!r} is not the beginning of {longer[: len(shorter)][-80:]!r}. Pass a template that "
                    "has {% generation %} tags with --chat_template, or add a family (docs/add_new_model.md)."
                )
        reply = history[len(prompt) :]
        text += prompt[len(rendered) :]
        ends = [at + len(token) for token in stop_tokens if (at := reply.find(token)) >= 0]
        header = "" if ends else following_header(messages[i], render)
        if token := next((token for token in stop_tokens if header.startswith(token)), None):
            ends = [len(reply) + len(token)]
            reply += token if i == chosen[-1] else ""  # otherwise it begins the next message
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
    """Concatenate the text parts of a message."""
    return "".join(part.get("text", "") for part in content)


def following_header(reply: dict, render) -> str:
    """Return what follows a reply: the header of a tool result if the reply calls a tool, else of a question."""
    text = [{"type": "text", "text": "x"}]
    asked = {"role": "user", "content": text}
    shown = [asked, reply | {"content": text, "reasoning_content": ""}]
    role = "tool" if "tool_calls" in reply else "user"
    before, after = render(shown), render([*shown, asked | {"role": role}])
    return after[len(before) :] if after.startswith(before) else ""


def find_string_roles(render) -> tuple[str, ...]:
    """Find the roles whose content a template expects as a string instead of a list of parts.

    Args:
        render: `render(messages, string_roles)` returns the template's text, or raises an UnfitTemplate.

    Raises:
        UnfitTemplate: no choice of roles makes all texts of an example appear in the rendered text.
    """
    for roles in (("system", "user", "assistant"), ("user", "assistant")):  # some templates refuse system messages
        messages = [{"role": role, "content": [{"type": "text", "text": EXAMPLE_TEXTS[role]}]} for role in roles]
        for strings in ((), ("system",), ("assistant",), ("system", "assistant"), ("system", "user", "assistant")):
            try:
                text = render(messages, strings)
            except UnfitTemplate:
                continue
            if all(EXAMPLE_TEXTS[role] in text for role in roles) and "'type'" not in text:
                return strings
    raise UnfitTemplate("the chat template renders neither a list of parts nor a string as a message's content.")


def with_variables(template: str, variables: dict) -> str:
    """Return a template that sets these variables itself, for programs that do not know them."""
    return "".join(f"{{% set {name} = {value!r} %}}" for name, value in variables.items()) + template
