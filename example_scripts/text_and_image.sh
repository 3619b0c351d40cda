#!/usr/bin/env bash
# Finetune on pictures and on texts without any, so that the model keeps its language. LoRA on GPUs of 24 GB.
#
#   bash example_scripts/text_and_image.sh
#       on drawn pictures, to see it run
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json TEXT_DATA=data/texts.json \
#       bash example_scripts/text_and_image.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further words are flags of train.py, and win over those below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen3-vl-4b-instruct} # any of `python supported_models.py` of about this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}     # a folder with its weights; empty: they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/text_and_image-$MODEL_ID}
NUM_GPUS=${NUM_GPUS:-1}                    # one process for each

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --texts --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/train.json
    TEST_DATA=example_data/drawn/test.json           # rows that are not trained on
    TEXT_DATA=example_data/drawn/text_train.json # rows without "image"; each file may have a form of its own
fi
: "${TEST_DATA:?is not set: name a file of held-out rows, such as TEST_DATA=data/test.json}"
: "${TEXT_DATA:?is not set: name a file of rows without pictures, such as TEXT_DATA=data/texts.json}"

# ---- training -------------------------------------------------------------------------------------------------------
ARGUMENTS=(
    --model_id "$MODEL_ID"
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only where it is set
    --data_path "$TRAIN_DATA" "$TEXT_DATA:0.5" # half of the texts in an epoch
    --eval_data_path "$TEST_DATA"
    --output_dir "$OUTPUT_DIR"

    # what trains
    --use_lora True                          # adapters on the language model; its weights stay as they are
    --lora_r 16                              # their rank: above the default 8, for two kinds of data
    --lora_alpha 32                          # their scale, usually twice the rank
    --train_vision_projector True            # in full; with texts alone, a dummy picture keeps GPUs in step
    --learning_rate 1e-4                     # usual for LoRA
    --vision_projector_lr 2e-5               # whole weights move in smaller steps than adapters

    # tokens: short texts and long pictures share a row, and none is padded
    --packing True                           # fills each row with whole samples
    --model_max_length 4096                  # tokens of a row
    --max_pixels 1048576                     # larger pictures are shrunk to about 1,024 tokens of 32 x 32 pixels

    # memory: about 14 GB, of which 9 are weights (python estimate.py --help)
    --bf16 True                              # frozen weights and activations in 16 bits
    --activation_checkpointing True          # computes activations again instead of keeping them
    --per_device_train_batch_size 1          # full rows at a time; each holds several samples
    --gradient_accumulation_steps 4          # 4 full rows a step on each GPU

    # schedule
    --num_train_epochs 1                     # each row once; small data sets take two or three
    --lr_scheduler_type cosine               # falls to zero at the end
    --warmup_steps 0.03                      # below 1, a share of all steps

    # what is logged, measured and kept
    --logging_steps 10                       # a line each 10 steps
    --eval_strategy steps                    # the loss on the held-out rows,
    --eval_steps 100                         # measured each 100 steps
    --eval_generate 8                        # so many held-out rows are answered each time, and before step 1
    --eval_max_new_tokens 64                 # longest of these answers
    --per_device_eval_batch_size 4           # rows at a time: no gradients, so less memory
    --save_strategy steps                    # checkpoints, to go on from with --resume_from_checkpoint True
    --save_steps 500                         # one each 500 steps,
    --save_total_limit 2                     # of which the newest 2 are kept
    --dataloader_num_workers 4               # processes that decode media, for each GPU
)
torchrun --nproc_per_node "$NUM_GPUS" train.py "${ARGUMENTS[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
  python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged
END
