#!/usr/bin/env bash
# Finetune a model on short clips of moving shapes, and look at its answers about clips it never saw.
#
#   bash example_scripts/example_video.sh
#       a tiny model, made here: no download, no GPU, a few minutes on two cores
#   MODEL_ID=qwen2.5-vl-3b-instruct bash example_scripts/example_video.sh
#       any model of `python supported_models.py`, with LoRA, on a GPU
#
# Further arguments go to train.py and override its flags: bash example_scripts/example_video.sh --learning_rate 5e-5
# To train on your own data, copy this file and change the four sections.
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
MODEL_LOCAL_PATH=${MODEL_LOCAL_PATH:-} # a folder with the weights; if empty, they come from the Hub
FRESH=
if [ -z "${MODEL_ID:-}" ]; then
    MODEL_ID=qwen2-vl-2b-instruct
    MODEL_LOCAL_PATH=checkpoints/tiny-qwen2-vl
    FRESH=yes
    python tiny_models.py --model_id "$MODEL_ID" --output_dir "$MODEL_LOCAL_PATH"
fi
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/example_video-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
DATA=example_data/drawn
NUM_FRAMES=4
python example_data/draw.py --videos --output_dir "$DATA"

# ---- training -------------------------------------------------------------------------------------------------------
ARGUMENTS=(
    --model_id "$MODEL_ID"
    ${MODEL_LOCAL_PATH:+--model_local_path "$MODEL_LOCAL_PATH"} # only if it is set
    --data_path "$DATA/video_train.json"
    --eval_data_path "$DATA/video_test.json" # the loss on it is measured at the end
    --eval_generate 8                       # held-out rows that are answered before and after, for report.html
    --eval_max_new_tokens 8                 # length limit of these answers
    --output_dir "$OUTPUT_DIR"
    --train_vision_projector True           # the few weights between vision encoder and language model
    --lr_scheduler_type cosine              # falls to zero at the end
    --logging_steps 50                      # one line every 50 steps
    --save_strategy no                      # the run is short: nothing to resume from
    --num_frames "$NUM_FRAMES"              # evenly spaced over each clip
)
if [ -n "${FRESH:-}" ]; then
    # A fresh model learns everything, vision encoder included, from its first steps.
    ARGUMENTS+=(
        --train_vision_encoder True         # it has seen no picture yet
        --per_device_train_batch_size 32    # rows per step
        --per_device_eval_batch_size 32     # rows at a time in the evaluation
        --max_steps "${MAX_STEPS:-300}"     # enough for right answers
        --learning_rate 3e-3                # high, since nothing learned can be lost
        --adam_beta2 0.95                   # forgets old gradients sooner, for a short run
        --warmup_steps 30                   # steps from zero to the full rate
        --dataloader_num_workers 2          # prepare batches while the model trains
        --disable_tqdm True                 # plain lines instead of a bar
    )
else
    ARGUMENTS+=(
        --use_lora True                     # adapters on the language model; its weights stay as they are
        --bf16 True                         # frozen weights and activations in 16 bits
        --per_device_train_batch_size 4     # rows at a time; depends on the memory of the GPU
        --gradient_accumulation_steps 4     # 4 x 4 = 16 rows per step
        --num_train_epochs 1                # each row once
        --learning_rate 1e-4                # usual for LoRA
        --warmup_steps 0.03                 # below 1: a fraction of all steps
        --model_max_length 4096             # tokens of a row, media included
        --dataloader_num_workers 4          # processes that decode media while the model trains
    )
fi
python train.py "${ARGUMENTS[@]}" "$@"

# ---- answers --------------------------------------------------------------------------------------------------------
python predict.py --model_path "$OUTPUT_DIR" --data_path "$DATA/video_test.json" \
    --output_path "$OUTPUT_DIR/answers.jsonl" --batch_size 32 --max_new_tokens 8
python example_data/report.py "$DATA/video_train.json" "$OUTPUT_DIR/answers.jsonl"
echo
echo "The run is in $OUTPUT_DIR (report.html, log.jsonl)."
if [ -z "${FRESH:-}" ]; then # after LoRA, the next step is to merge the adapter into its base
    echo "Next: python merge_lora_weights.py --model_path $OUTPUT_DIR --model_save_path $OUTPUT_DIR-merged"
fi
