#!/usr/bin/env bash
# The figures of Fort et al. 2019 (arXiv 1912.02757) and of its re-implementation: similarity between and along
# trainings, ensembles and subspaces against size, the diversity-accuracy plane, paths and slices, corrupted and foreign
# images; and a path of low loss that is learned between two members (10 epochs, about 3 CPU minutes of a SmallCNN).
# bash scripts/fig_deep_ensembles.sh [--scale cpu|paper] [--smoke] [--dry_run]
# CYCLIC=1 adds trainings with a cyclic rate, whose snapshots make ensembles too; at the paper's scale they are there.
set -euo pipefail
study=ensembles
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

few=()
[ "$smoke" = 1 ] && few=(--set 'seed=[0,1,2]')
sweep "configs/fig_deep_ensembles_$scale.yaml" ${few[@]+"${few[@]}"}
cyclic=${CYCLIC:-0} asked=${CYCLIC:+CYCLIC=$CYCLIC }
[ "$scale" = paper ] && cyclic=1
[ "$cyclic" = 1 ] && sweep "configs/fig_deep_ensembles_cyclic_$scale.yaml" ${few[@]+"${few[@]}"}
load="$runs/ensembles"
if [ "$scale" = cpu ]; then
  nets="small_cnn" subsets=200 samples=30 placed=20 images=2000 foreign=FashionMNIST,MNIST anchors=3
else
  nets="medium_cnn resnet20v1" subsets=10000 samples=30 placed=50 images=0 foreign=SVHN anchors=5
fi

learn() { # learn NET [--dry_run]: the path between the first two members, trained as they were
  local net=$1 ends=RUN,RUN augment=none; shift
  [ "$net" = resnet20v1 ] && augment=crop,shift
  [ "$dry" = 1 ] || ends=$(python -c "from landscape import runs
found = runs.find_models('$made/ensembles', (), ['net=$net', 'scheduler=drop_a'])
print(','.join(str(s.path) for s in found[:2]))")
  tool -m subspaces.train --net "$net" --dataset CIFAR10 --family chain --ends "$ends" --epochs 10 --beta 0 \
    --opt Adam --lr 0.0016 --adam_eps 1e-7 --scheduler cosine --augment "$augment" --normalize none --val_size 0 \
    --eval_every 5 "$@"
}

measures() { # of the members of one network
  local net=$1 members=(--members "$load" --select "net=$1" scheduler=drop_a)
  tool -m ensembles.similarity "${members[@]}" &
  local first=$!
  tool -m ensembles.shift "${members[@]}" --images "$images" --ood "$foreign"
  wait "$first"
  learn "$net"
  local connector=RUN
  [ "$dry" = 1 ] || connector=$(learn "$net" --dry_run | sed -n '1s/^[a-z]*: //p')
  tool -m ensembles.paths "${members[@]}" --images "$images" --connector "$connector" &
  first=$!
  [ "$cyclic" = 1 ] && members+=(--cyclic "$load")
  tool -m ensembles.evaluate "${members[@]}" --subsets "$subsets" --samples "$samples" --plane_samples "$placed" \
    --anchors "$anchors"
  wait "$first"
}
for net in $nets; do measures "$net"; done

out=results/ensembles/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
if [ "$dry" = 1 ]; then echo "python -m ensembles.claims $made/ensembles --out $out"; exit 0; fi
python -m ensembles.claims "$made/ensembles" --out "$out"
newest() { # newest KIND NET: the folder of the last measurement of this network's members
  grep -lw "net=$2" "$made"/ensembles/"$1"*/config.yaml | xargs ls -t | head -n 1 | xargs dirname
}
for net in $nets; do
  own=""; [ "$net" = "$nets" ] || own=$net-  # several networks have a figure each
  similarity=$(newest similarity "$net") evaluate=$(newest evaluate "$net")
  shift=$(newest shift "$net") paths=$(newest paths "$net")
  for name in members trajectory_0 along_training embedding layers; do
    keep "$own$name.png" "$similarity/figures/$name.png"
  done
  for name in size around_one_solution ensemble_and_subspace plane confusion; do
    keep "$own$name.png" "$evaluate/figures/$name.png"
  done
  for figure in "$shift"/figures/*.png; do keep "${own}shift_$(basename "$figure")" "$figure"; done
  for figure in "$paths"/figures/*.png; do keep "${own}paths_$(basename "$figure")" "$figure"; done
  keep "${own}similarity.csv" "$similarity/similarity.csv"
  keep "${own}curves.csv" "$evaluate/curves.csv"
done
