#!/usr/bin/env bash
# Finetune on pictures and on plain texts, so that the model keeps its language skills. LoRA on GPUs of 24 GB.
#
#   bash example_scripts/text_and_image.sh
#       a trial run on drawn pictures
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json TEXT_DATA=data/texts.json \
#       bash example_scripts/text_and_image.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further arguments go to train.py and override the flags below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen3-vl-4b-instruct} # any model of `python supported_models.py` of about this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}     # a folder with the weights; if empty, they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/text_and_image-$MODEL_ID}
NUM_GPUS=${NUM_GPUS:-1}                    # one process per GPU

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --texts --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/train.json
    TEST_DATA=example_data/drawn/test.json           # held-out rows
    TEXT_DATA=example_data/drawn/text_train.json # rows without "image"; files may have different forms
fi
: "${TEST_DATA:?is not set: name a file of held-out rows, such as TEST_DATA=data/test.json}"
: "${TEXT_DATA:?is not set: name a file of rows without pictures, such as TEXT_DATA=data/texts.json}"

# ---- training -------------------------------------------------------------------------------------------------------
ARGUMENTS=(
    --model_id "$MODEL_ID"
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only if it is set
    --data_path "$TRAIN_DATA" "$TEXT_DATA:0.5" # each epoch uses half of the texts
    --eval_data_path "$TEST_DATA"
    --output_dir "$OUTPUT_DIR"

    # what trains
    --use_lora True                          # adapters on the language model; its weights stay as they are
    --lora_r 16                              # rank of the adapters: above the default 8, for two kinds of data
    --lora_alpha 32                          # scale of the adapters, usually twice the rank
    --train_vision_projector True            # in full; on several GPUs, a batch of only texts gets a dummy picture
    --learning_rate 1e-4                     # usual for LoRA
    --vision_projector_lr 2e-5               # full weights need a lower rate than adapters

    # tokens: short texts and long pictures are packed into rows without padding
    --packing True                           # fills each row with whole samples
    --model_max_length 4096                  # tokens of a row
    --max_pixels 1048576                     # larger pictures are shrunk to about 1,024 tokens of 32 x 32 pixels

    # memory: about 14 GB, including 9 GB of weights (python estimate.py --help)
    --bf16 True                              # frozen weights and activations in 16 bits
    --activation_checkpointing True          # recomputes activations instead of keeping them
    --per_device_train_batch_size 1          # full rows at a time; each contains several samples
    --gradient_accumulation_steps 4          # 4 full rows per step on each GPU

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
torchrun --nproc_per_node "$NUM_GPUS" train.py "${ARGUMENTS[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
  python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged
END
