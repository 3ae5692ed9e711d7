#!/usr/bin/env bash
# Figures 2, 13 and 14 of Somepalli et al. 2022: planes through uniform noise and through shuffled images, on which each
# network says almost one thing.   bash scripts/fig_regions_offmanifold.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"
plain=(--select opt=SGD train_mode=naive sam_radius=None)

sweep "configs/fig_regions_families_$scale.yaml"
if [ "$scale" = cpu ]; then planes=50; else planes=100; fi
for kind in uniform shuffled; do
  tool main.py --load_net "$runs/regions" "${plain[@]}" --dataset CIFAR10 --anchors $kind --resolution 60 \
    --map_precision bf16 --plot_path "$made/figures/$kind"
  maps "${plain[@]}" --planes "$planes" --anchors $kind --refine 8  # nearly constant: most points need no network
  tool -m regions.fragmentation --load_net "$runs/regions" "${plain[@]}" --planes "$planes" --anchors $kind
  [ "$dry" = 1 ] && continue
  keep regions_$kind.png "$(ls -t "$made"/figures/$kind/*.png | head -n 1)"
  keep fragmentation_$kind.csv "$(ls -td "$made"/regions/fragmentation_* | head -n 1)/fragmentation.csv"
done
