#!/usr/bin/env bash
# Every measure of every pair of twelve networks in one table: is a low barrier a high agreement? Ours, of no paper.
# bash scripts/fig_across.sh [--scale cpu|paper] [--smoke] [--dry_run]
set -euo pipefail
study=across
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

sweep "configs/fig_across_$scale.yaml"
if [ "$scale" = cpu ]; then planes=50 images=1000 points=5; else planes=500 images=0 points=11; fi
[ "$dry" = 1 ] && echo "python save_preds.py --load_net $made/regions --runs $runs --planes $planes"
[ "$dry" = 1 ] || python save_preds.py --load_net "$runs/regions" --runs "$runs" --planes "$planes" ${flags[@]+"${flags[@]}"}
out=results/across/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
tool -m landscape.pairs --members "$runs/regions" --points "$points" --images "$images" \
  --bn_images "$images" --claims "$out"
[ "$dry" = 1 ] && exit 0
newest=$(ls -td "$made"/across/pairs_* | head -n 1)
keep pairs.csv "$newest/pairs.csv"
keep correlations.csv "$newest/correlations.csv"
keep pairs.png "$newest/figures/pairs.png"
