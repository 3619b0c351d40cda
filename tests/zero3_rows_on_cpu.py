"""train.py with rows of added tokens under LoRA and ZeRO-3 on CPUs, where peft 0.21 would gather them to a CUDA GPU."""

from unittest import mock

from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from peft.utils.integrations import gather_params_ctx

import train


def collect(self, weight, rows, embed_dim):
    with gather_params_ctx([weight], modifier_rank=None):
        return weight[rows].clone()


def main() -> None:
    with (
        mock.patch.object(TrainableTokensLayer, "_collect_token_weights", collect),
        mock.patch("training.engines.check_deepspeed"),
    ):
        train.main()
