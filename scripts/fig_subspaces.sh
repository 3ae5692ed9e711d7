#!/usr/bin/env bash
# Figures 4 and 5 of Wortsman et al. 2021 and what the paper says of calibration, label noise and corruptions: lines,
# curves and simplexes against standard training, ensembles of two and averages of snapshots; decision regions along a
# line.   bash scripts/fig_subspaces.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
study=subspaces
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

few=(); if [ "$smoke" = 1 ]; then few=(--set 'seed=[0,1]'); fi
sweep "configs/fig_subspaces_$scale.yaml" ${few[@]+"${few[@]}"}
load="$runs/subspaces"
if [ "$scale" = cpu ]; then
  methods=swa,snapshots positions=11 images=2000 corruptions="gaussian_noise:3 gaussian_blur:3"
else
  methods=swa,snapshots,line,endpoints,random,random_module,random_weight,swag positions=21 images=12800
  corruptions="gaussian_noise:3 gaussian_noise:5 shot_noise:3 impulse_noise:3 gaussian_blur:3 gaussian_blur:5"
  corruptions+=" contrast:3 contrast:5 brightness:3 jpeg_compression:3"
fi
tool -m subspaces.evaluate --load_net "$load" --methods "$methods" --positions "$positions" --bn_images "$images"
for corruption in $corruptions; do
  tool -m subspaces.evaluate --load_net "$load" --methods swa --positions 3 --corruption "$corruption" \
    --bn_images "$images" --select noise_rate=0.0 'family=line|standard' granularity=network beta=1.0
done
tool main.py --load_net "$load" --select family=line granularity=network beta=1.0 noise_rate=0.0 samples=1 init_seed=0 \
  --point 'vertex=0;t=0.25;centre;t=0.75;vertex=1' --dataset CIFAR10 --imgs 30,72,42 --resolution 100 \
  --plot_path "$made/figures/line"
[ "$dry" = 1 ] && exit 0
newest=$(grep -l '"corruption": ""' $(ls -t "$made"/subspaces/measured_*/results.json) | head -n 1)
newest=$(dirname "$newest")
for name in along simplexes noise; do keep "$name.png" "$newest/figures/$name.png"; done
keep subspaces.csv "$newest/subspaces.csv"
python -m subspaces.plot "$made/subspaces"
keep corruptions.png "$made/subspaces/figures/corruptions.png"
keep regions_line.png "$(ls -t "$made"/figures/line/*.png | head -n 1)"
out=results/subspaces/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
python -m subspaces.claims "$made/subspaces" --out "$out"
