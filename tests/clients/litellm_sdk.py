"""The LiteLLM SDK with `api_base`, unmodified. One JSON line a step."""

import base64
import json
import os
import sys

import litellm
from litellm import image_edit, image_generation

BASE = os.environ["GATEWAY_URL"] + "/v1"


def at(tenant):
    return {"api_base": BASE, "api_key": os.environ[f"KEY_{tenant.upper()}"]}


def say(step, **told):
    print(json.dumps({"step": step, **told}), flush=True)


def kind(data):
    return "jpeg" if data[:3] == b"\xff\xd8\xff" else "png" if data[:4] == b"\x89PNG" else "webp"


def refused(step, call):
    try:
        call()
    except litellm.exceptions.APIError as error:
        say(step, type=type(error).__name__, status=error.status_code, message=str(error))
    except Exception as error:
        say(step, type=type(error).__name__, status=getattr(error, "status_code", None), message=str(error))
    else:
        say(step, type=None)


litellm.suppress_debug_info = True
made = image_generation(
    model="openai/flux-kontext-pro",
    prompt="a lighthouse at dawn",
    size="1024x1536",
    **at("shop"),
    extra_body={"seed": 42, "output_format": "png"},
)
say("generate", kind=kind(base64.b64decode(made.data[0].b64_json)))

several = image_generation(
    model="openai/flux-kontext-max", prompt="three sketches of a boat", n=3, **at("shop"), extra_body={"seed": 7}
)
say("several", count=len(several.data), distinct=len({one.b64_json for one in several.data}))

with open(os.environ["PHOTO"], "rb") as photo:
    edited = image_edit(model="openai/flux-kontext-pro", image=photo, prompt="make the sky stormy", **at("shop"))
say("edit", kind=kind(base64.b64decode(edited.data[0].b64_json)))

refused("model", lambda: image_generation(model="openai/gpt-image-1", prompt="a storm", **at("shop")))
with open(os.environ["PHOTO"], "rb") as photo:
    refused("lost", lambda: image_edit(model="openai/flux-kontext-max", image=photo, prompt="a storm", **at("shop")))
refused("moderated", lambda: image_generation(model="openai/flux-kontext-max", prompt="something else", **at("shop")))
refused(
    "ceiling",
    lambda: image_generation(
        model="openai/flux-kontext-pro", prompt="a storm", **at("strict"), extra_body={"safety_tolerance": 3}
    ),
)
refused("budget", lambda: image_generation(model="openai/flux-kontext-pro", prompt="another storm", **at("broke")))
refused("rate", lambda: image_generation(model="openai/flux-kontext-pro", prompt="a storm", **at("hourly")))

for _ in range(2):
    image_generation(model="openai/flux-kontext-pro", prompt="a storm", **at("brisk"), extra_body={"seed": 1})
say("patience")
sys.stdout.flush()
