"""URLs and addresses that a webhook may not go to; also for the row on forged requests."""

from __future__ import annotations

ALLOW = ("https://hooks.acme.example/", "https://studio.example:8443/in/kontext")

# Refused by their text, whatever they would resolve to.
URLS = (
    "http://hooks.acme.example/", "ftp://hooks.acme.example/", "file:///etc/passwd", "//hooks.acme.example/",
    "hooks.acme.example", "", "https://", "https:///", "javascript:alert(1)", "gopher://hooks.acme.example/",
    "https://127.0.0.1/", "https://127.1/", "https://0/", "https://0.0.0.0/", "https://2130706433/",
    "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://017700000001/", "https://127.0.1/",
    "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/", "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/", "https://255.255.255.255/", "https://[::1]/", "https://[::]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/", "https://[fe80::1%25eth0]/", "https://[fd00:ec2::254]/", "https://[64:ff9b::7f00:1]/",
    "https://localhost/", "https://LOCALHOST/", "https://Hooks.Acme.Example/", "https://hooks/",
    "https://hooks.acme.example./", "https://hooks.acme.example../", "https://.hooks.acme.example/",
    "https://user@hooks.acme.example/", "https://user:pw@hooks.acme.example/", "https://hooks.acme.example@127.0.0.1/",
    "https://hooks.acme.example:443@127.0.0.1/", "https://127.0.0.1#@hooks.acme.example/",
    "https://127.0.0.1\\@hooks.acme.example/", "https://hooks.acme.example\\@127.0.0.1/",
    "https://hooks.acme.example#@127.0.0.1/", "https://hooks.acme.example/#x", "https://hooks.acme.example?@127.0.0.1/é",
    "https://höoks.acme.example/", "https://ⓗooks.acme.example/", "https://hooks。acme.example/",
    "https://hooks.acme.example%2e/", "https://hooks%2eacme.example/", "https://hooks.acme.example%00.evil.example/",
    "https://hooks.acme.example\t/", "https://hooks.acme.example\n/", " https://hooks.acme.example/",
    "https://hooks.acme.example/ ", "https://hooks.acme.example/\r\nX-Evil: 1", "https://hooks.acme.example/\x00",
    "https://hooks.acme.example:0/", "https://hooks.acme.example:22/", "https://hooks.acme.example:25/",
    "https://hooks.acme.example:80/", "https://hooks.acme.example:99999/", "https://hooks.acme.example:+443/",
    "https://hooks.acme.example:0443/", "https://hooks.acme.example:/", "https:/hooks.acme.example/",
    "https:hooks.acme.example/", "https://hooks.acme.example/../admin", "https://hooks.acme.example/a/./b",
    "https://hooks.acme.example/in/..;/admin", "https://hooks.acme.example/in/..;x=1/admin",
    "https://hooks.acme.example/.;/admin", "https://hooks.acme.example/in/..%3B/admin",
    "https://hooks.acme.example/%2e%2e/admin", "https://hooks.acme.example/%2F..", "https://hooks.acme.example/a%5cb",
    "https://hooks.acme.example/%252e%252e/", "https://" + "a" * 64 + ".example/",
    "https://hooks.acme.example/" + "a" * 1024,
    "https://-hooks.acme.example/", "https://hooks-.acme.example/", "https://hooks_.acme.example/",
)  # fmt: skip

# Well formed, and not on the list.
ELSEWHERE = (
    "https://hooks.acme.example.evil.example/", "https://hooks.acme.exampl/", "https://evil.example/",
    "https://evil.example/?https://hooks.acme.example/", "https://hooks.acme.example:8443/",
    "https://studio.example/in/kontext", "https://studio.example:8443/in/kontextual", "https://studio.example:8443/in",
    "https://studio.example:8443/", "https://studio.example:9443/in/kontext",
)  # fmt: skip

TAKEN = (
    "https://hooks.acme.example/", "https://hooks.acme.example", "https://hooks.acme.example/a/b?c=d",
    "https://hooks.acme.example?c=d", "https://hooks.acme.example:443/", "https://studio.example:8443/in/kontext",
    "https://studio.example:8443/in/kontext/x", "https://studio.example:8443/in/kontext?x=1",
)  # fmt: skip

# What a name may not resolve to: not one of several addresses may be such a one.
ADDRESSES = (
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
    "192.168.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "169.254.169.254",
    "169.254.0.1", "100.64.0.1", "100.127.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::1", "::", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254", "fe80::1", "fe80::1%1",
    "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:db8::1",
    "2001:0:7f00:1::", "100::1", "192.0.0.9", "192.0.0.10", "192.88.99.1", "3fff::1", "3fff:fff:ffff::1",
    "2606:2800:21f:cb07::1%1", "2606:2800:21f:cb07::1%eth0", "fe80::1%eth0", "not an address", "127.1", "0x7f000001",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
