"""Read a row's thoughts, tools, tool calls and tool results in formats of OpenAI, TRL, LLaMA-Factory and ms-swift.

    a thought   `reasoning_content` or `reasoning` of a reply, or <think>...</think> at the start of its text
    tools       `tools` of the row: a list of JSON schemas; the list or each schema may be JSON text
    calls       `tool_calls` of a reply, or messages of role `function_call` or `tool_call` with the calls as JSON
    thoughts and calls may also be content parts of a reply, of the types `reasoning` and `tool_call`
    a result    a message of role `tool`, `observation` or `tool_response`

The canonical messages get the fields `reasoning_content` and `tool_calls`, and the first message the field `tools`.
Calls and results without an id get one. If a thought was in the text of a reply, `typed_thought` keeps its original
text, since some templates do not support thoughts.
"""

import json
import re
from itertools import count

THOUGHTS = ("reasoning_content", "reasoning")
CALLERS = ("function_call", "tool_call")  # roles of messages that contain calls
ROLE_NAMES = dict.fromkeys(("tool", "observation", "tool_response"), "tool") | dict.fromkeys(CALLERS, "assistant")
ROLE_NAMES |= {"developer": "system"}  # a role in a file -> the canonical role
OF_REPLY, OF_RESULT = (*THOUGHTS, "tool_calls"), ("tool_call_id", "name")  # keys of messages
KEYS = {*OF_REPLY, *OF_RESULT}
HEAD = re.compile(r"\A\s*<think>(.*?)</think>\n*", re.DOTALL)
# One letter per role; C is a reply with calls. Results (T) follow all calls, and an answer follows each question (U).
TURNS = re.compile("S?A?(U+(CT+)*A)*U+(CT+)*[AC]")


def keys_of(role: object) -> tuple[str, ...]:
    """Return the keys that are read from a message with this role, as spelled in the file."""
    return OF_RESULT if isinstance(role, str) and ROLE_NAMES.get(role) == "tool" else OF_REPLY


def fields_of(turn: dict, role: str, where: str) -> dict:
    """Return the thought and calls of a message, or the id and name of a result. `role` is canonical."""
    if KEYS.isdisjoint(turn):
        return {}
    if role == "tool":
        return {name: turn[name] for name in OF_RESULT if isinstance(turn.get(name), str)}
    fields, given = {}, {name: turn[name] for name in THOUGHTS if turn.get(name) not in (None, "")}
    if len({*map(repr, given.values())}) > 1:
        raise ValueError(f"{where} has both `reasoning_content` and `reasoning`; keep one")
    for name, thought in given.items():
        if not isinstance(thought, str):
            raise ValueError(f"{where}.{name} must be text, not {type(thought).__name__}")
        fields |= {"reasoning_content": thought} if thought.strip() else {}
    if turn.get("tool_calls"):
        fields["tool_calls"] = calls_of(turn["tool_calls"], f"{where}.tool_calls")
    if fields and role != "assistant":
        raise ValueError(f"{where} has `{next(iter(fields))}` in role {role!r}; only a reply may have this field")
    return fields


def without_parts(turn: dict, content: list, where: str) -> tuple[dict, list]:
    """Return a reply whose thought and call parts are moved to fields, and its other content parts."""
    found, others = {}, []
    for i, part in enumerate(content):
        kind, value = (part.get("type"), part.get("value")) if isinstance(part, dict) else (None, None)
        if kind == "tool_call":
            found["tool_calls"] = [*found.get("tool_calls", []), *calls_of(value, f"{where}[{i}].value")]
        elif kind == "reasoning":
            before = found.get("reasoning_content")
            found["reasoning_content"] = f"{before}\n{value}" if before else value
        else:
            others.append(part)
    if both := [name for name in found if turn.get(name)]:
        raise ValueError(f"{where} has a part that repeats `{both[0]}` of the message; keep one")
    return turn | found, others


def called(value: object, where: str) -> tuple[str | None, dict]:
    """Return the thought at the start of a message of calls, if there is one, and the calls."""
    match = HEAD.match(value) if isinstance(value, str) else None
    calls = calls_of(value[match.end() :] if match else value, where)
    return match and match[0], {"tool_calls": calls}


def without_head(message: dict, where: str) -> dict:
    """Move a thought at the start of a reply's text to the fields of the message."""
    content = message["content"]
    match = HEAD.match(content[0].get("text", "")) if content else None
    if not match:
        return message
    if "reasoning_content" in message:
        raise ValueError(f"{where} has a thought in its text and another in `reasoning_content`; keep one")
    rest = {"type": "text", "text": content[0]["text"][match.end() :]}
    thought = {"reasoning_content": match[1].strip("\n")} if match[1].strip() else {}
    return message | thought | {"typed_thought": match[0], "content": [rest, *content[1:]]}


def tools_of(row: dict) -> list[dict]:
    """Return the tools of a row, each as {"type": "function", "function": ...}."""
    if not row.get("tools"):
        return []
    try:
        tools = parsed_json(row["tools"], "tools")
        tools = [parsed_json(tool, f"tools[{i}]") for i, tool in enumerate(tools)] if isinstance(tools, list) else tools
    except ValueError as error:
        raise ValueError(f"{error} (--columns tools= ignores it)") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("`tools` must be a list of JSON schemas (--columns tools= ignores it)")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def calls_of(value: object, where: str) -> list[dict]:
    """Return calls, each {"type": "function", "function": {"name": str, "arguments": dict}}, and "id" if given."""
    value = parsed_json(value, where)
    calls = []
    for i, call in enumerate(value if isinstance(value, list) else [value]):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}[{i}] must be an object with the `name` and the `arguments` of a call")
        arguments = parsed_json(function.get("arguments") or {}, f"{where}[{i}].arguments")
        if not isinstance(arguments, dict):
            raise ValueError(f"{where}[{i}].arguments must be a JSON object, not {type(arguments).__name__}")
        has_id = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append(has_id | {"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def parsed_json(value: object, where: str) -> object:
    """Return a value, parsed as JSON if it is text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"`{where}` is not valid JSON: {error}") from error


def merged(messages: list[dict]) -> list[dict]:
    """Merge each message that has only calls into the reply or the calls before it."""
    if not any("tool_calls" in message for message in messages):
        return messages
    found = []
    for message in messages:
        calls = not message["content"] and message.get("tool_calls")
        is_more = calls and found and found[-1]["role"] == "assistant" and "reasoning_content" not in message
        if is_more and message.get("train") == found[-1].get("train"):
            found[-1] = found[-1] | {"tool_calls": [*found[-1].get("tool_calls", []), *calls]}
        else:
            found.append(message)
    return found


def add_ids(messages: list[dict]) -> None:
    """Add missing ids. A result gets the id of the first unanswered call, if possible of one with its name."""
    numbers, open_calls = count(1), []
    for message in messages:
        if "tool_calls" in message:
            open_calls = message["tool_calls"]
            for call, number in zip(open_calls, numbers):
                call.setdefault("id", f"call{number:05}")  # nine characters, as Mistral's ids have
        elif message["role"] == "tool" and open_calls:
            named = (call for call in open_calls if call["function"]["name"] == message.get("name"))
            message.setdefault("tool_call_id", next(named, open_calls[0])["id"])
            open_calls = [call for call in open_calls if call["id"] != message["tool_call_id"]]


def fit_together(messages: list[dict]) -> bool:
    """Whether the messages of a row form a conversation in a valid order."""
    letters = {"system": "S", "user": "U", "tool": "T"}
    turns = "".join(letters.get(m["role"], "C" if "tool_calls" in m else "A") for m in messages)
    return bool(TURNS.fullmatch(turns))
