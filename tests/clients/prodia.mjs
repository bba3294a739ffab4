// The official client, npm `prodia`, as it is published. One JSON line per step; STEPS names those that are wanted.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";

import { createProdia } from "prodia/v2";

const env = process.env;
const client = (key, more = {}) => createProdia({ token: key, baseUrl: `${env.GATEWAY_URL}/v2`, ...more });
const shop = client(env.KEY_SHOP);
const GENERATE = "inference.flux-kontext.pro.txt2img.v2";
const EDIT = "inference.flux-kontext.pro.img2img.v2";
const DEV = "inference.flux-fast.dev-kontext.img2img.v1";
const prompt = "a lighthouse at dawn";
const photo = await readFile(env.PHOTO);
const buffer = photo.buffer.slice(photo.byteOffset, photo.byteOffset + photo.byteLength);

const told = async ({ job, uint8Array, formData }) => {
  const bytes = await uint8Array();
  const output = (await formData()).get("output");
  return {
    job, bytes: bytes.length, magic: Buffer.from(bytes.slice(0, 4)).toString("latin1"), kind: output.type,
    file: output.name, sha256: createHash("sha256").update(bytes).digest("hex"),
  };
};
const generate = async (who, config = {}, options = {}) =>
  told(await who.job({ type: GENERATE, config: { prompt, ...config } }, options));
const edit = async (input, config = {}) =>
  told(await shop.job({ type: EDIT, config: { prompt: "make the sky stormy", ...config } }, { inputs: [].concat(input) }));

const steps = {
  generate: () => generate(shop, { seed: 1 }),
  png: () => generate(shop, { seed: 1 }, { accept: "image/png" }),
  webp: () => generate(shop, { seed: 1 }, { accept: "image/webp" }),
  jpeg: () => generate(shop, { seed: 1 }, { accept: "image/jpeg" }),
  max: async () => told(await shop.job({ type: "inference.flux-kontext.max.txt2img.v2", config: { prompt, seed: 1 } })),
  bytes: () => edit(new Uint8Array(photo), { seed: 2 }),
  buffer: () => edit(buffer, { seed: 2 }),
  blob: () => edit(new Blob([photo], { type: "image/png" }), { seed: 2 }),
  file: () => edit(new File([photo], "photo.png", { type: "image/png" }), { seed: 2 }),
  twice: () => edit([new Uint8Array(photo), new Uint8Array(photo)], { seed: 2 }),
  dev: async () =>
    told(await shop.job({ type: DEV, config: { prompt, seed: 3, style_preset: "anime", steps: 4 } }, { inputs: [buffer] })),
  parameter: () => shop.job({ type: DEV, config: { prompt, steps: 1000 } }, { inputs: [buffer] }),
  unknown: () => shop.job({ type: "inference.flux-kontext.ultra.txt2img.v9", config: { prompt } }),
  input: () => shop.job({ type: EDIT, config: { prompt } }),
  stranger: () => generate(client("nobody")),
  ceiling: () => generate(client(env.KEY_STRICT), { safety_tolerance: 2 }),
  budget: () => generate(client(env.KEY_BROKE)),
  lasting: () => generate(client(env.KEY_HOURLY)),
  patient: async () => (await Promise.all([generate(client(env.KEY_BRISK)), generate(client(env.KEY_BRISK))]))[1],
  hasty: async () => {
    const brisk = client(env.KEY_BRISK, { maxRetries: 0 });
    const ends = await Promise.allSettled([generate(brisk), generate(brisk)]);
    throw ends.find((end) => end.status === "rejected").reason;
  },
  once: () => generate(shop, { seed: 9 }),
};

for (const step of env.STEPS.split(",")) {
  const began = performance.now();
  let said;
  try {
    said = await steps[step]();
  } catch (error) {
    said = { error: error.constructor.name, message: error.message };
  }
  console.log(JSON.stringify({ step, seconds: (performance.now() - began) / 1000, ...said }));
}
