// From a file to the square that the detector sees, as input_pipeline/decode.py and transforms.py
// make it. Pixels are {data, width, height}: data has four bytes a pixel, RGBA, opaque.

const CUBIC = -0.75;  // OpenCV's A of INTER_CUBIC
const LINEAR_BITS = 11;  // of OpenCV's INTER_LINEAR weights

// The pixels of an encoded picture; Error with the reason if it cannot be had whole.
export async function decode(blob, mostPixels) {
  let bitmap;
  try {
    // Upright by EXIF; no colour profile is applied, as in training. Chromium refuses a file that
    // is cut short.
    bitmap = await createImageBitmap(
      blob, { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" });
  } catch {
    throw new Error("not a picture that this browser can read, or damaged");
  }
  const { width, height } = bitmap;
  if (width * height > mostPixels) {
    bitmap.close();
    throw new Error(`${width}×${height} px are more than the ${mostPixels} pixels allowed`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.fillStyle = "#fff";  // transparency is laid over white
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { data: context.getImageData(0, 0, width, height).data, width, height };
}

// Python's round(): halves go to the even neighbour.
export function round(x) {
  const up = Math.floor(x + 0.5);
  return up - x === 0.5 && up % 2 !== 0 ? up - 1 : up;
}

// The middle of a picture, cropped and scaled; `view` is {size, shorter_px, crop} as of
// transforms.Transform. [size, size, 3] bytes.
export function middle(pixels, view) {
  const shorter = Math.min(pixels.width, pixels.height);
  let scale = shorter / view.shorter_px;
  if (view.crop === "native") scale = Math.max(1, scale);
  const side = Math.max(1, Math.min(shorter, round(view.size * scale)));
  const left = Math.floor((pixels.width - side) / 2), top = Math.floor((pixels.height - side) / 2);
  return scaled(pixels, left, top, side, view.size);
}

// A square of side `side`, scaled to `size`: [size, size, 3] bytes.
export function scaled(pixels, left, top, side, size) {
  const square = new Uint8Array(side * side * 3);
  for (let y = 0, to = 0; y < side; y++) {
    let from = ((top + y) * pixels.width + left) * 4;
    for (let x = 0; x < side; x++, from += 4) {
      square[to++] = pixels.data[from];
      square[to++] = pixels.data[from + 1];
      square[to++] = pixels.data[from + 2];
    }
  }
  if (side === size) return square;
  return side > size ? area(square, side, size) : cubic(square, side, size);
}

// cv2.INTER_AREA, to the bit: sums in float32.
function area(square, side, size) {
  const out = new Uint8Array(size * size * 3);
  if (side % size === 0) return areaOfWhole(square, side, size, side / size, out);
  const table = areaTable(side, size);
  const row = new Float32Array(size * 3), sum = new Float32Array(size * 3);
  let made = -1, last = 0;
  const flush = (y) => {
    for (let i = 0; i < sum.length; i++) out[y * size * 3 + i] = clamp(sum[i]);
  };
  for (const [to, from, weight] of table) {
    if (made !== from) {
      row.fill(0);
      for (const [x, source, alpha] of table) {
        for (let c = 0; c < 3; c++) {
          row[x * 3 + c] += Math.fround(square[(from * side + source) * 3 + c] * alpha);
        }
      }
      made = from;
    }
    if (to !== last) { flush(last); sum.fill(0); last = to; }
    for (let i = 0; i < sum.length; i++) sum[i] += Math.fround(weight * row[i]);
  }
  flush(last);
  return out;
}

function areaOfWhole(square, side, size, times, out) {
  const share = Math.fround(1 / (times * times));
  for (let y = 0, to = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      for (let c = 0; c < 3; c++, to++) {
        let sum = 0;
        for (let j = 0; j < times; j++) {
          const from = ((y * times + j) * side + x * times) * 3 + c;
          for (let i = 0; i < times; i++) sum += square[from + i * 3];
        }
        out[to] = times === 2 ? (sum + 2) >> 2 : clamp(Math.fround(sum * share));
      }
    }
  }
  return out;
}

// [to, from, weight] of OpenCV's computeResizeAreaTab.
function areaTable(side, size) {
  const scale = side / size, table = [];
  for (let to = 0; to < size; to++) {
    const start = to * scale, end = start + scale, cell = Math.min(scale, side - start);
    const last = Math.min(Math.floor(end), side - 1);
    const first = Math.min(Math.ceil(start), last);
    if (first - start > 1e-3) table.push([to, first - 1, Math.fround((first - start) / cell)]);
    for (let from = first; from < last; from++) table.push([to, from, Math.fround(1 / cell)]);
    if (end - last > 1e-3) {
      table.push([to, last, Math.fround(Math.min(end - last, 1, cell) / cell)]);
    }
  }
  return table;
}

// cv2.INTER_CUBIC as its x86 builds compute it: weights that are not rounded to 11 bits.
function cubic(square, side, size) {
  const table = [];
  for (let to = 0; to < size; to++) {
    const at = (to + 0.5) * (side / size) - 0.5, first = Math.floor(at), x = at - first;
    const near = (t) => ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1;
    const far = ((CUBIC * (x + 1) - 5 * CUBIC) * (x + 1) + 8 * CUBIC) * (x + 1) - 4 * CUBIC;
    const weights = [far, near(x), near(1 - x)];
    weights.push(1 - weights[0] - weights[1] - weights[2]);
    const from = [0, 1, 2, 3].map((k) => Math.min(Math.max(first + k - 1, 0), side - 1));
    table.push([from, weights]);
  }
  const wide = new Float64Array(side * size * 3);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < size; x++) {
      const [from, weights] = table[x];
      for (let c = 0; c < 3; c++) {
        let sum = 0;
        for (let k = 0; k < 4; k++) sum += square[(y * side + from[k]) * 3 + c] * weights[k];
        wide[(y * size + x) * 3 + c] = sum;
      }
    }
  }
  const out = new Uint8Array(size * size * 3), width = size * 3;
  for (let y = 0; y < size; y++) {
    const [from, weights] = table[y];
    for (let i = 0; i < width; i++) {
      let sum = 0;
      for (let k = 0; k < 4; k++) sum += wide[from[k] * width + i] * weights[k];
      out[y * width + i] = clamp(sum);
    }
  }
  return out;
}

// cv2.INTER_LINEAR of the whole picture: [3, height, width] float32 from 0 to 255, as
// cv2.dnn.blobFromImage gives it.
export function planes(pixels, width, height) {
  const columns = linearTable(pixels.width, width), rows = linearTable(pixels.height, height);
  const made = new Map();  // source row -> [width, 3] int32, the last few
  const wide = (y) => {
    let row = made.get(y);
    if (row) return row;
    row = new Int32Array(width * 3);
    for (let x = 0, to = 0; x < width; x++) {
      const [a, b, p, q] = columns[x];
      const one = (y * pixels.width + a) * 4, two = (y * pixels.width + b) * 4;
      for (let c = 0; c < 3; c++) row[to++] = pixels.data[one + c] * p + pixels.data[two + c] * q;
    }
    if (made.size > 3) made.delete(made.keys().next().value);
    made.set(y, row);
    return row;
  };
  const out = new Float32Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    const [a, b, p, q] = rows[y], one = wide(a), two = wide(b);
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) {
        const i = x * 3 + c;
        const sum = ((p * (one[i] >> 4)) >> 16) + ((q * (two[i] >> 4)) >> 16);
        out[(c * height + y) * width + x] = (sum + 2) >> 2;
      }
    }
  }
  return out;
}

// [first, second, weight of the first, of the second] in 11 bits, for each of `to` places.
function linearTable(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const at = Math.fround((i + 0.5) * (1 / (to / from)) - 0.5);
    let first = Math.floor(at), share = Math.fround(at - first);
    if (first < 0) [first, share] = [0, 0];
    if (first >= from - 1) [first, share] = [from - 1, 0];
    const whole = 1 << LINEAR_BITS;
    return [first, Math.min(first + 1, from - 1), round((1 - share) * whole), round(share * whole)];
  });
}

function clamp(x) { return Math.min(255, Math.max(0, round(x))); }

// Why a picture gets no score, or null; `seen` is what `middle` made of it.
export function whyRefused(pixels, seen, view) {
  const shorter = Math.min(pixels.width, pixels.height);
  if (shorter < view.least_px) return `too small: ${shorter} px, needs ${view.least_px}`;
  const low = [255, 255, 255], high = [0, 0, 0];
  seen.forEach((v, i) => {
    if (v < low[i % 3]) low[i % 3] = v;
    if (v > high[i % 3]) high[i % 3] = v;
  });
  return low.every((v, c) => high[c] - v <= view.flat_levels) ? "one colour only" : null;
}

// A part of a picture, as pixels.
export function crop(pixels, [left, top, width, height]) {
  const data = new Uint8ClampedArray(width * height * 4);
  for (let y = 0; y < height; y++) {
    const from = ((top + y) * pixels.width + left) * 4;
    data.set(pixels.data.subarray(from, from + width * 4), y * width * 4);
  }
  return { data, width, height };
}
