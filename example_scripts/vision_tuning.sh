#!/usr/bin/env bash
# Finetune vision encoder and projector too, for pictures unlike those of the web: scans, satellite images, microscopy.
# One GPU of 48 GB.
#
#   bash example_scripts/vision_tuning.sh
#       on drawn pictures, to see it run
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/vision_tuning.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further words are flags of train.py, and win over those below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-qwen2.5-vl-3b-instruct} # any of `python supported_models.py` of about this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-}       # a folder with its weights; empty: they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/vision_tuning-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/train.json
    TEST_DATA=example_data/drawn/test.json # rows that are not trained on
fi
: "${TEST_DATA:?is not set: name a file of held-out rows, such as TEST_DATA=data/test.json}"

# ---- training -------------------------------------------------------------------------------------------------------
ARGUMENTS=(
    --model_id "$MODEL_ID"
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only where it is set
    --data_path "$TRAIN_DATA"
    --eval_data_path "$TEST_DATA"
    --output_dir "$OUTPUT_DIR"

    # what trains
    --train_vision_encoder True              # in full: it has to see what it never saw
    --vision_encoder_lr 2e-6                 # in very small steps, or it forgets what it knows
    --train_vision_projector True            # in full: it hands on what the encoder now sees
    --vision_projector_lr 1e-5               # in larger steps than the encoder
    --use_lora True                          # adapters on the language model, which only has to follow
    --learning_rate 1e-4                     # theirs

    # what it sees: fine structures need many pixels
    --max_pixels 1003520                     # larger pictures are shrunk to about 1,280 tokens of 28 x 28 pixels
    --model_max_length 2048                  # such a picture and its text

    # memory: about 25 GB, of which 10 are weights and 5 the optimizer (python estimate.py --help)
    --bf16 True                              # frozen weights and activations in 16 bits; trained weights in 32
    --activation_checkpointing True          # computes activations again, the encoder's too
    --per_device_train_batch_size 4          # rows at a time
    --gradient_accumulation_steps 8          # 4 x 8 = 32 rows a step: steady gradients for the encoder
    --max_grad_norm 1.0                      # longer gradients are shortened to this

    # schedule
    --num_train_epochs 1                     # each row once; small data sets take two or three
    --lr_scheduler_type cosine               # falls to zero at the end
    --warmup_steps 0.1                       # below 1, a share of all steps

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
python train.py "${ARGUMENTS[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
  python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged
END
