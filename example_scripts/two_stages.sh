#!/usr/bin/env bash
# Finetune in two stages: first the projector alone, then adapters on the language model of the first result. For a
# projector that knows nothing yet (docs/change_it.md#another-vision-encoder), or pictures unlike those of the web.
#
#   bash example_scripts/two_stages.sh
#       on drawn pictures, to see it run
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/two_stages.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further words are flags of train.py in both stages, and win over those below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-llava-1.5-7b}     # any of `python supported_models.py` of about this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-} # a folder with its weights; empty: they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/two_stages-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/train.json
    TEST_DATA=example_data/drawn/test.json # rows that are not trained on
fi
: "${TEST_DATA:?is not set: name a file of held-out rows, such as TEST_DATA=data/test.json}"
FIRST_DATA=${FIRST_DATA:-$TRAIN_DATA} # of the first stage: pictures with plain captions are best

# ---- training -------------------------------------------------------------------------------------------------------
BOTH=(
    --model_id "$MODEL_ID"
    --eval_data_path "$TEST_DATA"

    # memory
    --bf16 True                              # frozen weights and activations in 16 bits; trained weights in 32
    --activation_checkpointing True          # computes activations again
    --per_device_train_batch_size 8          # rows at a time
    --gradient_accumulation_steps 4          # 8 x 4 = 32 rows a step
    --model_max_length 2048                  # tokens of a row

    # schedule
    --num_train_epochs 1                     # each row once in each stage
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
FIRST=(
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only where it is set
    --data_path "$FIRST_DATA"
    --output_dir "$OUTPUT_DIR-projector"     # a whole model, since nothing of it is an adapter

    --train_language_model False             # frozen, as the vision encoder is,
    --train_vision_projector True            # so that this alone learns to hand on what is seen
    --learning_rate 1e-3                     # high: few weights, and a projector that knows little
)
SECOND=(
    --model_local_path "$OUTPUT_DIR-projector" # goes on from the first stage
    --data_path "$TRAIN_DATA"
    --output_dir "$OUTPUT_DIR"

    --use_lora True                          # adapters on the language model, which now gets to see
    --lora_r 16                              # their rank
    --lora_alpha 32                          # their scale, usually twice the rank
    --learning_rate 1e-4                     # theirs
    --train_vision_projector True            # goes on learning,
    --vision_projector_lr 2e-5               # in smaller steps
)
python train.py "${BOTH[@]}" "${FIRST[@]}" "$@"
python train.py "${BOTH[@]}" "${SECOND[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
  python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged
END
