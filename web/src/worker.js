/**
 * The network, away from the page so that the page stays responsive: a picture comes in, decoded
 * candidates go out.
 *
 * In: { id, bitmap: ImageBitmap, longSide: number or null }. Out: { ready: true } once the model
 * is loaded, then for each picture { id, candidates, width, height, network: [w, h], milliseconds,
 * bitmap } or { id, error }; { failed: message } if the model cannot be loaded.
 */
import * as ort from "onnxruntime-web/wasm";

import { anchorCount, decode } from "./anchors.js";
import { fittedSize, paddedSize, toPlanes } from "./input.js";

const MIN_SCORE = 0.05; // the page's slider goes down to here
const MAX_CANDIDATES = 20_000;
const MAX_NETWORK_PIXELS = 16e6; // more than 4096x3072; the network then needs some 700 MB
const OUTPUTS = ["scores", "box_deltas", "landmark_deltas"];

const here = (name) => new URL(name, import.meta.url).href;

async function openSession() {
  ort.env.wasm.wasmPaths = {
    mjs: here("ort-wasm-simd-threaded.mjs"),
    wasm: here("ort-wasm-simd-threaded.wasm"),
  };
  ort.env.logLevel = "error";
  const answer = await fetch(here("model.onnx")).catch(() => null);
  if (!answer?.ok) {
    const why = answer ? `the server answered ${answer.status}` : "the server does not answer";
    throw new Error(`The model, model.onnx, could not be loaded: ${why}.`);
  }
  const weights = new Uint8Array(await answer.arrayBuffer());
  let session;
  try {
    session = await ort.InferenceSession.create(weights, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`The model, model.onnx, could not be opened: ${firstLine(error)}`);
  }
  const { inputNames, outputNames } = session;
  if (!inputNames.includes("image") || !OUTPUTS.every((name) => outputNames.includes(name))) {
    throw new Error("The model, model.onnx, is not one of FeatherFace with raw outputs.");
  }
  const dark = new ort.Tensor("float32", new Float32Array(3 * 64 * 64), [1, 3, 64, 64]);
  await session.run({ image: dark }); // so that the first photo does not wait for the compiler
  return session;
}

async function detect(session, bitmap, longSide) {
  const started = performance.now();
  const { width, height } = bitmap;
  const fitted = fittedSize(width, height, longSide);
  const [columns, rows] = paddedSize(...fitted);
  if (columns * rows > MAX_NETWORK_PIXELS) {
    throw new Error(`A photo of ${width}×${height} is too large to look at in full; choose 1024.`);
  }
  const planes = toPlanes(readPixels(bitmap), width, height, fitted);
  const image = new ort.Tensor("float32", planes, [1, 3, rows, columns]);
  const results = await session.run({ image });
  const [scores, boxDeltas, landmarkDeltas] = OUTPUTS.map((name) => results[name].data);
  if (scores.length !== anchorCount(columns, rows)) {
    throw new Error("The model, model.onnx, is of another kind: its anchors do not fit.");
  }
  const scale = [width / fitted[0], height / fitted[1]];
  const heads = { scores, boxDeltas, landmarkDeltas };
  const candidates = decode(heads, columns, rows, scale, MIN_SCORE, MAX_CANDIDATES);
  const milliseconds = performance.now() - started;
  return { candidates, width, height, network: fitted, milliseconds };
}

let canvas = null;

function readPixels(bitmap) {
  canvas ??= new OffscreenCanvas(1, 1);
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // what is transparent is on white, as in Python
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height).data;
}

function firstLine(error) {
  return String(error?.message ?? error).split("\n")[0].slice(0, 200);
}

const opening = openSession();
opening.then(
  () => self.postMessage({ ready: true }),
  (error) => self.postMessage({ failed: firstLine(error) }),
);

let turn = Promise.resolve();
self.addEventListener("message", ({ data: { id, bitmap, longSide } }) => {
  turn = turn.then(async () => {
    try {
      const found = await detect(await opening, bitmap, longSide);
      self.postMessage({ id, bitmap, ...found }, [bitmap, found.candidates.buffer]);
    } catch (error) {
      bitmap.close();
      self.postMessage({ id, error: firstLine(error) });
    }
  });
});
