// The AI SDK with its provider for OpenAI-compatible servers, unmodified. One JSON line a step.
import fs from "node:fs";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateImage, RetryError } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const model = (tenant, name = "flux-kontext-pro") =>
  createOpenAICompatible({
    name: "kontext", baseURL: process.env.GATEWAY_URL + "/v1", apiKey: process.env[`KEY_${tenant.toUpperCase()}`],
  }).imageModel(name);
const say = (step, told = {}) => console.log(JSON.stringify({ step, ...told }));
const photo = fs.readFileSync(process.env.PHOTO);

async function refused(step, call) {
  try {
    await call();
    say(step, { type: null });
  } catch (error) {
    const retried = RetryError.isInstance(error);
    const last = retried ? error.lastError : error;
    say(step, {
      type: last.name, typed: APICallError.isInstance(last), retried, status: last.statusCode,
      code: last.data?.error?.code, param: last.data?.error?.param, message: last.message,
    });
  }
}

const kontext = { seed: 42, output_format: "png", safety_tolerance: 1 };
const made = await generateImage({
  model: model("shop"), prompt: "a lighthouse at dawn", size: "1024x1536", providerOptions: { kontext },
});
const data = Buffer.from(made.image.uint8Array);
say("generate", { kind: made.image.mediaType, portrait: data.readUInt32BE(16) < data.readUInt32BE(20), warnings: made.warnings });

const several = await generateImage({
  model: model("shop", "flux-kontext-max"), prompt: "three sketches of a boat", n: 3, providerOptions: { kontext: { seed: 7 } },
});
say("several", {
  count: several.images.length, distinct: new Set(several.images.map((one) => one.base64)).size,
  seeds: several.responses.map((one) => one.headers["gateway-seed"]),
});

const edited = await generateImage({ model: model("shop"), prompt: { text: "make the sky stormy", images: [photo] } });
say("edit", { kind: edited.image.mediaType });
const styled = await generateImage({
  model: model("shop", "flux-kontext-dev"), prompt: { text: "as a comic", images: [photo] }, size: "512x768",
  providerOptions: { kontext: { style_preset: "comic-book", response_format: "url", steps: 4 } },
});
say("edit by dev", { kind: styled.image.mediaType, bytes: styled.image.uint8Array.length });

await refused("mask", () => generateImage({ model: model("shop"), prompt: { text: "a storm", images: [photo], mask: photo } }));
await refused("two images", () => generateImage({ model: model("shop"), prompt: { text: "a storm", images: [photo, photo] } }));
await refused("model", () => generateImage({ model: model("shop", "gpt-image-1"), prompt: "a storm" }));

const max = model("shop", "flux-kontext-max");
await refused("lost", () => generateImage({ model: max, prompt: { text: "a storm", images: [photo] } }));
await refused("moderated", () => generateImage({ model: max, prompt: "something else" }));
const tolerant = { kontext: { safety_tolerance: 3 } };
await refused("ceiling", () => generateImage({ model: model("strict"), prompt: "a storm", providerOptions: tolerant }));
await refused("budget", () => generateImage({ model: model("broke"), prompt: "another storm" }));
await refused("rate", () => generateImage({ model: model("hourly"), prompt: "a storm" }));

for (let time = 0; time < 2; time++) {
  await generateImage({ model: model("brisk"), prompt: "a storm", providerOptions: { kontext: { seed: 1 } } });
}
say("patience");
