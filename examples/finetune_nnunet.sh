#!/usr/bin/env bash
# Fine-tune the encoder in nnU-Net's own training, on one of its data sets:
#
#     python -m pip install maesil nnunetv2==2.8.1
#     export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...
#     bash examples/finetune_nnunet.sh 701 [CHECKPOINT]
#
# The data set's images are in LPS, and its dataset.json has "channel_names": {"0": "noNorm"} (docs/Downstream.md).
set -euo pipefail
dataset=$1 checkpoint=${2:-}
plans=nnUNetPlansMAESIL
export nnUNet_extTrainer="$nnUNet_results/maesil_trainer"

maesil export ${checkpoint:+"$checkpoint"} --format nnunet --output "$nnUNet_extTrainer"
nnUNetv2_extract_fingerprint -d "$dataset"
nnUNetv2_plan_experiment -d "$dataset" -overwrite_target_spacing 1.5 1.5 1.5 -overwrite_plans_name "$plans"
nnUNetv2_preprocess -d "$dataset" -c 3d_fullres -plans_name "$plans"
nnUNetv2_train "$dataset" 3d_fullres 0 -p "$plans" -tr nnUNetTrainerMAESIL ${DEVICE:+-device "$DEVICE"}
