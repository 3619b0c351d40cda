#!/usr/bin/env bash
# Also finetune vision encoder and projector, for pictures unlike the web's: scans, satellite images, microscopy.
# One GPU of 48 GB.
#
#   bash example_scripts/vision_tuning.sh
#       a trial run on drawn pictures
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/vision_tuning.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further arguments go to train.py and override the flags below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen2.5-vl-3b-instruct} # any model of `python supported_models.py` of about this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}       # a folder with the weights; if empty, they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/vision_tuning-$MODEL_ID}

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
    --train_vision_encoder True              # in full, for pictures of a new kind
    --vision_encoder_lr 2e-6                 # very low, or the encoder forgets what it knows
    --train_vision_projector True            # in full, to follow the encoder
    --vision_projector_lr 1e-5               # higher than the encoder's rate
    --use_lora True                          # adapters are enough for the language model
    --learning_rate 1e-4                     # of the adapters

    # pictures: fine structures need many pixels
    --max_pixels 1003520                     # larger pictures are shrunk to about 1,280 tokens of 28 x 28 pixels
    --model_max_length 2048                  # enough for such a picture and its text

    # memory: about 25 GB, including 10 GB of weights and 5 GB of optimizer state (python estimate.py --help)
    --bf16 True                              # frozen weights and activations in 16 bits; trained weights in 32
    --activation_checkpointing True          # recomputes activations, also the encoder's
    --per_device_train_batch_size 4          # rows at a time
    --gradient_accumulation_steps 8          # 4 x 8 = 32 rows per step: for stable gradients of the encoder
    --max_grad_norm 1.0                      # gradients with a larger norm are scaled down to this

    # schedule
    --num_train_epochs 1                     # each row once; small data sets need two or three
    --lr_scheduler_type cosine               # falls to zero at the end
    --warmup_steps 0.1                       # below 1: a fraction of all steps

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
