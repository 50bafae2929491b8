#!/usr/bin/env bash
# Build the image, start everything from a clean state, and play the round trip: predictions in the first project without
# a click, then pre-label, correct, train in the worker's container, serve the new version from the backend's.
#
#   docker/smoke.sh docker compose                  any command that takes docker compose's arguments
#   FAULT="worker redis backend" docker/smoke.sh docker compose
#                                                   a round trip for each, in the middle of whose training the worker is
#                                                   killed, Redis or the backend restarted
#   SCALE=1 docker/smoke.sh docker compose          two backends behind the proxy, two workers
#   KEEP=1 ...                                      leaves everything running
#
# Containers, volumes and ports are its own: a deployment on this machine is left alone. Exits with 0 if all of it works.
set -euo pipefail
if [ $# -eq 0 ]; then set -- docker compose; fi
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
faults=${FAULT:-none} scale=${SCALE:-} started=$SECONDS
cd "$root"

say() { printf '[%4d s] %s\n' $((SECONDS - started)) "$*"; }
fail() { say "FAILED: $*"; exit 1; }

mkdir -p "$work/first-project/images" "$work/models"
cp docker/first-project/label-config.example.xml "$work/first-project/label-config.xml"
cp docs/pictures/*.png "$work/first-project/images/"
chmod -R a+rX "$work"
# A training starts when all of the check's corrections are there, not after the first.
ENV_FILE="$work/.env" sh docker/make-env.sh VLM_CHECKPOINT=demo VLM_TRAIN_MIN_ANNOTATIONS=48 \
  VLM_FIRST_PROJECT="$work/first-project" VLM_MODELS_FOLDER="$work/models" TORCH_INDEX="${TORCH_INDEX-}" \
  LABEL_STUDIO_PUBLISH="127.0.0.1:${LABEL_STUDIO_PORT:-18080}" BACKEND_PUBLISH="127.0.0.1:${BACKEND_PORT:-19090}" \
  > /dev/null

files=(-f docker/compose.yaml)
if [ -n "$scale" ]; then
  files+=(-f docker/compose.scale.yaml)
fi
compose() { "$runner" "${runner_arguments[@]}" --env-file "$work/.env" -p vlm-smoke "${files[@]}" "$@"; }
runner=$1 && shift
runner_arguments=("$@")
export COMPOSE_PROFILES=label-studio

finish() {
  status=$?
  if [ $status -ne 0 ]; then
    compose logs --tail 40 > "$work/logs.txt" 2>&1 || true
    say "the last lines of all logs are in $work/logs.txt"
  fi
  if [ -z "${KEEP:-}" ]; then
    compose down -v > "$work/down.txt" 2>&1 || true
    [ $status -ne 0 ] || rm -r "$work"
  fi
}
trap finish EXIT

# Ask until it works: wait_for SECONDS WHAT COMMAND...
wait_for() {
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $until ] || fail "waited too long for $what"
    sleep 5
  done
}

say "building and starting"
compose down -v > /dev/null 2>&1 || true
compose up -d --build > "$work/up.txt" 2>&1 || { tail -40 "$work/up.txt"; fail "up"; }
say "all containers are started"
wait_for 300 "a healthy backend" compose exec -T backend python3 -m backend.health
say "the backend is healthy"

ask_label_studio='
import sys
from backend.label_studio.client import LabelStudioClient
from backend.settings import load_settings
s = load_settings()
with LabelStudioClient(s.label_studio_url, s.label_studio_token) as client:
    tasks = [t for p in client.projects() if p["title"] == "First project" for t in client.tasks(p["id"])]
with_prediction = sum(bool(t["predictions"]) for t in tasks)
print(f"{with_prediction} of {len(tasks)} tasks of the first project have a prediction")
sys.exit(not tasks or with_prediction < len(tasks))
'
wait_for 600 "predictions in the first project" compose exec -T backend python3 -c "$ask_label_studio"
say "$(compose exec -T backend python3 -c "$ask_label_studio" | tr -d '\r' | tail -1), without a click"

# Play the round trip; in the middle of its training something happens to a service: round_trip none|worker|redis|backend
round_trip() {
  local fault=$1 check
  say "the round trip begins"
  compose run --rm --no-deps -T connect check-deployment > "$work/check.txt" 2>&1 &
  check=$!
  if [ "$fault" != none ]; then
    # In the middle of it: "training job running: PHASE".
    wait_for 900 "the training" grep -q "training job running: " "$work/check.txt"
    case $fault in
      worker)
        say "killing the worker"
        compose kill worker > /dev/null 2>&1
        compose start worker > /dev/null 2>&1
        ;;
      redis | backend)
        say "restarting $fault"
        compose restart "$fault" > /dev/null 2>&1
        ;;
      *) fail "FAULT is $fault: worker, redis or backend" ;;
    esac
    say "$fault is back"
  fi
  wait "$check" || { cat "$work/check.txt"; fail "the round trip, fault: $fault"; }
  cat "$work/check.txt"
  say "the round trip works, fault: $fault"
}
for fault in $faults; do
  round_trip "$fault"
done

# Each backend, asked alone, predicts with the new version.
ask_backend='
import sys
from backend.demo.measure import measure
from backend.demo.project import evaluation_scenes
from backend.demo.round_trip import ml_backend_project
from backend.label_studio.client import LabelStudioClient
from backend.settings import load_settings
s = load_settings()
with LabelStudioClient(s.label_studio_url, s.label_studio_token) as client:
    project = ml_backend_project(client, int(sys.argv[1]))
print(measure("http://127.0.0.1:9090", project, evaluation_scenes(4), basic_auth=s.basic_auth).model_version)
'
expected=$(sed -n 's/^version after: *//p' "$work/check.txt" | tr -d ' \r')
project=$(expr "$expected" : '.*-p\([0-9]*\)-v')
for index in 1 ${scale:+2}; do
  served=$(compose exec -T --index "$index" backend python3 -c "$ask_backend" "$project" | tail -1 | tr -d '\r')
  say "backend $index predicts with $served"
  [ "$served" = "$expected" ] || fail "backend $index does not serve $expected"
done

# Nothing runs as root, nothing but the volumes can be written, nothing is half written.
inside='
import glob, sys
users = {line.split()[1] for path in glob.glob("/proc/[0-9]*/status") for line in open(path) if line.startswith("Uid:")}
mounts = {line.split()[1]: line.split()[3].split(",") for line in open("/proc/mounts")}
if "0" in users:
    sys.exit("a process runs as root")
if "ro" not in mounts["/"]:
    sys.exit("the root file system can be written to")
'
for service in backend worker; do
  compose exec -T "$service" python3 -c "$inside" || fail "$service"
done
left=$(compose exec -T worker sh -c 'find /data -name "*.tmp" -o -name "*.part"' | tr -d '\r')
[ -z "$left" ] || fail "half written: $left"
say "no process of ours runs as root, the root file system is read-only, nothing is half written"
say "all of it works"
