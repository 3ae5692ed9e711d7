#!/usr/bin/env bash
# Figures 3 and 4 of Somepalli et al. 2022: decision regions of architectures x seeds on one plane, and the matrix of
# their reproducibility scores.   bash scripts/fig_regions_matrix.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"
plain=(--select opt=SGD train_mode=naive sam_radius=None)

sweep "configs/fig_regions_families_$scale.yaml"
if [ "$scale" = cpu ]; then planes=100 resolution=100; else planes=500 resolution=500; fi
tool main.py --load_net "$runs/regions" "${plain[@]}" --dataset CIFAR10 --imgs 30,72,42 --range_l 0.5 --range_r 0.5 \
  --resolution "$resolution" --map_precision bf16 --plot_path "$made/figures/panels"
maps "${plain[@]}" --planes "$planes"
tool calculate_iou.py --load_net "$runs/regions" "${plain[@]}" --planes "$planes" --anchors distinct
tool -m regions.fragmentation --load_net "$runs/regions" "${plain[@]}" --planes "$planes" --anchors distinct
[ "$dry" = 1 ] && exit 0
newest() { ls -td "$made"/regions/$1 | head -n 1; }
keep regions_panels.png "$(ls -t "$made"/figures/panels/*.png | head -n 1)"
keep agreement_families.png "$(newest 'agreement_*')/figures/agreement.png"
keep agreement_families.csv "$(newest 'agreement_*')/agreement.csv"
keep fragmentation_families.csv "$(newest 'fragmentation_*')/fragmentation.csv"
