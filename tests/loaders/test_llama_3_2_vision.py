"""What Llama 3.2 Vision alone has: rows that see no image beside rows that do, and a block with the date."""

import pytest
import torch
from conftest import IMAGE_ROWS, run
from PIL import Image
from transformers import AutoModelForImageTextToText

from arguments import parse_arguments
from collators import COLLATORS
from loaders import LOADERS
from training.engines import equal_vision_calls

FAMILY = "llama-3.2-vision"


@pytest.fixture
def collator(tiny):
    return COLLATORS.get(FAMILY)(LOADERS.get(FAMILY)(tiny(FAMILY)).load_processor())


@pytest.fixture
def model(tiny):
    """Its gates are open: see its tiny checkpoint."""
    return LOADERS.get(FAMILY)(tiny(FAMILY)).load_model().eval()


def asking(*content, reply: str = "Red") -> list[dict]:
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in content]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": reply}]}]


def picture(colour: str, size=(64, 64)) -> dict:
    return {"type": "image", "image": Image.new("RGB", size, colour)}


TEXT = asking("Name a primary colour, and say why you like it.", reply="Red, as it is warm.")
ONE = asking(picture("red"), "Which colour is this?")
TWO = asking("First", picture("green"), "then", picture("blue", (150, 40)), "?", reply="Blue is later")


@torch.no_grad()
def logits_of_first_row(model, collator, *rows) -> torch.Tensor:
    batch = collator([{"messages": row} for row in rows])
    length = int(batch["attention_mask"][0].sum())
    del batch["labels"]
    return model(**batch).logits[0, :length]


@pytest.mark.parametrize("row", [TEXT, ONE], ids=["text", "one image"])
def test_a_row_does_not_see_the_images_of_others(tiny, model, collator, row):
    alone = logits_of_first_row(model, collator, row)
    for others in ([TWO], [ONE, TEXT], [TWO, TEXT, ONE]):
        assert (logits_of_first_row(model, collator, row, *others) - alone).abs().max() < 1e-5
    plain = AutoModelForImageTextToText.from_pretrained(tiny(FAMILY)).eval()
    assert (logits_of_first_row(plain, collator, row, TWO) - alone).abs().max() > 1e-2  # the leak of the library


def test_text_before_an_image_does_not_see_it(model, collator):
    ids = collator.encode({"messages": TWO}).inputs["input_ids"][0]
    first, second = (ids == collator.processor.image_token_id).nonzero()[:, 0].tolist()
    other = asking("First", picture("white", (30, 200)), "then", picture("black"), "?", reply="Blue is later")
    change = (logits_of_first_row(model, collator, TWO) - logits_of_first_row(model, collator, other)).abs().amax(-1)
    assert not change[:first].any() and change[first:].all()
    same_first = asking("First", picture("green"), "then", picture("black"), "?", reply="Blue is later")
    same_first = logits_of_first_row(model, collator, same_first)
    change = (logits_of_first_row(model, collator, TWO) - same_first).abs().amax(-1)
    assert change[:second].max() < 1e-5 and change[second:].all()


def test_generation_in_a_batch_equals_generation_alone(model, collator):
    prompts = [collator.encode_prompt(row[:1]) for row in (TEXT, ONE, TWO, asking("Hi"))]

    def generate(rows):
        inputs = collator.pad(rows, side="left")
        options = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        return torch.stack(model.generate(**inputs, eos_token_id=-1, **options).logits, 1)

    together = generate(prompts)
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(together[i], generate([prompt])[0], atol=1e-5, rtol=0)


def test_a_dummy_image_gives_the_cross_attention_layers_a_gradient_of_zero(model, collator):
    def gradients(batch):
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
        return {name: parameter.grad for name, parameter in model.model.language_model.layers[1].named_parameters()}

    texts = [{"messages": TEXT}]
    assert all(gradient is None for gradient in gradients(collator(texts)).values())
    collator.media_in_every_batch = {"image"}
    found = gradients(collator(texts))
    assert found and all(gradient is not None and not gradient.any() for gradient in found.values())


@pytest.mark.parametrize(
    "family, processes, expected", [(FAMILY, 2, {"image"}), (FAMILY, 1, set()), ("llama4", 2, set())]
)
def test_several_processes_need_images_for_the_language_model(tiny, family, processes, expected):
    words = ["--model_id", "llama-3.2-11b-vision-instruct", "--data_path", "x.json", "--use_lora", "True"]
    arguments = parse_arguments(words)
    arguments.training.distributed_state.num_processes = processes
    try:
        assert equal_vision_calls(arguments, LOADERS.get(family), []) == expected
    finally:
        arguments.training.distributed_state.num_processes = 1


FLAGS = {
    "lora": ["--use_lora", True, "--lora_dropout", 0],
    "full": [],
    "copies": ["--train_vision_encoder", True, "--use_vision_lora", True, "--lora_dropout", 0],
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_masks_hold_under_gradient_checkpointing_and_in_copies(tiny, flags, write_rows, tmp_path):
    """The loss of a text beside images is that of the text, a row a batch."""
    path = write_rows([IMAGE_ROWS[3], IMAGE_ROWS[1], IMAGE_ROWS[0], IMAGE_ROWS[4]])
    shared = [*flags, "--train_sampling_strategy", "sequential", "--max_steps", 2, "--learning_rate", 1e-2]
    found = [
        run(tiny, FAMILY, path, tmp_path / name, *shared, *options)
        for name, options in {
            "batch": ["--per_device_train_batch_size", 4],
            "checkpointed": ["--per_device_train_batch_size", 4, "--activation_checkpointing", True],
            "alone": ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 4],
        }.items()
    ]
    for key in ("loss", "grad_norm"):
        first, *others = ([entry[key] for entry in entries] for entries in found)
        for other in others:
            assert other == pytest.approx(first, rel=1e-4)


def test_the_date_stands_by_the_messages_before_the_first_reply(collator):
    late = TEXT + ONE
    text, _ = collator.template.render(late)
    prompt = collator.template.render_official(late[:1], add_generation_prompt=True)
    assert "Today Date: 26 Jul 2024" in prompt and text.startswith(prompt)
    official = collator.template.render_official(late)
    assert "Today Date" not in official
    early = ONE + TEXT
    text, _ = collator.template.render(early)
    assert "Today Date" not in text and text == collator.template.render_official(early)
    system = [{"role": "system", "content": [{"type": "text", "text": " Be brief. "}]}]
    for messages in (system + late, system + early):
        text, _ = collator.template.render(messages)
        assert "\n\nBe brief.<|eot_id|>" in text and text == collator.template.render_official(messages)
