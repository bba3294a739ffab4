"""The back end of the example page: it has the key, and mints a token for each visitor. Only Python is needed.

    GATEWAY_URL=http://127.0.0.1:8080 GATEWAY_KEY=kgw_live_... python3 deploy/examples/backend.py

serves http://127.0.0.1:8000, which must be one of the tenant's `cors.origins`.
"""

import json
import os
import pathlib
import secrets
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = pathlib.Path(__file__).with_name("edit.html")
PORT = int(os.environ.get("PORT", "8000"))


class Shop(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer("text/html; charset=utf-8", PAGE.read_bytes())

    def do_POST(self):  # here you would look at the visitor's session first: who may have a token at all?
        asked = {"operations": ["edit"], "images": 5, "usd": "0.40", "user": "visitor-" + secrets.token_hex(4)}
        call = urllib.request.Request(os.environ["GATEWAY_URL"] + "/v1/client-tokens", json.dumps(asked).encode())
        call.add_header("Authorization", "Bearer " + os.environ["GATEWAY_KEY"])
        call.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(call, timeout=10) as minted:
                lent = json.load(minted)
        except OSError as error:  # refused, or not reached
            return self.send_error(502, f"The gateway gave no token: {error}")
        told = {"gateway": os.environ["GATEWAY_URL"], "token": lent["token"], "expires_in": lent["expires_in"]}
        self.answer("application/json", json.dumps(told).encode())

    def answer(self, kind, body):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Shop).serve_forever()
