#!/usr/bin/env bash
# Figures 6 to 12 and 16 to 19 of Somepalli et al. 2022: double descent over the width, over the epochs, and what the
# decision regions look like there.   bash scripts/fig_double_descent.sh [--scale cpu|paper] [--smoke] [--dry_run]
# RATES="0.2 0.0" takes these noise rates only; the claims need both.
set -euo pipefail
study=double_descent
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

rates=${RATES:-0.2 0.0 0.1}
[ "$scale" = paper ] && rates=${RATES:-0.2 0.0}
asked=${RATES:+RATES=\"$RATES\" }
few=(--set "noise_rate=[${rates// /,}]") fewer=()
if [ "$smoke" = 1 ]; then few+=('seed=[0,1]' 'width=[1,4]') fewer=(--set 'order_seed=[101]' 'width=[1,4]'); fi
sweep "configs/fig_double_descent_$scale.yaml" ${few[@]+"${few[@]}"}
# Other data orders from the same initial weights:
sweep "configs/fig_double_descent_order_$scale.yaml" ${fewer[@]+"${fewer[@]}"}
load="$runs/double_descent"
if [ "$scale" = cpu ]; then
  planes=20 across=100 points=100 shown='width=1|3|4|6|12' late='width=4|12' orders='width=2|4|12'
else
  planes=1000 across=1000 points=5000 shown='width=1|4|7|10|20|64' late='width=10|64'
  orders='width=1|2|4|6|8|10|12|16|20|40|64'
fi
[ "$smoke" = 1 ] && late=width=4

measures() { # of the networks of one noise rate
  local chosen=(--select "noise_rate=$1")
  jobs=1 maps "${chosen[@]}" --planes "$planes"                                  # Figures 11 and 18, test images
  jobs=1 maps "${chosen[@]}" --planes "$planes" --anchors random --split train   # Figure 10, training images
  for base in all correct mislabelled; do                                 # Figure 12
    if [ "$1" = 0.0 ] && [ "$base" != all ]; then continue; fi
    tool -m regions.margins --load_net "$load" "${chosen[@]}" --base "$base" --split train --points "$points" \
      --directions 10
  done
}
started=()
for rate in $rates; do measures "$rate" & started+=($!); done
for one in "${started[@]}"; do wait "$one"; done

tool -m double_descent.measure --load_net "$load" --select 'order_seed=0|1|2'
tool -m double_descent.measure --load_net "$load" --select init_seed=0 noise_rate=0.2 "$orders"
tool -m double_descent.measure --load_net "$load" --select 'order_seed=0|1|2' noise_rate=0.2 "$late" --along epoch \
  --group_by noise_rate,width
one=(--column_by width --group_by noise_rate --split train --resolution 100 --select init_seed=0 order_seed=0 "$shown")
tool main.py --load_net "$load" --anchors one_mislabelled --plot_path "$made/figures/wrong" \
  --save_triplets "$made/figures/wrong.json" "${one[@]}" noise_rate=0.2                      # Figure 9
for rate in $rates; do  # which networks say what the widest one says, and where is the peak?
  tool -m regions.between --between "$load" --along width --select order_seed=0 init_seed=0 "noise_rate=$rate" \
    --planes "$across" --resolution 50
done
if [ "$dry" = 1 ]; then
  echo "python main.py --load_net $load --imgs IDS --plot_path $made/figures/both ${one[*]} noise_rate=0.0|0.2"
  echo "python -m double_descent.claims $made/double_descent --out results/double_descent/claims.json"
  exit 0
fi
ids=$(python -c 'import json, sys; print(*json.load(open(sys.argv[1]))["triplets"][0], sep=",")' "$made/figures/wrong.json")
tool main.py --load_net "$load" --imgs "$ids" --plot_path "$made/figures/both" "${one[@]}" 'noise_rate=0.0|0.2'  # Figures 7, 8
out=results/double_descent/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
python -m double_descent.claims "$made/double_descent" --out "$out"
newest() { ls -td $1 | head -n 1; }
widths=$(newest "$made/double_descent/deep_*order_seed=0-1-2-????????") # along the width; see the three calls above
keep deep_width.csv "$widths/deep.csv"
keep deep_width.png "$widths/figures/double_descent.png"
keep deep_training_points.png "$widths/figures/training_points.png"
keep deep_orders.png "$(newest "$made/double_descent/deep_*init_seed=0*")/figures/double_descent.png"
keep deep_epochs.png "$(newest "$made/double_descent/deep_*along=epoch*")/figures/double_descent.png"
for rate in $rates; do
  [ "$rate" = 0.1 ] && continue
  across=$(grep -l "noise_rate=$rate" "$made"/regions/between_*/meta.json | xargs ls -t | head -n 1)
  keep "deep_agreement_$rate.png" "$(dirname "$across")/figures/between.png"
  keep "deep_agreement_$rate.csv" "$(dirname "$across")/between.csv"
done
keep deep_regions_wrong.png "$(newest "$made/figures/wrong/*.png")"
keep deep_regions_both.png "$(newest "$made/figures/both/*.png")"
