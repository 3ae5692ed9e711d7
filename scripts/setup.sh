# Sourced by the other scripts: makes .venv beside this folder where it is missing, and enters it.
# PYTHON names the interpreter to make it with (3.11 or newer).
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [ ! -f .venv/ready ] || [ requirements.txt -nt .venv/ready ]; then
  python=${PYTHON:-}
  for name in $python python3.13 python3.12 python3.11 python3 python; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$name; break; fi
  done
  if ! "${python:-none}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python" >&2
    exit 3
  fi
  echo "installing into .venv (once; a few minutes)"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  touch .venv/ready
fi
source .venv/bin/activate
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # one thread a process: see the README, "Speed"
