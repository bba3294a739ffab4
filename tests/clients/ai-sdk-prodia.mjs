// The AI SDK with `@ai-sdk/prodia`, as they are published. One JSON line per step; STEPS names those that are wanted.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";

import { createProdia } from "@ai-sdk/prodia";
import { APICallError, generateImage, generateText, streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const env = process.env;
const provider = (key) => createProdia({ apiKey: key, baseURL: `${env.GATEWAY_URL}/v2` });
const GENERATE = "inference.flux-kontext.pro.txt2img.v2";
const EDIT = "inference.flux-kontext.pro.img2img.v2";
const DEV = "inference.flux-fast.dev-kontext.img2img.v1";
const prompt = "a lighthouse at dawn";
const photo = await readFile(env.PHOTO);
const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");

const generate = async (key, more = {}) => {
  const made = await generateImage({ model: provider(key).image(GENERATE), prompt, ...more });
  return {
    kinds: made.images.map((image) => image.mediaType), digests: made.images.map((image) => digest(image.uint8Array)),
    metadata: made.providerMetadata.prodia.images, headers: made.responses[0].headers,
  };
};
const messages = [{
  role: "user",
  content: [{ type: "text", text: "make the sky stormy" }, { type: "file", data: photo, mediaType: "image/png" }],
}];
const edit = async (key, { type = EDIT, ...more } = {}) => {
  const made = await generateText({ model: provider(key).languageModel(type), messages, ...more });
  return {
    kinds: made.files.map((file) => file.mediaType), digests: made.files.map((file) => digest(file.uint8Array)),
    metadata: made.providerMetadata.prodia, headers: made.response.headers, text: made.text, finish: made.finishReason,
  };
};

const steps = {
  image: () => generate(env.KEY_SHOP, { seed: 1 }),
  again: () => generate(env.KEY_SHOP, { seed: 1 }),
  two: () => generate(env.KEY_SHOP, { n: 2 }),
  size: () => generate(env.KEY_SHOP, { size: "1024x1024" }),
  edit: () => edit(env.KEY_SHOP),
  wide: () => edit(env.KEY_SHOP, { providerOptions: { prodia: { aspectRatio: "16:9" } } }),
  dev: () => edit(env.KEY_SHOP, { type: DEV }),
  stream: async () => {
    const kinds = [];
    const made = streamText({ model: provider(env.KEY_SHOP).languageModel(EDIT), messages });
    for await (const part of made.fullStream) if (part.type === "file") kinds.push(part.file.mediaType);
    return { kinds, finish: await made.finishReason };
  },
  unknown: () => generateImage({ model: provider(env.KEY_SHOP).image("inference.flux.ultra.v9"), prompt }),
  stranger: () => generate("nobody"),
  ceiling: () => edit(env.KEY_STRICT, { type: DEV }),
  budget: () => generate(env.KEY_BROKE),
  budget_edit: () => edit(env.KEY_BROKE),
  lasting: () => generate(env.KEY_HOURLY),
  patient: async () => (await Promise.all([generate(env.KEY_BRISK), generate(env.KEY_BRISK)]))[1],
  hasty: async () => {
    const ends = await Promise.allSettled([1, 2].map(() => generate(env.KEY_BRISK, { maxRetries: 0 })));
    throw ends.find((end) => end.status === "rejected").reason;
  },
  once: () => generate(env.KEY_SHOP),
};

for (const step of env.STEPS.split(",")) {
  let said;
  try {
    said = await steps[step]();
  } catch (error) {
    const last = error.lastError ?? error; // of several tries
    said = {
      error: error.constructor.name, call: APICallError.isInstance(last), status: last.statusCode,
      retryable: last.isRetryable, message: last.message, body: last.responseBody,
    };
  }
  console.log(JSON.stringify({ step, ...said }));
}
