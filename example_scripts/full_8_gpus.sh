#!/usr/bin/env bash
# Finetune all weights of a 7B model on 8 GPUs of 80 GB: ZeRO-3 shards weights, gradients and optimizer over them.
#
#   bash example_scripts/full_8_gpus.sh
#       a trial run on drawn pictures
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/full_8_gpus.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further arguments go to train.py and override the flags below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen2.5-vl-7b-instruct} # any model of `python supported_models.py` of this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}       # a folder with the weights; if empty, they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/full_8_gpus-$MODEL_ID}
NUM_GPUS=${NUM_GPUS:-8}                      # one process per GPU

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

    # what trains: without --use_lora, the whole language model
    --train_vision_projector True            # in full; it turns pictures into tokens. The encoder stays frozen
    --learning_rate 1e-5                     # a tenth of the rate for LoRA, since every weight changes
    --weight_decay 0.01                      # shrinks weights slightly, as usual in full training
    --max_grad_norm 1.0                      # gradients with a larger norm are scaled down to this

    # memory: about 35 GB on each GPU, including 16 GB for its eighth of weights and optimizer state
    --deepspeed ds_configs/zero3.json        # shards over all GPUs; zero3_offload.json uses the CPU's memory too
    --bf16 True                              # computes in 16 bits; the optimizer keeps the weights in 32
    --activation_checkpointing True          # recomputes activations instead of keeping them
    --per_device_train_batch_size 4          # rows at a time on each GPU
    --gradient_accumulation_steps 2          # 8 GPUs x 4 x 2 = 64 rows per step
    --model_max_length 4096                  # tokens of a row
    --max_pixels 1003520                     # larger pictures are shrunk to about 1,280 tokens of 28 x 28 pixels

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
    --save_total_limit 1                     # and only the newest is kept
    --dataloader_num_workers 8               # processes that decode media, for each GPU
)
torchrun --nproc_per_node "$NUM_GPUS" train.py "${ARGUMENTS[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
END
