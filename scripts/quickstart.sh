#!/usr/bin/env bash
# The main job on the bundled digits, in a few minutes on two cores: train 2 architectures x 3 seeds, draw their
# decision regions on one plane, compare their class maps on 60 seeded planes.   bash scripts/quickstart.sh
# Done again, it returns in seconds, since finished runs are not repeated. RUNS=DIR puts the runs elsewhere.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
runs=${RUNS:-runs/quickstart}

python scripts/sweep.py run configs/quickstart.yaml --jobs 2 --runs "$runs"
python main.py --load_net "$runs/regions" --dataset digits --imgs 5,42,17 --resolution 150 --runs "$runs" &
python save_preds.py --load_net "$runs/regions" --planes 60 --resolution 50 --runs "$runs"
wait $!
python calculate_iou.py --load_net "$runs/regions" --runs "$runs"

echo
echo "look at:"
ls -d "$runs"/regions/panels-*/figures/*.png "$runs"/regions/agreement_*/figures/agreement.png \
  "$runs"/regions/agreement_*/agreement.csv
