#!/usr/bin/env bash
# Everything that a GPU machine is asked for while it is lent: python3 with torch, torchvision, timm, safetensors, numpy,
# pillow, pyyaml, tqdm, pytest and hypothesis, no network, nothing installed. Run from the root of a clone.
#
#   tests/gpu/lease.sh pack NAME            here: pack data and weights of campaign NAME into .lease/1, .lease/2, ...,
#                                           each small enough to travel in one call beside the working tree
#   tests/gpu/lease.sh checks NAME          there: a step's switches, the tests of a GPU, the speed table
#   tests/gpu/lease.sh campaign NAME        there: teachers, a trial of 1, 2 and 4 processes, then runs until time is up
#   tests/gpu/lease.sh unpack FOLDER NAME   here: put records and runs that came back where they belong
#
# Of 15 minutes: `checks` first, with LEASE_MEASURE=0.3, which needs nothing packed. Its steps give SECONDS_OF_APD of the
# recipes and LEASE_PROCESSES; commit and pack, carry all pieces but the last in calls of `true`, and end with `campaign`.
#
# What a part cannot do, it says, and the next one goes on. Results go to OUT. Settings, by the environment:
#   LEASE_SECONDS  of the whole call, from its start to the last file in OUT (default 570)
#   LEASE_DEVICE   (default cuda)          LEASE_TESTS  which tests, as of pytest -k (default: all)
#   LEASE_MEASURE  seconds of a measurement (default 0.5)
#   LEASE_PROCESSES  of the campaign, without the trial
#   LEASE_TOY=1    tiny networks and shapes, as the rehearsal on a CPU has them
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python # which does not travel
[ -x "$python" ] || python=python3
python=${PYTHON:-$python}
export PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH="$PWD:$PWD/tests:${PYTHONPATH:-}"
export LEASE_ENDS=$(($(date +%s) + ${LEASE_SECONDS:-570})) LEASE_DEVICE=${LEASE_DEVICE:-cuda}
phase=${1:?pack, checks, campaign or unpack}

lease() { timeout -k 5 "${MOST:-$((LEASE_ENDS - $(date +%s)))}" "$python" -m tests.gpu.lease "$@"; }

spread() { # what is in the pieces that have come so far
  mkdir -p .lease/all
  printf '%s\n' .lease/[0-9]*/piece | sort -V | xargs cat | tar -x -C .lease/all 2>/dev/null # before the last it ends amid a file
  export APD_DATA=$PWD/.lease/all/data APD_RUNS=$PWD/.lease/all/runs TORCH_HOME=$PWD/.lease/all/weights
  export PYTHONPATH="$PYTHONPATH:$PWD/.lease/all/site" APD_COMMIT
  APD_COMMIT=$(cat .lease/all/COMMIT 2>/dev/null || true)
}

case $phase in
  pack | unpack) lease "$@" ;;
  checks)
    spread
    : "${OUT:?a folder for the results}"
    lease machine | tee "$OUT/machine.txt"
    MOST=150 lease switches "$2" 2>&1 | tee "$OUT/switches.txt" || echo "lease: the CUDA graph was not measured"
    timeout 200 "$python" -m pytest -c /dev/null --rootdir . -q -p no:cacheprovider -rs \
      -k "${LEASE_TESTS:-}" tests/gpu/test_on_a_gpu.py 2>&1 |
      tee "$OUT/gpu-tests.txt" || echo "lease: some GPU tests failed, see above"
    lease speed 2>&1 | tee "$OUT/speed.txt" || echo "lease: the speed table is not complete"
    ;;
  campaign)
    spread
    : "${OUT:?a folder for the results}"
    lease campaign "$2" 2>&1 | tee "$OUT/campaign.txt" || echo "lease: the campaign ended early, see above"
    lease collect "$2" 2>&1 | tee -a "$OUT/campaign.txt"
    ;;
  *) echo "lease: $phase: expected pack, checks, campaign or unpack" >&2; exit 2 ;;
esac
