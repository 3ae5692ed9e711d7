#!/usr/bin/env bash
# Table 1 of Somepalli et al. 2022: reproducibility and accuracy after Adam, SGD and SGD with SAM.
# bash scripts/fig_regions_optimisers.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

if [ "$scale" = paper ]; then  # 200 epochs in batches of 64: not to be pooled with the other figures'
  runs=$runs/optimisers
  made=$runs; [ "$smoke" = 1 ] && made=$runs/smoke
fi
sweep "configs/fig_regions_optimisers_$scale.yaml"
if [ "$scale" = cpu ]; then planes=100 nets='net=resnet20|vgg11_bn'; else planes=500 nets='net=ResNet|VGG|MLPMixer4|ViT4'; fi
chosen=(--select train_mode=naive "$nets")
maps "${chosen[@]}" --planes "$planes"
tool calculate_iou.py --load_net "$runs/regions" "${chosen[@]}" --group_by net,opt,sam_radius --planes "$planes" \
  --anchors distinct
[ "$dry" = 1 ] && exit 0
python -m landscape.results "$made/regions" --format csv \
  --columns net,width,opt,sam_radius,train_mode,init_seed,last.train_accuracy,last.test_accuracy > "$made/accuracies.csv"
keep accuracies.csv "$made/accuracies.csv"
newest=$(ls -td "$made"/regions/agreement_* | head -n 1)
keep agreement_optimisers.png "$newest/figures/agreement.png"
keep agreement_optimisers.csv "$newest/agreement.csv"
