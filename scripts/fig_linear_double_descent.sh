#!/usr/bin/env bash
# The figures of Schaeffer et al. 2023 (arXiv 2303.14151), right and as published: linear regression with every ablation
# and attack, spectra, polynomials, and the claims; on two cores in under two minutes, without a network.
# bash scripts/fig_linear_double_descent.sh [--superposition] [--smoke] [--dry_run]
# --superposition adds the experiment of Henighan et al. 2023, about 20 minutes. California Housing and the WHO's table
# are left out, by name, where they are not in DATA_ROOT.
set -euo pipefail
superposition=0 rest=()
for word in "$@"; do
  if [ "$word" = --superposition ]; then superposition=1; else rest+=("$word"); fi
done
set -- ${rest[@]+"${rest[@]}"}
study=double_descent
source "$(dirname "${BASH_SOURCE[0]}")/fig.sh"

tool -m double_descent.linear
tool -m double_descent.linear --as_published
tool -m double_descent.spectra
tool -m double_descent.polynomial
tool -m double_descent.polynomial --as_published
[ "$superposition" = 1 ] && tool -m double_descent.superposition
out=results/double_descent/claims.json
[ "$smoke" = 1 ] && out=$made/claims.json
if [ "$dry" = 1 ]; then echo "python -m double_descent.claims $made/double_descent --out $out"; exit 0; fi
python -m double_descent.claims "$made/double_descent" --out "$out"
newest() { ls -td "$made"/double_descent/$1 | head -n 1; }
right=$(newest 'linear-*') published=$(newest 'linear_as_published*')
for name in double_descent cutoffs features no_residuals ridge attack_test_rows attack_targets; do
  keep "linear_$name.png" "$right/figures/$name.png"
done
keep linear_as_published_double_descent.png "$published/figures/double_descent.png"
keep sigma_min.png "$(newest 'spectra-*')/figures/sigma_min.png"
keep geometry.png "$(newest 'spectra-*')/figures/geometry.png"
keep polynomial.png "$(newest 'polynomial-*')/figures/polynomial.png"
if [ "$superposition" = 1 ]; then
  for name in loss curves dimensionality vectors; do
    keep superposition_$name.png "$(newest 'superposition*')/figures/superposition_$name.png"
  done
fi
