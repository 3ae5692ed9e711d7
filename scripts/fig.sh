# Sourced by the fig_*.sh: reads --scale cpu|paper, --smoke, --dry_run and --jobs N, and enters .venv.
# Sets scale, runs (the folder of all runs of that scale), jobs, and flags (what every program is given besides).
# RUNS=DIR puts the runs elsewhere; PER_GPU=K lets K of the --jobs share a GPU; asked is what a script's own variables
# add to its command. At the end of a script, keep NAME FILE copies small results into results/$study, which is regions
# unless the script has set another before.
study=${study:-regions}
scale=cpu jobs=2 flags=() dry=0
while [ $# -gt 0 ]; do
  case "$1" in
    --scale) scale=${2:?--scale takes cpu or paper}; shift 2 ;;
    --jobs) jobs=${2:?--jobs takes a number}; shift 2 ;;
    --smoke) flags+=(--smoke); shift ;;
    --dry_run) dry=1; shift ;;
    *) echo "$(basename "$0"): unknown argument $1; known: --scale cpu|paper, --jobs N, --smoke, --dry_run" >&2; exit 2 ;;
  esac
done
case "$scale" in cpu|paper) ;; *) echo "$(basename "$0"): --scale is cpu or paper, not $scale" >&2; exit 2 ;; esac
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
runs=${RUNS:-runs/${study}_$scale}
smoke=0; for f in ${flags[@]+"${flags[@]}"}; do [ "$f" = --smoke ] && smoke=1; done
made=$runs; [ "$smoke" = 1 ] && made=$runs/smoke

sweep() { # sweep GRID.yaml [ARGUMENTS]: train what is missing; with --dry_run only list it
  local action=run; [ "$dry" = 1 ] && action=plan
  local grid=$1; shift
  if [ "$action" = run ]; then
    python scripts/sweep.py run "$grid" --jobs "$jobs" --per_gpu "${PER_GPU:-1}" --runs "$runs" ${flags[@]+"${flags[@]}"} "$@"
  else
    python scripts/sweep.py plan "$grid" --runs "$runs" ${flags[@]+"${flags[@]}"} "$@"
  fi
}

maps() { # maps [ARGUMENTS]: class maps of the selected networks, shared out to as many processes as there are jobs
  [ "$dry" = 1 ] && { echo "python save_preds.py --load_net $made/$study --runs $runs $*"; return; }
  local part one started=()
  for part in $(seq "$jobs"); do
    python save_preds.py --load_net "$runs/$study" --runs "$runs" --part "$part/$jobs" --threads 1 \
      ${flags[@]+"${flags[@]}"} "$@" &
    started+=($!)
  done
  for one in "${started[@]}"; do wait "$one"; done
}

tool() { # tool PROGRAM [ARGUMENTS]: a measuring or drawing program on this scale's runs
  [ "$dry" = 1 ] && { echo "python $*"; return; }
  python "$@" --runs "$runs" ${flags[@]+"${flags[@]}"}
}

together() { # together COMMAND...: in the background, once fewer than --jobs are at work
  if [ "$dry" = 1 ]; then "$@"; return; fi
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  "$@" &
}
all_done() { # wait for them; the first that failed ends the script
  for one in $(jobs -p); do wait "$one"; done
}

keep() { # keep NAME FILE: into results/<study>/NAME, at the CPU's scale and not in smoke mode
  if [ "$dry" = 1 ] || [ "$smoke" = 1 ]; then return; fi
  mkdir -p results/$study
  local kept=$scale-$1
  case "$1" in
    *.png) kept=$(python -c 'import os, sys; from PIL import Image
image, path = Image.open(sys.argv[1]).convert("RGB"), sys.argv[2]
image.thumbnail((1000, 1000))
image.save(path, optimize=True)
if os.path.getsize(path) > 80_000:  # all figures in git together are under 5 MB
    os.remove(path)
    path = path[:-4] + ".jpg"
    for quality in (85, 75, 65, 55, 45):
        image.save(path, quality=quality, optimize=True)
        if os.path.getsize(path) < 80_000: break
print(os.path.basename(path))' "$2" "results/$study/$kept") ;;
    *) cp "$2" "results/$study/$kept" ;;
  esac
  local made_by=results/$study/made.txt old=$kept  # file, command, commit
  case "$kept" in *.png) old=${kept%.png}.jpg ;; *.jpg) old=${kept%.jpg}.png ;; esac
  [ "$old" = "$kept" ] || rm -f "results/$study/$old"
  { grep -v "^$kept \|^$old " "$made_by" 2>/dev/null || true
    echo "$kept  ${asked:-}bash scripts/$(basename "$0") --scale $scale  $(git rev-parse --short HEAD)"; } | sort > "$made_by.new"
  mv "$made_by.new" "$made_by"
  echo "kept: results/$study/$kept"
}
