// The detector in a thread of its own: {id, file} in, {id, rows} or {id, error} out.

import * as ort from "./ort.wasm.min.mjs";
import { faceViews } from "./faces.js";
import { decode, middle, whyRefused } from "./pixels.js";

ort.env.wasm.numThreads = 1;  // more need headers that not every static server sends
ort.env.wasm.wasmPaths = new URL("./", import.meta.url).href;
const FINDER_OUTPUTS = ["537", "538", "539"];  // heat map, log of size, offset

async function load() {
  const facts = await (await fetch("model.json")).json();
  const open = (file) => ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
  const detector = await open("detector.onnx");
  const finder = facts.faces ? await open("centerface.onnx") : null;
  const { size } = facts.view, { smallest_px: side } = facts.finder;
  const networks = {
    // p_fake of one picture, [size, size, 3] bytes
    async score(seen) {
      const pictures = new ort.Tensor("uint8", seen, [1, size, size, 3]);
      return (await detector.run({ pictures })).p_fake.data[0];
    },
    // of [1, 3, height, width] float32
    async find(data, dims) {
      const outputs = await finder.run({ "input.1": new ort.Tensor("float32", data, dims) });
      return FINDER_OUTPUTS.map((name) => outputs[name]);
    },
  };
  // The first run compiles: better before a picture waits for it.
  await networks.score(new Uint8Array(size * size * 3));
  if (finder) await networks.find(new Float32Array(side * side * 3), [1, 3, side, side]);
  return { facts, ...networks };
}

const loaded = load();
loaded.then(() => postMessage({ ready: true }), (error) => postMessage({ failed: String(error) }));

// One {p_fake, reason, face} for each face of a picture, as serving/scorer.py gives them.
async function answer(file) {
  const { facts, score, find } = await loaded;
  const pixels = await decode(file, facts.most_pixels);
  const views = facts.faces ? await faceViews(pixels, find, facts.finder) : [{ pixels, box: null }];
  if (!views.length) return [{ p_fake: null, reason: "no face found", face: null }];
  const rows = [];
  for (const { pixels: part, box } of views) {
    const seen = middle(part, facts.view);
    const reason = whyRefused(part, seen, facts.view);
    rows.push({ p_fake: reason ? null : await score(seen), reason, face: box });
  }
  return rows;
}

let turn = Promise.resolve();  // a session answers one at a time
self.addEventListener("message", ({ data: { id, file } }) => {
  turn = turn.then(() => answer(file)).then(
    (rows) => postMessage({ id, rows }),
    (error) => postMessage({ id, error: error.message ?? String(error) }));
});
