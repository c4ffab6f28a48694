#!/usr/bin/env bash
# Everything that a GPU machine is asked for while it is lent: python3 with torch, torchvision, timm, safetensors, numpy,
# pillow, pyyaml, tqdm, pytest and hypothesis, no network, nothing installed. Run from the root of a clone.
#
#   tests/gpu/lease.sh pack NAME            here: pack data and weights of campaign NAME into .lease/1, .lease/2, ...,
#                                           each small enough to travel in one call beside the working tree
#   tests/gpu/lease.sh checks NAME          there: a step's switches, 1, 2 and 4 processes, GPU tests, the speed table
#   tests/gpu/lease.sh campaign NAME        there: teachers, then runs until the time is up
#   tests/gpu/lease.sh unpack FOLDER NAME   here: put records and runs that came back where they belong
#
# Of 15 minutes the start of a machine takes one or two, and an idle one goes back: so commit and pack first (two pieces),
# and prepare both calls. The first carries .lease/1 (which holds the commit): LEASE_SECONDS=240 LEASE_MEASURE=0.2 `checks`.
# The second follows at once and carries .lease/2: `campaign` with LEASE_SKIP=student_equal_seconds, whose steps are known
# from this lease's records only, and LEASE_SECONDS=540 or what is left less 40. A call's own limit is 20 seconds more.
#
# What a part cannot do, it says, and the next one goes on. Results go to OUT. Settings, by the environment:
#   LEASE_SECONDS  of the whole call, from its start to the last file in OUT
#   LEASE_PROCESSES  of the campaign, side by side (default: the fastest number in `checks`)
#   LEASE_SKIP     runs that the campaign leaves out, by a part of their names
#   LEASE_DEVICE   (default cuda)          LEASE_TESTS  which tests, as of pytest -k (default: all)
#   LEASE_MEASURE  seconds of a measurement (default 0.5)
#   LEASE_TOY=1    tiny networks and shapes, as the rehearsal on a CPU has them
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=.venv/bin/python # which does not travel
[ -x "$python" ] || python=python3
python=${PYTHON:-$python}
export PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH="$PWD:$PWD/tests:${PYTHONPATH:-}"
export LEASE_DEVICE=${LEASE_DEVICE:-cuda}
phase=${1:?pack, checks, campaign or unpack}
lease=("$python" -m tests.gpu.lease)

within() { # PER_CENT COMMAND: no longer than that share of what is left; SIGINT lets it say what it has
  local seconds=$(((LEASE_ENDS - $(date +%s)) * $1 / 100))
  timeout -s INT -k 5 $((seconds > 1 ? seconds : 1)) "${@:2}"
}

arrive() { # what is in the pieces that have come so far
  export LEASE_ENDS=$(($(date +%s) + ${LEASE_SECONDS:?of the whole call}))
  : "${OUT:?a folder for the results}"
  mkdir -p .lease/all
  printf '%s\n' .lease/[0-9]*/piece | sort -V | xargs cat | tar -x -C .lease/all 2>/dev/null # before the last it ends amid a file
  export APD_DATA=$PWD/.lease/all/data APD_RUNS=$PWD/.lease/all/runs TORCH_HOME=$PWD/.lease/all/weights
  export PYTHONPATH="$PYTHONPATH:$PWD/.lease/all/site" APD_COMMIT
  APD_COMMIT=$(cat .lease/all/COMMIT 2>/dev/null || true)
  [ -e .git ] || touch tests/__init__.py book/__init__.py # or an installed package of such a name is imported
}

case $phase in
  pack | unpack) "${lease[@]}" "$@" ;;
  checks)
    arrive
    "${lease[@]}" machine | tee "$OUT/machine.txt"
    within 40 "${lease[@]}" switches "$2" 2>&1 | tee "$OUT/switches.txt" || echo "lease: not every switch was measured"
    within 60 "$python" -m pytest -c /dev/null --rootdir . -v -p no:cacheprovider -rs --tb=short --durations=8 \
      -k "${LEASE_TESTS:-}" tests/gpu/test_on_a_gpu.py 2>&1 |
      tee "$OUT/gpu-tests.txt" || echo "lease: some GPU tests failed, see above"
    within 100 "${lease[@]}" speed 2>&1 | tee "$OUT/speed.txt" || echo "lease: the speed table is not complete"
    ;;
  campaign)
    arrive
    LEASE_PROCESSES=${LEASE_PROCESSES:-$(cat .lease/processes 2>/dev/null)}
    export LEASE_PROCESSES=${LEASE_PROCESSES:?how many runs side by side, as the checks say}
    within 95 "${lease[@]}" campaign "$2" 2>&1 | tee "$OUT/campaign.txt" || echo "lease: the campaign ended early, see above"
    timeout 60 "${lease[@]}" collect "$2" 2>&1 | tee -a "$OUT/campaign.txt"
    ;;
  *) echo "lease: $phase: expected pack, checks, campaign or unpack" >&2; exit 2 ;;
esac
