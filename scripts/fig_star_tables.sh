#!/usr/bin/env bash
# Tables of Sonthalia et al. 2025 beside those of width and number: loss and accuracy along the lines, how t is drawn, the
# star's own loss (mu), depths, and averages over the star domain beside deep ensembles.
#   bash scripts/fig_star_tables.sh [--scale cpu|paper] [--jobs N] [--smoke] [--dry_run]
# cpu: MLPs of width 32 on MNIST, whose networks fig_star_mnist_width.sh shares; paper: ResNet18 on CIFAR-10, and
# WideResNets of depths 22, 28, 34 and 40. DEVICE=cuda trains and measures there.
set -euo pipefail
study=star
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

asked=${DEVICE:+DEVICE=$DEVICE }
on=(--device "${DEVICE:-auto}")
seeds() { seq -s '|' "$1" "$2"; }

if [ "$scale" = cpu ]; then
  net=mlp1 width=32 anchors=17 held_out=3 stars="1000 1001 1002" points=(--adaptive) ood=FashionMNIST
  recipe=(--dataset MNIST --val_size 6000 --augment none --epochs 60 --bs 128 --lr 0.1 --nesterov --weight_decay 5e-4
    --scheduler cosine --eval_every 0 --precision fp32 "${on[@]}")
else
  net=resnet18 width=64 anchors=10 held_out=5 stars="1000 1001 1002" points=(--points 11) ood=SVHN
  recipe=(--dataset CIFAR10 --val_size 5000 --epochs 200 --bs 128 --lr 0.1 --nesterov --weight_decay 5e-4
    --scheduler cosine --eval_every 0 "${on[@]}")
fi
[ "$smoke" = 1 ] && anchors=2 held_out=2 stars="1000 1001"

sources() { tool -m star.sources "${recipe[@]}" --net "$1" --width "$2" --seeds "0-$((anchors + held_out - 1))"; }
star() { # star NET WIDTH SEED [FLAGS]
  tool -m star.train "${recipe[@]}" --net "$1" --width "$2" --seed "$3" --anchors "$runs/star_sources" \
    --select "net=$1" "width=$2" "init_seed=$(seeds 0 $((anchors - 1)))" "${@:4}"
}
compared() { # compared NET WIDTH
  tool -m star.compare --stars "$runs/star" --select "net=$1" "width=$2" --held_out "$runs/star_sources" \
    --held_out_select "net=$1" "width=$2" "init_seed=$(seeds "$anchors" $((anchors + held_out - 1)))" \
    --anchors_measured 3 --align weights "${points[@]}" "${on[@]}"
}

sources "$net" "$width"
for seed in $stars; do
  for how in "--t_sampling uniform" "--t_sampling beta" "--t_sampling constant" "--mu 1"; do
    together star "$net" "$width" "$seed" $how
  done
done
all_done
compared "$net" "$width"
if [ "$scale" = paper ]; then
  for depth in 22 28 34 40; do
    sources "wrn-$depth-bias" 1
    star "wrn-$depth-bias" 1 1000
    compared "wrn-$depth-bias" 1
  done
fi
all_anchors=(--select "net=$net" "width=$width" "init_seed=$(seeds 0 $((anchors - 1)))")
path_of() { sed -n 's/^[a-z]*: //p'; }
held=$(tool -m star.sources "${recipe[@]}" --net "$net" --width "$width" --dry_run \
  --seeds "$anchors-$((anchors + held_out - 1))" | path_of)
for seed in $stars; do
  one=$(tool -m star.train "${recipe[@]}" --net "$net" --width "$width" --seed "$seed" --anchors "$runs/star_sources" \
    "${all_anchors[@]}" --dry_run | sed -n 1p | path_of)
  if [ "$seed" = "${stars%% *}" ]; then  # loss along t
    tool -m star.barriers -a "${one:-STAR}" -b ${held:-HELD_OUT} --points 21 --align none,weights "${on[@]}"
  fi
  tool -m star.bma --star "${one:-STAR}" --anchors "$runs/star_sources" --ood "$ood" "${all_anchors[@]}" "${on[@]}"
done
out=results/star/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
if [ "$dry" = 1 ]; then echo "python -m star.claims $made/star --out $out"; exit 0; fi
python -m star.plot "$made/star" --plot_path "$made/figures"
python -m star.claims "$made/star" --out "$out"
newest() { ls -td "$made"/star/$1 | head -n 1; }
keep recipes.png "$made/figures/recipes.png"
keep lines.png "$(newest 'barriers_1x*')/figures/lines.png"
keep bma.csv "$(newest 'bma_*')/bma.csv"
for figure in "$(newest 'bma_*')"/figures/*.png; do keep "$(basename "$figure")" "$figure"; done
keep stars.csv "$made/figures/stars.csv"
