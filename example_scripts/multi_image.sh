#!/usr/bin/env bash
# Finetune on rows with several pictures, such as "which of these shows the fault?". LoRA on one GPU of 40 GB.
#
#   bash example_scripts/multi_image.sh
#       a trial run on drawn pictures
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/multi_image.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further arguments go to train.py and override the flags below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen2.5-vl-7b-instruct} # any model of `python supported_models.py` that accepts several pictures
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}       # a folder with the weights; if empty, they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/multi_image-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --pairs --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/pair_train.json # "image" is a list; the text has one <image> per picture, in order
    TEST_DATA=example_data/drawn/pair_test.json   # held-out rows
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
    --use_lora True                          # adapters on the language model; its weights stay as they are
    --lora_r 16                              # rank of the adapters: above the default 8, to compare pictures
    --lora_alpha 32                          # scale of the adapters, usually twice the rank
    --train_vision_projector True            # in full; it turns pictures into tokens
    --learning_rate 1e-4                     # usual for LoRA
    --vision_projector_lr 2e-5               # full weights need a lower rate than adapters

    # tokens: the pictures of a row must fit, since no picture is ever cut
    --max_pixels 401408                      # larger pictures are shrunk to about 512 tokens of 28 x 28 pixels
    --model_max_length 4096                  # enough for seven such pictures and their text
    --drop_overlong True                     # leaves out and counts longer rows; without this flag they are an error

    # memory: about 26 GB, including 17 GB of weights (python estimate.py --help)
    --bf16 True                              # frozen weights and activations in 16 bits
    --activation_checkpointing True          # recomputes activations instead of keeping them
    --per_device_train_batch_size 2          # rows at a time
    --gradient_accumulation_steps 8          # 2 x 8 = 16 rows per step

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
