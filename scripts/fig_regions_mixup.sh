#!/usr/bin/env bash
# Figure 15 of Somepalli et al. 2022: networks with and without mixup, paired by seed.
# bash scripts/fig_regions_mixup.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

sweep "configs/fig_regions_mixup_$scale.yaml"
if [ "$scale" = cpu ]; then planes=100 nets=net=resnet20; else planes=500 nets='net=ResNet|ViT4'; fi
chosen=(--select 'train_mode=naive|mixup' opt=SGD sam_radius=None "$nets")
tool main.py --load_net "$runs/regions" "${chosen[@]}" --group_by net,train_mode --dataset CIFAR10 --imgs 3,84,18 \
  --resolution 100 --map_precision bf16 --plot_path "$made/figures/mixup"
maps "${chosen[@]}" --planes "$planes"
tool calculate_iou.py --load_net "$runs/regions" "${chosen[@]}" --group_by net,train_mode --planes "$planes" \
  --anchors distinct
[ "$dry" = 1 ] && exit 0
newest=$(ls -td "$made"/regions/agreement_* | head -n 1)
keep regions_mixup.png "$(ls -t "$made"/figures/mixup/*.png | head -n 1)"
keep agreement_mixup.png "$newest/figures/agreement.png"
keep agreement_mixup.csv "$newest/agreement.csv"
