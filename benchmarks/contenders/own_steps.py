"""Steps on rows that are tensors already: a bare loop, or our trainer. Run by benchmarks/speed.py.

    python benchmarks/contenders/own_steps.py bare --model_id qwen2-vl-2b-instruct --data_path rows.json ...

`bare` is the limit: batches made before, forward with the head on labelled positions, backward, AdamW, nothing else.
`prepared` is `FinetuneTrainer` as train.py wires it, on rows encoded before. The flags are those of train.py.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

import torch  # noqa: E402
from transformers import set_seed  # noqa: E402

from arguments import parse_arguments  # noqa: E402
from loaders import LOADERS, attention  # noqa: E402
from loaders.output_folder import ProcessorFiles  # noqa: E402
from reading.dataset import EncodedDataset, make_dataset  # noqa: E402
from train import fit_to_budget, model_kwargs  # noqa: E402
from training import trainable  # noqa: E402
from training.loss import label_losses  # noqa: E402
from training.make_collator import make_collator  # noqa: E402
from training.trainer import FinetuneTrainer  # noqa: E402


class KeptRows(EncodedDataset):
    """Every sample opened and encoded once."""

    def __init__(self, dataset, collator):
        super().__init__(dataset, collator)
        self.rows = [super(KeptRows, self).__getitem__(i) for i in range(len(dataset))]

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return self.rows[position]


def bare_loop(model, batches: list[dict], training) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, training.learning_rate, weight_decay=0.0, fused=True)
    model.train()
    for epoch in range(int(training.num_train_epochs)):
        for step, batch in enumerate(batches, start=1):
            losses, *_ = label_losses(model, batch)
            loss = losses.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            print({"loss": f"{loss.item():.4g}", "epoch": f"{epoch + step / len(batches):.4f}"}, flush=True)


def main() -> None:
    way, *words = sys.argv[1:]
    arguments = parse_arguments(words)
    training, data = arguments.training, arguments.data
    dataset = make_dataset(data, "data_path", data.data_path, weighted=True)
    loader = LOADERS.get(arguments.model.family)(arguments.model.model_path, **model_kwargs(arguments))
    collator = make_collator(arguments.model.family, loader, arguments.data)
    fit_to_budget(collator, dataset, arguments.data.drop_overlong)
    set_seed(training.seed)
    model = loader.load_model()
    if attention.is_padding_free(arguments, loader):
        collator.make_padding_free(loader)
        attention.separate_samples(model, loader)
    model = trainable.make_trainable(model, loader, arguments)
    kept = KeptRows(dataset, collator)
    if way == "bare":
        size = training.per_device_train_batch_size
        bare_loop(model, [collator.collate(kept.rows[i : i + size]) for i in range(0, len(kept), size)], training)
    else:
        FinetuneTrainer(
            model=model,
            args=training,
            data_collator=collator.collate,
            train_dataset=kept,
            processor_files=ProcessorFiles(arguments.model.model_path),
        ).train()


if __name__ == "__main__":
    main()
