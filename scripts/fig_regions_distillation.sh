#!/usr/bin/env bash
# Figure 5 of Somepalli et al. 2022: is a distilled student nearer to its teacher than a vanilla network of the same
# initialisation is? Paired by seed.   bash scripts/fig_regions_distillation.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

sweep "configs/fig_regions_families_$scale.yaml"  # teachers and vanilla networks
common="--dataset CIFAR10 --val_size 0 --imgs none"
if [ "$scale" = cpu ]; then
  planes=100 nets='net=wrn-10-2|resnet20'
  common="$common --train_size 10000 --epochs 12 --scheduler cosine --eval_every 0 --lr 0.1"
  teacher="--net wrn-10-2" student="--net resnet20 --width 8"
else
  planes=500 nets='net=WideResNet_10|ResNet'
  common="$common --epochs 100 --scheduler linear --eval_every 10 --lr 0.1"
  teacher="--net WideResNet_10" student="--net ResNet"
fi
for seed in 0 1 2; do
  run=$(python main.py $teacher $common --seed $seed --runs "$runs" ${flags[@]+"${flags[@]}"} --dry_run | sed -n '1s/^[a-z]*: //p')
  together tool main.py $student $common --seed $seed --threads 1 --train_mode distillation --teacher "$run"
done
all_done
chosen=(--select 'train_mode=naive|distillation' opt=SGD sam_radius=None "$nets")
maps "${chosen[@]}" --planes "$planes"
tool calculate_iou.py --load_net "$runs/regions" "${chosen[@]}" --group_by net,train_mode --planes "$planes" \
  --anchors distinct
[ "$dry" = 1 ] && exit 0
newest=$(ls -td "$made"/regions/agreement_* | head -n 1)
keep agreement_distillation.png "$newest/figures/agreement.png"
keep agreement_distillation.csv "$newest/agreement.csv"
