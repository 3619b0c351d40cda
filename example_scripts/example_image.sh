#!/usr/bin/env bash
# Finetune a model on images of drawn shapes, and look at its answers to questions about images it never saw.
#
#   bash example_scripts/example_image.sh
#       a tiny model, made here: no download, no GPU, a few minutes on two cores
#   MODEL_ID=qwen2.5-vl-3b-instruct bash example_scripts/example_image.sh
#       any model of `python supported_models.py`, with LoRA, on a GPU
#
# To train on your own data, copy this file and change the four sections.
set -euo pipefail
cd "$(dirname "$0")/.."

# ---- model ----------------------------------------------------------------------------------------------------------
if [ -z "${MODEL_ID:-}" ]; then
    MODEL_ID=llava-1.5-7b
    MODEL_LOCAL_PATH=checkpoints/tiny-llava-1.5
    python tiny_models.py --model_id "$MODEL_ID" --output_dir "$MODEL_LOCAL_PATH"
fi
OUTPUT_DIR=${OUTPUT_DIR:-checkpoints/example_image-$MODEL_ID}

# ---- data -----------------------------------------------------------------------------------------------------------
DATA=example_data/shapes
python example_data/draw.py --output_dir "$DATA"

# ---- training -------------------------------------------------------------------------------------------------------
ARGUMENTS=(
    --model_id "$MODEL_ID"
    --data_path "$DATA/train.json"
    --eval_data_path "$DATA/test.json"
    --output_dir "$OUTPUT_DIR"
    --train_vision_projector True
    --lr_scheduler_type cosine
    --logging_steps 50
    --save_strategy no
)
if [ -n "${MODEL_LOCAL_PATH:-}" ]; then
    # A fresh model learns everything, vision encoder included, from its first steps.
    ARGUMENTS+=(
        --model_local_path "$MODEL_LOCAL_PATH"
        --train_vision_encoder True
        --per_device_train_batch_size 32
        --per_device_eval_batch_size 32
        --max_steps "${MAX_STEPS:-600}"
        --learning_rate 3e-3
        --adam_beta2 0.95
        --warmup_steps 60
        --dataloader_num_workers 1
        --disable_tqdm True
    )
else
    ARGUMENTS+=(
        --use_lora True
        --bf16 True
        --per_device_train_batch_size 4
        --gradient_accumulation_steps 4
        --num_train_epochs 1
        --learning_rate 1e-4
        --warmup_steps 0.03
        --model_max_length 4096
        --dataloader_num_workers 4
    )
fi
python train.py "${ARGUMENTS[@]}"

# ---- answers --------------------------------------------------------------------------------------------------------
python predict.py --model_path "$OUTPUT_DIR" --data_path "$DATA/test.json" \
    --output_path "$OUTPUT_DIR/answers.jsonl" --batch_size 32 --max_new_tokens 8
python example_data/report.py "$DATA/train.json" "$DATA/test.json" "$OUTPUT_DIR/answers.jsonl"
