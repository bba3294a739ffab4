// The official client for Node, unmodified: pictures, errors and retries. One JSON line a step.
import fs from "node:fs";
import OpenAI from "openai";

const key = (tenant) => process.env[`KEY_${tenant.toUpperCase()}`];
const baseURL = process.env.GATEWAY_URL + "/v1";
const client = (tenant, options = {}) => new OpenAI({ baseURL, apiKey: key(tenant), ...options });
const say = (step, told = {}) => console.log(JSON.stringify({ step, ...told }));
const bytes = (picture) => Buffer.from(picture.b64_json, "base64");
const kind = (data) => (data[0] === 0xff ? "jpeg" : data[0] === 0x89 ? "png" : "webp");
const photo = () => fs.createReadStream(process.env.PHOTO);

async function refused(step, call) {
  try {
    await call();
    say(step, { type: null });
  } catch (error) {
    say(step, {
      type: error.constructor.name, status: error.status, code: error.code, param: error.param, kind: error.type,
      message: error.message, gateway: error.error?.gateway, request: error.requestID,
    });
  }
}

const shop = client("shop");
const asked = {
  model: "flux-kontext-pro", prompt: "a lighthouse at dawn", size: "1024x1536", output_format: "png", quality: "auto",
  user: "ada", seed: 42, safety_tolerance: 1, prompt_upsampling: true, tags: ["docs"],
};
const made = await shop.images.generate(asked);
const data = bytes(made.data[0]);
say("generate", { kind: kind(data), format: made.output_format, portrait: data.readUInt32BE(16) < data.readUInt32BE(20) });

const again = await shop.images.generate(asked).withResponse();
say("again", {
  source: again.response.headers.get("gateway-source"), seed: again.response.headers.get("gateway-seed"),
  same: bytes(again.data.data[0]).equals(data),
});

const several = await shop.images.generate({ model: "max", prompt: "three sketches of a boat", n: 3, seed: 7 }).withResponse();
say("several", {
  count: several.data.data.length, distinct: new Set(several.data.data.map((one) => one.b64_json)).size,
  seeds: several.response.headers.get("gateway-seed"), cost: several.response.headers.get("gateway-cost-usd"),
});

const edited = await shop.images.edit({ model: "flux-kontext-pro", image: photo(), prompt: "make the sky stormy", size: "auto" });
say("edit", { kind: kind(bytes(edited.data[0])) });
const styled = await shop.images.edit({
  model: "flux-kontext-dev", image: [photo()], prompt: "as a comic", n: 2, size: "512x768", response_format: "url",
  style_preset: "comic-book", steps: 4,
});
say("edit by dev", { urls: styled.data.map((one) => one.url) });

const ids = [];
for await (const model of shop.models.list()) ids.push(model.id);
say("models", { ids: [...new Set(ids)].sort(), one: (await shop.models.retrieve("flux-kontext-dev")).id });

await refused("mask", () => shop.images.edit({ image: photo(), mask: photo(), prompt: "a storm" }));
await refused("two images", () => shop.images.edit({ image: [photo(), photo()], prompt: "a storm" }));
await refused("transparent", () => shop.images.generate({ prompt: "a storm", background: "transparent" }));
await refused("stream", () => shop.images.generate({ prompt: "a storm", stream: true }));
await refused("model", () => shop.images.generate({ model: "gpt-image-1", prompt: "a storm" }));
await refused("key", () => new OpenAI({ baseURL, apiKey: "kgw_live_nobody" }).images.generate({ prompt: "a storm" }));

await refused("lost", () => shop.images.edit({ model: "flux-kontext-max", image: photo(), prompt: "a storm" }));
await refused("moderated", () => shop.images.generate({ model: "flux-kontext-max", prompt: "something else" }));
await refused("ceiling", () => client("strict").images.generate({ prompt: "a storm", safety_tolerance: 3 }));
await refused("budget", () => client("broke").images.generate({ prompt: "another storm" }));
await refused("rate", () => client("hourly").images.generate({ prompt: "a storm" }));

const brisk = client("brisk");
await brisk.images.generate({ prompt: "a storm", seed: 1 });
await brisk.images.generate({ prompt: "a storm", seed: 1 });
say("patience");
