"""nginx as a plain reverse proxy, the least that anything in front of an upstream can cost.

`nginx` gives a target, or says why there is none.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from urllib.parse import urlsplit

from tests.fleet import free_port

from .stand import Stand, Target

CONFIG = """
daemon off;
worker_processes 1;
user {user};
pid {folder}/nginx.pid;
error_log {folder}/nginx.log error;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/client;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream canned {{ server {upstream}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://canned;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def nginx(stand: Stand) -> Target | str:
    """A target, or one line."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        return "nginx: not installed"
    folder, port = stand.folder / "nginx", free_port()
    folder.mkdir()
    user = pwd.getpwuid(os.geteuid()).pw_name
    file = folder / "nginx.conf"
    file.write_text(CONFIG.format(user=user, folder=folder, port=port, upstream=urlsplit(stand.upstream).netloc))
    url, pid = stand.run([program, "-p", str(folder), "-c", str(file), "-e", str(folder / "nginx.log")], port)
    return Target("nginx", (pid,), (url + "/v2/job",))


def version() -> str:
    """Such as 1.22.1, or `absent`."""
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        return "absent"
    shown = subprocess.run([program, "-v"], capture_output=True, text=True, check=False).stderr
    return shown.strip().rpartition("/")[2]
