"""Chat with a model in a terminal, or answer one question per line of standard input. Answers are written to standard
output; everything else, including thoughts, is written to standard error.
"""

import contextlib
import os
import sys

import torch

from evaluation.answers import stream_answer
from reading.media import open_part
from reading.options import MediaOptions
from reading.references import describe, is_url

COMMANDS = """\
Type a question or a command:
  /image PATH  add an image to the next question
  /video PATH  add a video to the next question
  /clear       start a new conversation
  /quit        end the chat (Ctrl-C stops only the current answer)"""


class Conversation:
    """The messages so far, and the media to send with the next question.

    Args:
        reading: flags that control how media are read (arguments.ReadingArguments).
        system_prompt: the system message at the start of each conversation.
    """

    def __init__(self, reading, system_prompt: str | None = None):
        self.options = MediaOptions.of(reading)
        self.folders = {"image": reading.image_folder or "", "video": reading.video_folder or ""}
        self.system_prompt = system_prompt
        self.clear()

    def clear(self) -> None:
        self.messages, self.media = [], []
        if self.system_prompt is not None:
            self.messages.append({"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})

    def add(self, kind: str, reference: str) -> str:
        """Open an "image" or a "video" for the next question, and return a line that describes it.

        Raises:
            ValueError: the file cannot be opened; the message names the file.
        """
        if not is_url(reference):
            reference = os.path.join(self.folders[kind], os.path.expanduser(reference))
        part = open_part({"type": kind, kind: reference}, self.options)
        if kind == "image":
            size = "{0.width}x{0.height} pixels".format(part["image"])
        else:
            number, height, width, _ = part["video"].shape
            size = f"{number} frames of {width}x{height} pixels"
        self.media.append(part)
        return f"{kind} {describe(reference)}, {size}"

    def ask(self, model, collator, question: str, max_new_tokens: int) -> None:
        """Print the answer as it is generated. After an interruption, keep what was generated, unless it is empty.

        Raises:
            ValueError: the model refuses the question. The question and its media are dropped.
        """
        content, self.media = [*self.media, {"type": "text", "text": question}], []
        messages, reply, is_whole = [*self.messages, {"role": "user", "content": content}], "", False
        split, printed = collator.template.thoughts_and_tools.split, ["", ""]

        def show(*texts: str) -> None:
            for i, (text, file) in enumerate(zip(texts, (sys.stderr, sys.stdout))):
                if i and text and printed[0] and not printed[i]:
                    note("")
                print(text.removeprefix(printed[i]), end="", file=file, flush=True)
                printed[i] = text

        with contextlib.suppress(KeyboardInterrupt):
            with contextlib.closing(stream_answer(model, collator, messages, max_new_tokens)) as pieces:
                for piece in pieces:
                    reply += piece if reply else piece.lstrip()
                    show(*split(reply, is_whole=False))
            is_whole = True
        thought, answer = split(reply)
        show(printed[0], answer)
        print(flush=True)
        if reply or is_whole:
            answer = answer.strip()
            said = {"role": "assistant", "content": [{"type": "text", "text": answer}], "reasoning_content": thought}
            self.messages = [*messages, said]


def chat(model, collator, conversation: Conversation, max_new_tokens: int) -> None:
    """Answer typed questions, or each line of piped input, until the input ends.

    Raises:
        ValueError: the input was piped, and some of its lines could not be answered.
    """
    is_typed, refused = sys.stdin.isatty(), 0
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` line editing and a history
        note(COMMANDS)
    while True:
        try:
            line = input("> " if is_typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            if is_typed:
                note("")
            break
        command, _, rest = line.partition(" ")
        if command == "/quit":
            break
        try:
            if command in ("/image", "/video"):
                if command == "/video" and not collator.template.takes_videos:
                    raise ValueError("the model does not accept videos")
                # When a file is dropped on a terminal, its path arrives in quotes.
                note(conversation.add(command[1:], rest.strip().strip("'\"")))
            elif command == "/clear":
                conversation.clear()
                note("Started a new conversation.")
            elif command.startswith("/"):
                raise ValueError(f"{command} is not a command; use /image, /video, /clear or /quit")
            elif line:
                conversation.ask(model, collator, line, max_new_tokens)
        except (ValueError, torch.OutOfMemoryError) as error:
            refused += 1
            note(f"Error: {error}")
    if refused and not is_typed:
        raise ValueError(f"{refused} lines of the input could not be answered; see the errors above.")


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
