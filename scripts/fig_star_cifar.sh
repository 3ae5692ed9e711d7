#!/usr/bin/env bash
# Figure 1 of Sonthalia et al. 2025: the barrier between a star and held-out networks against the number of its anchors,
# on CIFAR-10; alignments side by side, the aligned mean, paths over the star.
#   bash scripts/fig_star_cifar.sh [--scale cpu|paper] [--jobs N] [--smoke] [--dry_run]
# About 125 CPU minutes at the CPU's scale, in two processes. DEVICE=cuda trains and measures there.
set -euo pipefail
study=star
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

asked=${DEVICE:+DEVICE=$DEVICE }
on=(--device "${DEVICE:-auto}")
recipe=(--net resnet18 --dataset CIFAR10 --bs 128 --lr 0.1 --nesterov --weight_decay 5e-4 --scheduler cosine
  --eval_every 0 "${on[@]}")
if [ "$scale" = cpu ]; then
  counts="10 5 2 1" held_out=5 measured=3 points=(--adaptive --bn_images 2000)
  recipe+=(--width 8 --train_size 10000 --val_size 0 --epochs 20)
else
  counts="50 40 30 20 10 5 2 1" held_out=5 measured=5 points=(--points 11)
  recipe+=(--width 64 --val_size 5000 --epochs 200)
fi
[ "$smoke" = 1 ] && counts="3 2" held_out=2
most=${counts%% *}
seeds() { seq -s '|' "$1" "$2"; }

for seed in $(seq 0 $((most + held_out - 1))); do
  together tool -m star.sources "${recipe[@]}" --seeds "$seed"
done
all_done
for count in $counts; do
  together tool -m star.train "${recipe[@]}" --anchors "$runs/star_sources" \
    --select net=resnet18 "init_seed=$(seeds 0 $((count - 1)))" --seed $((1000 + count))
done
all_done
for count in $counts; do
  align=weights
  [ "$count" = "$most" ] && align=none,published,weights
  together tool -m star.compare --stars "$runs/star" --select net=resnet18 init_seed=$((1000 + count)) \
    --held_out "$runs/star_sources" --held_out_select net=resnet18 "init_seed=$(seeds "$most" $((most + held_out - 1)))" \
    --anchors_measured "$measured" --align "$align" "${points[@]}" "${on[@]}"
done
all_done

out=results/star/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
if [ "$dry" = 1 ]; then echo "python -m star.claims $made/star --out $out"; exit 0; fi
python -m star.plot "$made/star" --plot_path "$made/figures"
python -m star.claims "$made/star" --out "$out"
keep cifar_anchors.png "$made/figures/anchors.png"
keep cifar_anchors.csv "$made/figures/stars.csv"
