#!/bin/sh
# Installs what the tests need into .venv, and the programs that are not Python packages, then runs every test.
# With arguments, runs pytest with them instead.
set -eu
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/pip install -q --require-hashes -r requirements-test.lock
.venv/bin/pip install -q --no-deps -e .

# The public clients for Node, unmodified; Node itself is one of the Python packages.
clients=tests/clients
[ $clients/node_modules/.package-lock.json -nt $clients/package-lock.json ] ||
  PATH="$PWD/.venv/bin:$PATH" npm ci --prefix $clients --ignore-scripts --no-audit --no-fund --silent

# Those for Python have an environment of their own: what they need is not what the gateway needs.
[ .venv-clients/installed -nt $clients/requirements.lock ] || {
  python3 -m venv .venv-clients
  .venv-clients/bin/pip install -q --require-hashes -r $clients/requirements.lock
  touch .venv-clients/installed
}

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

.venv/bin/python -m pytest -n 2 --dist worksteal --durations=15
