#!/usr/bin/env bash
# Finetune a 7B model on one GPU of 24 GB, such as an RTX 4090, with Q-LoRA: adapters on a language model in 4 bits.
#
#   bash example_scripts/q_lora_24gb.sh
#       a trial run on drawn pictures
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/q_lora_24gb.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further arguments go to train.py and override the flags below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen2.5-vl-7b-instruct} # any model of `python supported_models.py` of this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}       # a folder with the weights; if empty, they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/q_lora_24gb-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/train.json
    TEST_DATA=example_data/drawn/test.json # held-out rows
fi
: "${TEST_DATA:?is not set: name a file of held-out rows, such as TEST_DATA=data/test.json}"

# ---- training -------------------------------------------------------------------------------------------------------
ARGUMENTS=(
    --model_id "$MODEL_ID"
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only if it is set
    --data_path "$TRAIN_DATA"
    --eval_data_path "$TEST_DATA"
    --output_dir "$OUTPUT_DIR"

    # what trains
    --use_lora True                          # adapters on the language model
    --q_lora True                            # frozen weights in 4 bits: 7 GB instead of 17
    --lora_r 16                              # rank of the adapters, which also correct the rounding to 4 bits
    --lora_alpha 32                          # scale of the adapters, usually twice the rank
    --lora_dropout 0.05                      # drops 5% of the adapters' input, against memorizing rows
    --learning_rate 2e-4                     # usual for Q-LoRA

    # memory: about 16 GB: 7 GB weights and, if half of all tokens are trained, 7 GB logits
    --bf16 True                              # activations, and weights that are not in 4 bits, in 16 bits
    --activation_checkpointing True          # recomputes activations: 9 GB instead of 32 for one row
    --per_device_train_batch_size 4          # rows at a time
    --gradient_accumulation_steps 4          # 4 x 4 = 16 rows per step
    --model_max_length 2048                  # tokens of a row
    --max_pixels 802816                      # larger pictures are shrunk to about 1,024 tokens of 28 x 28 pixels
    --optim adamw_8bit                       # optimizer state in 8 bits: a quarter of the usual size

    # schedule
    --num_train_epochs 1                     # each row once; small data sets need two or three
    --lr_scheduler_type cosine               # falls to zero at the end
    --warmup_steps 0.03                      # below 1: a fraction of all steps

    # what is logged, measured and kept
    --logging_steps 10                       # one line every 10 steps
    --eval_strategy steps                    # the loss on the held-out rows,
    --eval_steps 100                         # measured every 100 steps
    --eval_generate 8                        # held-out rows that are answered each time, and before step 1
    --eval_max_new_tokens 64                 # length limit of these answers
    --per_device_eval_batch_size 4           # rows at a time: no gradients, so less memory
    --save_strategy steps                    # checkpoints, to resume from with --resume_from_checkpoint True
    --save_steps 500                         # one every 500 steps,
    --save_total_limit 2                     # and only the newest 2 are kept
    --dataloader_num_workers 4               # processes that decode media, for each GPU
)
python train.py "${ARGUMENTS[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
  python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged
END
