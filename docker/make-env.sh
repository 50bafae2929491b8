#!/bin/sh
# Write docker/.env with fresh random secrets, and a first project's labelling config; what is there already is kept.
#
#   make env                               everything on this machine
#   make env VLM_CHECKPOINT=demo           any NAME=VALUE of docker/.env.example
#
# Needs nothing but a shell.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${ENV_FILE:-$here/.env}

if [ -e "$target" ]; then
  echo "$target is there already and is kept: remove it for new secrets, or edit it"
  exit 0
fi

random() { od -An -v -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

umask 077
work=$(mktemp "$target.XXXXXX")
trap 'rm -f "$work" "$work.new"' EXIT
cp "$here/.env.example" "$work"

# The line of NAME, commented or not, becomes NAME=VALUE. The value is taken as it is, whatever marks it holds.
put() {
  if ! grep -q "^\(# \)\{0,1\}$1=" "$work"; then
    echo "$1 is no variable of docker/.env.example" >&2
    exit 2
  fi
  name=$1 value=$2 awk '
    $0 ~ "^(# )?" ENVIRON["name"] "=" && !done { print ENVIRON["name"] "=" ENVIRON["value"]; done = 1; next }
    { print }' "$work" > "$work.new"
  mv "$work.new" "$work"
}

put LABEL_STUDIO_PASSWORD "$(random 12)"
put LABEL_STUDIO_API_KEY "$(random 20)"
put VLM_WEBHOOK_SECRET "$(random 16)"
put BASIC_AUTH_USER label-studio
put BASIC_AUTH_PASS "$(random 16)"
for pair in "$@"; do
  put "${pair%%=*}" "${pair#*=}"
done

mv "$work" "$target"
chmod 600 "$target"
echo "wrote $target"

if grep -q '^COMPOSE_PROFILES=.*label-studio' "$target" && [ ! -e "$here/first-project/label-config.xml" ]; then
  # Mode 644: the container's user reads it.
  (umask 022 && cp "$here/first-project/label-config.example.xml" "$here/first-project/label-config.xml")
  echo "wrote $here/first-project/label-config.xml: the first project's, change it as you like"
fi
cat <<TEXT
Next:     docker compose -f docker/compose.yaml up -d --build
Sign in:  http://localhost:8080 as $(sed -n 's/^LABEL_STUDIO_USERNAME=//p' "$target"), the password is in $target
TEXT
