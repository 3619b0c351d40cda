#!/usr/bin/env bash
# Finetune in two stages: first only the projector, then adapters on the resulting model. Use it for an untrained
# projector (docs/change_it.md#another-vision-encoder), or for pictures that differ from pictures on the web.
#
#   bash example_scripts/two_stages.sh
#       a trial run on drawn pictures
#   TRAIN_DATA=data/train.json TEST_DATA=data/test.json bash example_scripts/two_stages.sh --num_train_epochs 3
#       on your own rows (docs/dataset.md); further arguments go to train.py in both stages and override the flags below
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_ID=${MODEL_ID:-llava-1.5-7b}     # any model of `python supported_models.py` of about this size
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-} # a folder with the weights; if empty, they come from the Hub
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/two_stages-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
if [ -z "${TRAIN_DATA:-}" ]; then
    python example_data/draw.py --output_dir example_data/drawn
    TRAIN_DATA=example_data/drawn/train.json
    TEST_DATA=example_data/drawn/test.json # held-out rows
fi
: "${TEST_DATA:?is not set: name a file of held-out rows, such as TEST_DATA=data/test.json}"
FIRST_DATA=${FIRST_DATA:-$TRAIN_DATA} # data of the first stage: pictures with plain captions are best

# ---- training -------------------------------------------------------------------------------------------------------
BOTH=(
    --model_id "$MODEL_ID"
    --eval_data_path "$TEST_DATA"

    # memory
    --bf16 True                              # frozen weights and activations in 16 bits; trained weights in 32
    --activation_checkpointing True          # recomputes activations
    --per_device_train_batch_size 8          # rows at a time
    --gradient_accumulation_steps 4          # 8 x 4 = 32 rows per step
    --model_max_length 2048                  # tokens of a row

    # schedule
    --num_train_epochs 1                     # each row once in each stage
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
FIRST=(
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only if it is set
    --data_path "$FIRST_DATA"
    --output_dir "$OUTPUT_DIR-projector"     # a full checkpoint, since this stage has no adapters

    --train_language_model False             # frozen, like the vision encoder,
    --train_vision_projector True            # so only the projector learns
    --learning_rate 1e-3                     # high, since few weights train and the projector is untrained
)
SECOND=(
    --model_local_path "$OUTPUT_DIR-projector" # continues from the first stage
    --data_path "$TRAIN_DATA"
    --output_dir "$OUTPUT_DIR"

    --use_lora True                          # adapters on the language model
    --lora_r 16                              # rank of the adapters
    --lora_alpha 32                          # scale of the adapters, usually twice the rank
    --learning_rate 1e-4                     # of the adapters
    --train_vision_projector True            # continues to train,
    --vision_projector_lr 2e-5               # at a lower rate
)
python train.py "${BOTH[@]}" "${FIRST[@]}" "$@"
python train.py "${BOTH[@]}" "${SECOND[@]}" "$@"

# ---- what next ------------------------------------------------------------------------------------------------------
cat <<END

The run is in $OUTPUT_DIR (report.html, log.jsonl). Next:
  python predict.py --model_path $OUTPUT_DIR --data_path $TEST_DATA --output_path $OUTPUT_DIR/answers.jsonl
  python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged
END
