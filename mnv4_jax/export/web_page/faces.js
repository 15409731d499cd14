// The faces of a photograph, as input_pipeline/faces.py finds them and detector/views.py crops them.

import { crop, planes, round } from "./pixels.js";

// [{pixels, box}]: what to score. `network` gives the four outputs of CenterFace for [1, 3, h, w];
// `finder` holds the constants of faces.py and views.py.
export async function faceViews(pixels, network, finder) {
  const boxes = await findFaces(pixels, network, finder);
  const shorter = Math.min(pixels.width, pixels.height);
  if (boxes.length === 1 && boxes[0][2] >= finder.filled * shorter) return [{ pixels, box: null }];
  return boxes.map((box) => ({ pixels: crop(pixels, box), box }));
}

async function findFaces(pixels, network, finder) {
  const { width, height } = pixels;
  const longer = Math.max(width, height), shorter = Math.min(width, height);
  let scale = Math.min(finder.searched_px / longer, 1);
  if (shorter < finder.smallest_px) {
    scale = Math.min(finder.smallest_px / shorter, finder.searched_px / longer);
  }
  const [w, h] = [width, height].map((side) => Math.max(32, round(side * scale / 32) * 32));
  const outputs = await network(planes(pixels, w, h), [1, 3, h, w]);
  const found = boxesOf(...outputs, finder);
  for (const box of found) {
    box.left *= width / w; box.right *= width / w;
    box.top *= height / h; box.bottom *= height / h;
  }
  return withoutOverlaps(found, finder.max_overlap)
    .sort((a, b) => a.left - b.left)
    .map((box) => squareOf(box, width, height, finder.margin));
}

// Each output is {data, dims: [1, channels, rows, columns]}.
function boxesOf(heat, logSize, offset, finder) {
  const [, , rows, columns] = heat.dims, plane = rows * columns, found = [];
  for (let at = 0; at < plane; at++) {
    const confidence = heat.data[at];
    if (confidence < finder.min_confidence) continue;
    const height = Math.fround(Math.exp(logSize.data[at])) * finder.stride;
    const width = Math.fround(Math.exp(logSize.data[plane + at])) * finder.stride;
    const x = at % columns + offset.data[plane + at] + 0.5;
    const y = Math.floor(at / columns) + offset.data[at] + 0.5;
    const left = x * finder.stride - width / 2, top = y * finder.stride - height / 2;
    found.push({ left, top, right: left + width, bottom: top + height, confidence });
  }
  return found;
}

function withoutOverlaps(boxes, most) {
  const kept = [];
  for (const box of [...boxes].sort((a, b) => b.confidence - a.confidence)) {
    if (kept.every((other) => overlap(box, other) <= most)) kept.push(box);
  }
  return kept;
}

// Intersection over union.
function overlap(a, b) {
  const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  if (width <= 0 || height <= 0) return 0;
  const size = (box) => (box.right - box.left) * (box.bottom - box.top);
  return width * height / (size(a) + size(b) - width * height);
}

function squareOf(box, width, height, margin) {
  const [w, h] = [box.right - box.left, box.bottom - box.top].map((side) => Math.max(1, side));
  const size = Math.max(1, Math.min(round(margin * Math.sqrt(w * h)), height, width));
  const place = (low, high, most) =>
    Math.min(Math.max(round((low + high) / 2 - size / 2), 0), most - size);
  return [place(box.left, box.right, width), place(box.top, box.bottom, height), size, size];
}
