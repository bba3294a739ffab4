"""The table of bad uploads: forms that are malformed or misfilled, and pictures that cannot be used."""

from __future__ import annotations

import base64
from collections.abc import Iterator

from tests.e2e.bad_requests import CANARY, DATA_URL, PHOTO, PROMPT, Bad, document, edit, edit_form, filled
from tests.e2e.exchange import FILE, FORM
from tests.images.pictures import after_header, chunk, picture, png


def forms() -> Iterator[Bad]:
    """Forms that are malformed, repeat themselves, or put things in the wrong place."""
    for name, kind in {
        "no boundary": "",
        "an empty boundary": "; boundary=",
        "a long boundary": "; boundary=" + "b" * 71,
        "an odd boundary": '; boundary="a<b"',
    }.items():
        yield edit_form(
            name, filled(), 400, phrase="boundary", headers=(("Content-Type", "multipart/form-data" + kind),)
        )
    yield edit_form("another boundary", filled(), 400, headers=(("Content-Type", FORM + "x"),))
    whole = filled()
    for cut in (0, 1, 30, len(whole) // 2, len(whole) - 5):
        yield edit_form(f"cut after {cut} bytes", whole[:cut], 400, phrase="malformed or truncated")
    yield edit_form("a long preamble", b"preamble" * 130_000 + b"\r\n" + whole, 400)
    yield edit_form("a form of semicolons", b"a;" * 500_000, 400)
    yield edit_form(
        "10,000 parts", filled(*[(f"f{n}", b"x") for n in range(10_000)]), 413, "too_large", phrase="64 parts"
    )
    yield edit_form("10,000 tags", filled(*[("tags", b"x")] * 10_000), 413, "too_large", phrase="64 parts")
    yield edit_form("9 tags", filled(*[("tags", b"t%d" % n) for n in range(9)]), 422, field="tags")
    yield edit_form("a field twice", filled(("seed", b"1"), ("seed", b"1")), 400, field="seed", phrase="more than once")
    yield edit_form("the image twice", filled(("image", PHOTO, FILE)), 400, field="image", phrase="more than once")
    yield edit_form(
        "the image as a file and as text", filled(("image", b"x")), 400, field="image", phrase="more than once"
    )
    yield edit_form(
        "the image as text", filled(("image", b"photo.jpg"), image=False), 422, field="image", phrase="must be a file"
    )
    yield edit_form(
        "the image as a data URL",
        filled(("image", DATA_URL.encode()), image=False),
        422,
        field="image",
        phrase="must be a file",
    )
    yield edit_form("no image", filled(image=False), 422, field="image", phrase="is required")
    yield edit_form("no prompt", filled(prompt=False), 422, field="prompt", phrase="is required")
    yield edit_form(
        "a file as the prompt", filled(("prompt", PROMPT.encode(), FILE), prompt=False), 422, field="prompt"
    )
    yield edit_form("a file as the seed", filled(("seed", b"1", FILE)), 422, field="seed", phrase="is not an input")
    yield edit_form("a second file", filled(("mask", PHOTO, FILE)), 422, field="mask", phrase="is not an input")
    yield edit_form("image[]", filled(("image[]", PHOTO, FILE), image=False), 422, field="image", phrase="is required")
    yield edit_form("an unknown field", filled(("n", b"1")), 422, field="n", phrase="is not a field of edit")
    yield edit_form("a field that is not UTF-8", filled(("user", b"\xff")), 400, field="user", phrase="UTF-8")
    yield edit_form("a name that is not UTF-8", filled(b'Content-Disposition: form-data; name="\xff"\r\n\r\nx'), 400)
    yield edit_form("a field of 65 KB", filled(("user", b"u" * 66_000)), 413, "too_large", phrase="field")
    yield edit_form(
        "Content-Transfer-Encoding",
        filled(("seed", b"MQ==", "\r\nContent-Transfer-Encoding: base64")),
        400,
        phrase="encoded",
    )
    yield edit_form("a huge header", filled(("seed", b"1", '; x="' + "y" * 5000 + '"')), 413, "too_large")
    yield edit_form("many headers", filled(("seed", b"1", "\r\nX: y" * 100)), 413, "too_large")
    for name, part in {
        "no disposition": b"Content-Type: text/plain\r\n\r\nx",
        "two dispositions": b'Content-Disposition: form-data; name="a"\r\n' * 2 + b"\r\nx",
        "an attachment": b'Content-Disposition: attachment; name="seed"\r\n\r\n1',
        "no name": b"Content-Disposition: form-data\r\n\r\nx",
        "an empty name": b'Content-Disposition: form-data; name=""\r\n\r\nx', "no headers": b"\r\nx",
        "a folded header": b'Content-Disposition: form-data;\r\n name="seed"\r\n\r\n1',
        "bare line feeds": b'Content-Disposition: form-data; name="seed"\n\n1',
        "a line break in a name": (
            f'Content-Disposition: form-data; name="x"; filename="{CANARY}\r\n.jpg"\r\n\r\nx'.encode()
        ),
        "a negative length": b'Content-Disposition: form-data; name="seed"\r\nContent-Length: -1\r\n\r\n1',
        "a wrong length": b'Content-Disposition: form-data; name="seed"\r\nContent-Length: 9\r\n\r\n1',
    }.items():  # fmt: skip
        yield edit_form(f"a part with {name}", filled(part), 400)


def images() -> Iterator[Bad]:
    """Pictures that cannot be used; none of them costs anything."""
    gif, svg = b"GIF89a\x00\x01\x00\x01\x80\x00\x00", b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    jpeg, flat = picture("jpeg"), picture("png")
    animated = after_header(flat, chunk(b"acTL", b"\x00\x00\x00\x02\x00\x00\x00\x00"))
    wrong: dict[str, tuple[bytes, int, str]] = {
        "a GIF": (gif + bytes(300), 415, "unsupported_type"), "an SVG": (svg, 415, "unsupported_type"),
        "HTML": (b"<html>" + bytes(300), 415, "unsupported_type"),
        "text": (CANARY.encode(), 415, "unsupported_type"), "a PDF": (b"%PDF-1.7\n", 415, "unsupported_type"),
        "a TIFF": (b"II*\x00" + bytes(300), 415, "unsupported_type"),
        "empty": (b"", 422, "invalid_image"), "a cut JPEG": (jpeg[:200], 422, "invalid_image"),
        "a JPEG without its end": (jpeg[:-200], 422, "invalid_image"),
        "a cut PNG": (flat[:-30], 422, "invalid_image"), "a cut WebP": (picture("webp")[:-30], 422, "invalid_image"),
        "an animated PNG": (animated, 422, "invalid_image"),
        "a PNG of 20,000 pixels a side": (png(20_000, 20_000, depth=1), 413, "too_large"), "a PNG of nothing": (png(0,
        0), 422, "invalid_image"), "a strip": (picture("png", 4000, 10), 422, "invalid_image"),
    }  # fmt: skip
    for name, (data, status, code) in wrong.items():
        coded = base64.b64encode(data).decode()
        yield edit_form(name, filled(("image", data, FILE), image=False), status, code, field="image")
        yield edit(name, document("edit", image={"b64": coded}), status, code, field="image")
    for width, height in ((255, 300), (300, 255), (1921, 400), (400, 1921)):
        body = filled(("image", picture("png", width, height), FILE), ("fit", b"strict"), image=False)
        yield edit_form(f"{width}x{height}, strict", body, 422, "invalid_image", field="image", phrase="256 to 1920")
    coded = base64.b64encode(PHOTO).decode()
    for value in (
        "", CANARY, coded, "https://example.org/a.jpg", "file:///etc/passwd", "data:text/plain;base64,YQ==",
        "data:image/jpeg," + coded,
        "data:image/jpeg;base64 ," + coded, "data:image/jpeg;base64," + coded[:-1] + "!",
        "data:image/jpeg;base64," + coded[:100] + "\n" + coded[100:],
        "data:image/jpeg;base64,é" + coded, "data:image/jpeg;base64," + coded[:-3], {"b64": 5}, {"b64": coded,
        "x": 1}, {"b64": "*"}, {"url": "http://127.0.0.1/"}, {},
        {"image_id": "img_../../x"}, {"image_id": 5}, [DATA_URL], 5, None, True,
    ):  # fmt: skip
        yield edit(f"image {str(value)[:40]}", document("edit", image=value), 422, field="image")
    yield edit("an image id of nobody", document("edit", image={"image_id": "img_" + "0" * 48}), 404, "not_found")
