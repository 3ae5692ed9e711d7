#!/usr/bin/env bash
# Tables of Sonthalia et al. 2025 beside those of width and number: loss and accuracy along the lines, how t is drawn, the
# star's own loss (mu), widths and depths, averages over the star domain beside deep ensembles; and the baselines.
#   bash scripts/fig_star_tables.sh [--scale cpu|paper] [--jobs N] [--smoke] [--dry_run]
# cpu: MLPs of width 32 on MNIST, whose networks fig_star_mnist_width.sh shares, about 40 CPU minutes in two processes;
# paper: ResNet18 on CIFAR-10, and WideResNets of depths 22, 28, 34 and 40. DEVICE=cuda trains and measures there.
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
  net=resnet18 width=64 anchors=10 held_out=5 stars="2000 2001 2002" points=(--points 11) ood=SVHN
  recipe=(--dataset CIFAR10 --val_size 5000 --epochs 200 --bs 128 --lr 0.1 --nesterov --weight_decay 5e-4
    --scheduler cosine --eval_every 0 "${on[@]}")
fi
[ "$smoke" = 1 ] && anchors=6 held_out=2 stars=${stars% *}

sources() { # sources NET WIDTH [FLAGS]
  tool -m star.sources "${recipe[@]}" --net "$1" --width "$2" --seeds "0-$((anchors + held_out - 1))" "${@:3}"
}
all_anchors() { echo "net=$1" "width=$2" "init_seed=$(seeds 0 $((anchors - 1)))"; }
star() { # star NET WIDTH SEED [FLAGS]
  tool -m star.train "${recipe[@]}" --net "$1" --width "$2" --seed "$3" --anchors "$runs/star_sources" \
    --select $(all_anchors "$1" "$2") "${@:4}"
}
compared() { # compared NET WIDTH SEEDS FLAGS
  tool -m star.compare --stars "$runs/star" --select "net=$1" "width=$2" "init_seed=$3" \
    --held_out "$runs/star_sources" --held_out_select "net=$1" "width=$2" \
    "init_seed=$(seeds "$anchors" $((anchors + held_out - 1)))" --align weights "${points[@]}" "${on[@]}" "${@:4}"
}
path_of() { sed -n 's/^[a-z]*: //p'; } # of what a --dry_run prints
exec 3>&1
results_of() { tee >(cat >&3) | sed -n 's|^results: \(.*\)/results.json$|\1|p'; } # the folder; the rest is shown

sources "$net" "$width"
for seed in $stars; do
  for how in "--t_sampling uniform" "--t_sampling beta" "--t_sampling constant" "--mu 1"; do
    together star "$net" "$width" "$seed" $how
  done
done
all_done
compared "$net" "$width" "${stars// /|}" --anchors_measured 3

# The baselines beside the first star: the average of one training's snapshots, and learned curves between anchors.
snapshots=(-m star.sources "${recipe[@]}" --net "$net" --width "$width" --seeds 100 --scheduler cyclic --snapshots cycles)
tool "${snapshots[@]}"
nets=($(sources "$net" "$width" --dry_run | path_of)) bends=()
[ "$dry" = 1 ] && nets=($(seq -f RUN_%g 0 $((anchors + held_out - 1))))
others=("${nets[@]:$anchors}")
bend() { # bend K [FLAGS]: between anchors K and K + 1
  tool -m subspaces.train "${recipe[@]}" --net "$net" --width "$width" --family curve --beta 0 \
    --ends "${nets[$1]},${nets[$1 + 1]}" "${@:2}"
}
for k in 0 2 4; do together bend "$k"; done
all_done
for k in 0 2 4; do bends+=("$(bend "$k" --dry_run | path_of | head -n 1)"); done
[ "$dry" = 1 ] && bends=(BEND BEND BEND)
swa=$(tool "${snapshots[@]}" --dry_run | path_of)
for seed in $stars; do
  one=$(star "$net" "$width" "$seed" --dry_run | path_of | head -n 1)
  if [ "$seed" = "${stars%% *}" ]; then
    baselines=$(tool -m star.compare --stars "${one:-STAR}" --held_out "${others[@]}" --align weights "${points[@]}" \
      "${on[@]}" --anchors_measured 6 --swa "${swa:-RUN}" --bends "${bends[@]}" | results_of)
    lines=$(tool -m star.barriers -a "${one:-STAR}" -b "${others[@]}" --points 21 --align none,weights "${on[@]}" |
      results_of) # the loss along t
  fi
  average=$(tool -m star.bma --star "${one:-STAR}" --anchors "$runs/star_sources" --ood "$ood" "${on[@]}" \
    --select $(all_anchors "$net" "$width") | results_of)
  averages=${averages:-$average} # the figure shows those of the first star
done

if [ "$scale" = paper ]; then # widths and depths
  recipe+=(--scheduler multistep --milestones 60,120,160 --gamma 0.2)
  for wide in "22 1" "22 2" "22 4" "22 8" "28 1" "34 1" "40 1"; do
    of=("wrn-${wide% *}-1-bias" "${wide#* }")
    sources "${of[@]}"
    star "${of[@]}" 2000
    compared "${of[@]}" 2000 --anchors_measured 3
  done
fi

out=results/star/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
if [ "$dry" = 1 ]; then echo "python -m star.claims $made/star --out $out"; exit 0; fi
python -m star.plot "$made/star" --plot_path "$made/figures"
python -m star.claims "$made/star" --out "$out"
keep recipes.png "$made/figures/recipes.png"
drawn() { echo "$made/figures/$(basename "$1")/$2.png"; } # drawn FOLDER NAME, by star.plot
keep lines.png "$(drawn "$lines" lines)"
keep baselines.png "$(drawn "$baselines" barriers)"
keep paths.png "$(drawn "$baselines" paths)"
keep bma.csv "$averages/bma.csv"
keep bma.png "$(drawn "$averages" bma)"
keep stars.csv "$made/figures/stars.csv"
