#!/bin/sh
# Installs what the tests need into .venv, and the programs that are not Python packages, then runs every test.
# With arguments, runs pytest with them instead.
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install -q --require-hashes -r requirements-test.lock
.venv/bin/pip install -q --no-deps -e .

# Redis 7 is the second engine that every script is tested on; Chromium is the browser of the front-end tests; promtool,
# which judges the alert rules, is in the package of Prometheus; libfaketime gives single processes a wrong clock; HAProxy
# stands in front of replicas that are restarted one after the other.
missing=""
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v promtool >/dev/null || missing="$missing prometheus"
command -v haproxy >/dev/null || missing="$missing haproxy"
command -v chromium >/dev/null || missing="$missing chromium"
ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1 || missing="$missing libfaketime"
if [ -n "$missing" ]; then
  as_root=""
  [ "$(id -u)" = 0 ] || as_root="sudo"
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

[ $# = 0 ] || exec .venv/bin/python -m pytest "$@"

# What has the machine to itself runs alone: storms of requests, crashes, counts of a hundred thousand.
alone="tests/faults tests/mutants tests/e2e"
ignored=$(printf -- '--ignore=%s ' $alone)
.venv/bin/python -m pytest -n 2 --dist loadfile $ignored
.venv/bin/python -m pytest --durations=15 $alone
