#!/usr/bin/env bash
# The width study of Sonthalia et al. 2025 (MLPs of one hidden layer on MNIST): barriers star to held-out, star to anchor
# and regular to regular at seven widths, and the line star = a regular + b beside the published one.
#   bash scripts/fig_star_mnist_width.sh [--scale cpu|paper] [--jobs N] [--smoke] [--dry_run]
# About 77 CPU minutes at the CPU's scale: 52 minutes on two cores beside other work. DEVICE=cuda trains and measures
# there; WIDTHS="8 16" takes these widths only. The networks of a width are stacked where that is faster.
set -euo pipefail
study=star
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

widths=${WIDTHS:-256 128 64 32 16 8 4} anchors=17 held_out=3 # the slow ones first
asked=${WIDTHS:+WIDTHS=\"$WIDTHS\" }${DEVICE:+DEVICE=$DEVICE }
points=(--adaptive) align=weights
[ "$scale" = paper ] && points=(--points 11) align=none,published,weights
[ "$smoke" = 1 ] && widths="8 4" anchors=2 held_out=2
on=(--device "${DEVICE:-auto}")
recipe=(--net mlp1 --dataset MNIST --val_size 6000 --augment none --epochs 60 --bs 128 --lr 0.1 --nesterov
  --weight_decay 5e-4 --scheduler cosine --eval_every 0 --precision fp32 "${on[@]}")
seeds() { seq -s '|' "$1" "$2"; }

one_width() {
  local of=("width=$1" net=mlp1) last=$((anchors - 1))
  tool -m star.sources "${recipe[@]}" --width "$1" --seeds "0-$((anchors + held_out - 1))"
  tool -m star.train "${recipe[@]}" --width "$1" --anchors "$runs/star_sources" \
    --select "${of[@]}" "init_seed=$(seeds 0 $last)" --seed 1000
  tool -m star.compare --stars "$runs/star" --select "${of[@]}" init_seed=1000 --held_out "$runs/star_sources" \
    --held_out_select "${of[@]}" "init_seed=$(seeds $anchors $((anchors + held_out - 1)))" "${points[@]}" \
    --align "$align" "${on[@]}"
}
for width in $widths; do together one_width "$width"; done
all_done

out=results/star/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
if [ "$dry" = 1 ]; then echo "python -m star.claims $made/star --out $out"; exit 0; fi
python -m star.plot "$made/star" --plot_path "$made/figures"
python -m star.claims "$made/star" --out "$out"
keep mnist_width.png "$made/figures/width.png"
keep mnist_width.csv "$made/figures/stars.csv"
