"""`--model_id auto` and `--chat_template`: any checkpoint, any template, or a clear refusal."""

import json
import shutil

import pytest
from conftest import AUTO, FACTS, golden_records, run, turns

import predict
import preview
import train
from collators import COLLATORS
from collators.untagged_template import UnfitTemplate, find_replies
from loaders import LOADERS, family_of
from reading.dataset import MultimodalDataset

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{{ part.text if part.type == 'text' else '<|image_pad|>' }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TAGGED = """{% for message in messages %}<|im_start|>{{ message.role + '\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{ message.content[0].text }}<|im_end|>{% endgeneration %}
{%- else %}
    {%- for part in message.content %}{{ part.text if part.type == 'text' else '<|image_pad|>' }}{% endfor %}
    {{- '<|im_end|>' }}
{%- endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


# The system message and replies are strings here.
STRINGS = TAGGED.replace("message.content[0].text", "message.content").replace(
    "{%- else %}", "{%- elif message.role == 'system' %}{{ message.content + '<|im_end|>' }}\n{%- else %}", 1
)


def auto_collator(path: str, **kwargs):
    loader = LOADERS.get(AUTO)(path)
    processor = loader.load_processor()
    return COLLATORS.get(AUTO)(processor, stop_tokens=loader.stop_tokens(processor.tokenizer), **kwargs)


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2-vl", "qwen2.5-vl"])
def test_a_listed_checkpoint_gives_its_golden_texts(tiny, family):
    collator, facts = auto_collator(tiny(family)), FACTS[family]
    for record in golden_records(family):
        form = record.get("documented_variant", record)
        text, spans = collator.template.render(record["messages"])
        assert facts.bos + text == form["text"]
        shift, space = len(facts.bos), len(facts.prompt_space)
        assert [[s + shift + space, e + shift] for s, e in spans] == form["trained"]


def test_a_template_whose_prompt_is_no_beginning_is_refused_before_training(tiny, write_rows, tmp_path):
    """LLaVA-OneVision writes `assistant \\n` in the history and `assistant\\n` in the prompt."""
    path = write_rows([{"conversations": turns("Hello.", "Hi!")}])
    words = ["--model_id", AUTO, "--model_local_path", tiny("llava-onevision")]
    with pytest.raises(
        ValueError, match="a test conversation: the chat template renders .*--chat_template.*add a family"
    ):
        train.main([*words, "--data_path", path, "--output_dir", str(tmp_path)])


def test_a_processors_own_placeholder_is_counted(tiny):
    """Qianfan-OCR's texts have <image>, which becomes its tokens of another name."""
    collator = auto_collator(tiny("qwen2.5-vl"), chat_template=TAGGED)
    messages = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A."}]},
    ]
    collator.template.check_rendering(messages)
    collator.processor.image_placeholder_token = "<image>"
    with pytest.raises(UnfitTemplate, match="writes <image> 0 times for 1 image"):
        collator.template.check_rendering(messages)


def render_with(before: str, after: str):
    """A template of one line a message, without a stop token."""

    def render(messages, add_generation_prompt=False):
        lines = [
            f"{before}{message['content'][0]['text']}{after}" if message["role"] == "assistant" else "U: "
            for message in messages
        ]
        return "".join(lines) + (before if add_generation_prompt else "")

    return render


def conversation(*replies: str) -> list[dict]:
    text = lambda reply: [{"type": "text", "text": reply}]  # noqa: E731
    pairs = ([{"role": "user", "content": text("U")}, {"role": "assistant", "content": text(r)}] for r in replies)
    return [message for pair in pairs for message in pair]


@pytest.mark.parametrize(
    "after, replies, expected",
    [
        (" ", ("Red", "Blue"), "U: A:[Red#]U: A:[Blue#]"),  # white space gives way to the stop token
        ("\n\n", (" Red ",), "U: A:[ Red #]"),  # what was typed stays
        (" ", ("Red\n",), "U: A:[Red\n#]"),
        ("!", ("Red",), "U: A:[Red!#]"),
        ("@\n", ("Red", "Blue"), "U: A:[Red@]\nU: A:[Blue@]\n"),  # another stop token, which the template writes
        ("#.", ("Red",), "U: A:[Red#]."),
        ("@\n#", ("Red",), "U: A:[Red@]\n#"),  # the first of two, whatever their order in the list
    ],
)
def test_a_reply_ends_with_a_stop_token(after, replies, expected):
    text, spans = find_replies(conversation(*replies), render_with("A:", after), ["#", "@"])
    for start, end in reversed(spans):
        text = f"{text[:start]}[{text[start:end]}]{text[end:]}"
    assert text == expected


def test_a_history_that_changes_is_refused():
    def render(messages, add_generation_prompt=False):  # drops all thoughts but the last, as reasoning models do
        return "".join(
            m["content"][0]["text"] if m is messages[-1] else m["content"][0]["text"].split("</think>")[-1]
            for m in messages
        )

    with pytest.raises(UnfitTemplate, match="add a family"):
        find_replies(conversation("<think>a</think>b", "c"), render, ["#"])


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(CHATML, id="untagged"),
        pytest.param(TAGGED, id="tagged", marks=pytest.mark.slow),
        pytest.param(STRINGS, id="strings"),
    ],
)
def test_chat_template_replaces_the_family_s_in_training_and_answers(tiny, template, write_rows, tmp_path, capsys):
    (tmp_path / "my.jinja").write_text(template)
    conversations = turns("<image>\nWhat colour is it?", "Red", "So?", "Yes")
    path = write_rows([{"image": "red.png", "conversations": conversations, "system_prompt": "Be brief."}])
    given = ["--chat_template", str(tmp_path / "my.jinja")]
    words = ["--model_id", "qwen2-vl-2b-instruct", "--model_local_path", tiny("qwen2-vl"), "--data_path", path]
    with pytest.raises(SystemExit):
        preview.main([*words, "--json", *given])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["text"] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|image_pad|>What colour is it?<|im_end|>\n<|im_start|>assistant\nRed<|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    )
    assert row["trained"] == ["Red<|im_end|>", "Yes<|im_end|>"]

    run(tiny, "qwen2-vl", path, tmp_path / "out", "--use_lora", True, *given)
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    _, collator = predict.load(str(tmp_path / "out"))
    messages = MultimodalDataset(path)[0]["messages"][:2]
    text = collator.processor.tokenizer.decode(collator.encode_prompt(messages)["input_ids"][0])
    assert text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<|image_pad|>"
    ) and text.endswith("it?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [CHATML, TAGGED], ids=["untagged", "tagged"])
def test_a_row_that_the_template_refuses_is_named_before_training(tiny, template, write_rows, tmp_path):
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    (tmp_path / "my.jinja").write_text(refuse + template)
    rows = [{"conversations": turns("A?", "B.")}, {"conversations": turns("A?", "B."), "system_prompt": "Be brief."}]
    with pytest.raises(ValueError, match="rows.json, sample 1: the chat template cannot render .*no system message"):
        run(tiny, "qwen2-vl", write_rows(rows), tmp_path / "out", "--chat_template", tmp_path / "my.jinja")


@pytest.mark.parametrize("tag", [True, False], ids=["tagged", "untagged"])
@pytest.mark.parametrize(
    "user, named",
    [
        ("{{ message.content[-1].text }}", "writes <.image_pad.> 0 times for 1 image"),
        ("{{ message.content + '' }}", "not support media in a user message"),
    ],
    ids=["left out", "strings"],
)
def test_a_template_without_a_place_for_an_image_is_refused_before_training(
    tiny, write_rows, tmp_path, user, named, tag
):
    reply = "{{ message.content[-1].text }}" if "[-1]" in user else "{{ message.content }}"
    reply = "{% generation %}" + reply + "<|im_end|>{% endgeneration %}" if tag else reply + "<|im_end|>"
    (tmp_path / "my.jinja").write_text(
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' %}" + reply + "{% else %}" + user + "<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rows = [{"conversations": turns("A?", "B.")}, {"image": "red.png", "conversations": turns("<image>What?", "Red")}]
    with pytest.raises(ValueError, match=f"rows.json, sample 1: the chat template .*{named}"):
        run(tiny, "qwen2-vl", write_rows(rows), tmp_path / "out", "--chat_template", tmp_path / "my.jinja")


@pytest.mark.parametrize(
    "template, named",
    [
        ("{% for message in messages %}", "the chat template is not valid Jinja, line 1: Unexpected end"),
        ("no messages at all", "renders neither a list of parts nor a string"),
    ],
)
def test_a_broken_template_is_refused(tiny, write_rows, tmp_path, template, named):
    (tmp_path / "my.jinja").write_text(template)
    path = write_rows([{"conversations": turns("A?", "B.")}])
    with pytest.raises(ValueError, match=named):
        run(tiny, "qwen2-vl", path, tmp_path / "out", "--chat_template", tmp_path / "my.jinja")


def test_auto_needs_a_path_and_a_template(tiny, write_rows, tmp_path):
    path = write_rows([{"conversations": turns("A?", "B.")}])
    with pytest.raises(ValueError, match="--model_id auto needs --model_local_path"):
        run(lambda family: "", AUTO, path, tmp_path / "out")
    shutil.copytree(tiny(AUTO), tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="has no chat template; pass one with --chat_template"):
        run(lambda family: str(tmp_path / "bare"), AUTO, path, tmp_path / "out")
    with pytest.raises(ValueError, match="--chat_template 'missing.jinja' is no file"):
        run(tiny, AUTO, path, tmp_path / "out", "--chat_template", "missing.jinja")


def test_the_family_of_a_checkpoint(tiny, tmp_path):
    assert family_of(tiny("qwen2-vl")) == "qwen2-vl" and family_of(tiny(AUTO)) == AUTO
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert' checkpoint, which accepts no images"):
        family_of(str(tmp_path))


@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
def test_the_components_are_the_models_own(tiny, family):
    loader = LOADERS.get(AUTO)(tiny(family))
    projector = {"llava-onevision": ["model.image_newline", "model.multi_modal_projector"], "qwen2-vl": []}[family]
    assert loader.vision_projector == projector
    listed = LOADERS.get(family)(tiny(family))
    assert (loader.vision_encoder, loader.language_model) == (listed.vision_encoder, listed.language_model)


@pytest.mark.parametrize("family", ["paligemma", "phi3-v", "qwen-vl"])
def test_a_format_that_code_writes_is_not_replaced(tiny, family, write_rows, tmp_path):
    (tmp_path / "my.jinja").write_text(CHATML)
    path = write_rows([{"image": "red.png", "conversations": turns("<image>What?", "Red")}])
    with pytest.raises(ValueError, match="--chat_template cannot be used, since .* its format|numbers the images"):
        run(tiny, family, path, tmp_path / "out", "--chat_template", tmp_path / "my.jinja")
