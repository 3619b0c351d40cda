"""Stand-in for the generation code of Qwen-VL-Chat: the text and tokens of a prompt."""


def make_context(tokenizer, query, history=(), system=""):
    """history: (query, response) of the turns before."""
    break_ids, text, tokens = tokenizer.encode("\n"), "", []

    def add(role, content):
        nonlocal text, tokens
        text += f"<|im_start|>{role}\n{content}<|im_end|>\n"
        for part in (role, content):
            tokens += [tokenizer.im_start_id] * (part is role) + tokenizer.encode(
                part, allowed_special=set(tokenizer.IMAGE_ST)
            )
            tokens += break_ids if part is role else [tokenizer.im_end_id, *break_ids]

    add("system", system)
    for past_query, response in history:
        add("user", past_query)
        add("assistant", response)
    add("user", query)
    tokens += [tokenizer.im_start_id, *tokenizer.encode("assistant"), *break_ids]
    return text + "<|im_start|>assistant\n", tokens
