"""The official client for Python, unmodified: pictures, errors and retries. One JSON line a step."""

import base64
import json
import os
import struct
import time

import openai
from openai import OpenAI

KEYS = {name.removeprefix("KEY_").lower(): key for name, key in os.environ.items() if name.startswith("KEY_")}
BASE = os.environ["GATEWAY_URL"] + "/v1"


def client(tenant, **options):
    return OpenAI(base_url=BASE, api_key=KEYS[tenant], **options)


def say(step, **told):
    print(json.dumps({"step": step, **told}), flush=True)


def kind(data):
    return "jpeg" if data[:3] == b"\xff\xd8\xff" else "png" if data[:4] == b"\x89PNG" else "webp"


def png_side(data):
    return struct.unpack(">II", data[16:24])


def refused(step, call):
    began = time.monotonic()
    try:
        call()
    except openai.APIStatusError as error:
        say(
            step,
            type=type(error).__name__,
            status=error.status_code,
            code=error.code,
            param=error.param,
            kind=error.type,
            message=error.message,
            seconds=time.monotonic() - began,
            gateway=error.body["gateway"],
            request=error.request_id,
        )
    else:
        say(step, type=None)


shop = client("shop")
made = shop.images.generate(
    model="flux-kontext-pro",
    prompt="a lighthouse at dawn",
    size="1024x1536",
    output_format="png",
    quality="auto",
    user="ada",
    extra_body={"seed": 42, "safety_tolerance": 1, "prompt_upsampling": True, "tags": ["docs"]},
)
data = base64.b64decode(made.data[0].b64_json)
say("generate", kind=kind(data), format=made.output_format, portrait=png_side(data)[0] < png_side(data)[1])

raw = shop.images.with_raw_response.generate(
    model="flux-kontext-pro",
    prompt="a lighthouse at dawn",
    size="1024x1536",
    output_format="png",
    user="ada",
    extra_body={"seed": 42, "safety_tolerance": 1, "prompt_upsampling": True},
)
say(
    "again",
    source=raw.headers["gateway-source"],
    seed=raw.headers["gateway-seed"],
    same=base64.b64decode(raw.parse().data[0].b64_json) == data,
)

several = shop.images.with_raw_response.generate(
    model="flux-kontext-max", prompt="three sketches of a boat", n=3, extra_body={"seed": 7}
)
pictures = several.parse().data
say(
    "several",
    count=len(pictures),
    distinct=len({one.b64_json for one in pictures}),
    seeds=several.headers["gateway-seed"],
    cost=several.headers["gateway-cost-usd"],
)

with open(os.environ["PHOTO"], "rb") as photo:
    edited = shop.images.edit(model="flux-kontext-pro", image=photo, prompt="make the sky stormy", size="auto")
say("edit", kind=kind(base64.b64decode(edited.data[0].b64_json)))
with open(os.environ["PHOTO"], "rb") as photo:
    styled = shop.images.edit(
        model="flux-kontext-dev",
        image=[photo],
        prompt="as a comic",
        n=2,
        size="512x768",
        response_format="url",
        extra_body={"style_preset": "comic-book", "steps": 4},
    )
say("edit by dev", urls=[one.url for one in styled.data])

say("models", ids=sorted({model.id for model in shop.models.list()}), one=shop.models.retrieve("flux-kontext-dev").id)

with open(os.environ["PHOTO"], "rb") as photo, open(os.environ["PHOTO"], "rb") as mask:
    refused("mask", lambda: shop.images.edit(model="flux-kontext-pro", image=photo, mask=mask, prompt="a storm"))
with open(os.environ["PHOTO"], "rb") as one, open(os.environ["PHOTO"], "rb") as two:
    refused("two images", lambda: shop.images.edit(model="flux-kontext-pro", image=[one, two], prompt="a storm"))
refused("transparent", lambda: shop.images.generate(prompt="a storm", background="transparent"))
refused("stream", lambda: list(shop.images.generate(prompt="a storm", stream=True)))
refused("model", lambda: shop.images.generate(model="gpt-image-1", prompt="a storm"))
refused("key", lambda: OpenAI(base_url=BASE, api_key="kgw_live_nobody").images.generate(prompt="a storm"))

with open(os.environ["PHOTO"], "rb") as photo:
    refused("lost", lambda: shop.images.edit(model="flux-kontext-max", image=photo, prompt="a storm"))
refused("moderated", lambda: shop.images.generate(model="flux-kontext-max", prompt="something else"))
refused("ceiling", lambda: client("strict").images.generate(prompt="a storm", extra_body={"safety_tolerance": 3}))
refused("budget", lambda: client("broke").images.generate(prompt="another storm"))
refused("rate", lambda: client("hourly").images.generate(prompt="a storm"))

brisk = client("brisk")
brisk.images.generate(prompt="a storm", extra_body={"seed": 1})
brisk.images.generate(prompt="a storm", extra_body={"seed": 1})
say("patience")
