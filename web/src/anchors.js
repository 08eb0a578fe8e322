/**
 * Anchors and the coding of boxes against them, as in featherface/anchors.py.
 *
 * Two square anchors a cell; order: stride by stride, row by row, column by column, small before
 * large.
 */
const LEVELS = [
  { stride: 8, sizes: [16, 32] },
  { stride: 16, sizes: [64, 128] },
  { stride: 32, sizes: [256, 512] },
];
const CENTRE_VARIANCE = 0.1;
const SIZE_VARIANCE = 0.2;

/** Numbers that a candidate is made of: x1, y1, x2, y2, score, five times x, y. */
export const STEP = 15;

/** How many anchors an image of width x height pixels has. */
export function anchorCount(width, height) {
  return LEVELS.reduce(
    (sum, { stride, sizes }) =>
      sum + Math.ceil(height / stride) * Math.ceil(width / stride) * sizes.length,
    0,
  );
}

/**
 * The anchors that score at least `threshold`, best first, at most `limit`, decoded.
 *
 * `heads`: { scores [A], boxDeltas [A * 4], landmarkDeltas [A * 10] } of a padded image of
 * width x height pixels. `scale` [x, y] brings pixels of the network's input to those of the
 * photo. Returns Float32Array [N * STEP], in pixels of the photo, not yet clipped.
 */
export function decode(heads, width, height, scale, threshold, limit) {
  const { scores, boxDeltas, landmarkDeltas } = heads;
  let chosen = [];
  for (let index = 0; index < scores.length; index++) {
    if (scores[index] >= threshold) chosen.push(index);
  }
  chosen.sort((a, b) => scores[b] - scores[a] || a - b);
  chosen = chosen.slice(0, limit);

  const candidates = new Float32Array(chosen.length * STEP);
  let count = 0;
  for (const index of chosen) {
    const [x, y, size] = anchorAt(index, width, height);
    const move = CENTRE_VARIANCE * size;
    const [dx, dy, dw, dh] = boxDeltas.subarray(index * 4, index * 4 + 4);
    const [centreX, centreY] = [x + dx * move, y + dy * move];
    const halfWidth = 0.5 * size * Math.exp(SIZE_VARIANCE * dw);
    const halfHeight = 0.5 * size * Math.exp(SIZE_VARIANCE * dh);
    const one = candidates.subarray(count * STEP, (count + 1) * STEP);
    one[0] = (centreX - halfWidth) * scale[0];
    one[1] = (centreY - halfHeight) * scale[1];
    one[2] = (centreX + halfWidth) * scale[0];
    one[3] = (centreY + halfHeight) * scale[1];
    one[4] = scores[index];
    for (let point = 0; point < 5; point++) {
      one[5 + 2 * point] = (x + landmarkDeltas[index * 10 + 2 * point] * move) * scale[0];
      one[6 + 2 * point] = (y + landmarkDeltas[index * 10 + 2 * point + 1] * move) * scale[1];
    }
    if (one.every(Number.isFinite)) count++;
  }
  return candidates.slice(0, count * STEP);
}

/** Centre x, centre y and side of one anchor in pixels. */
function anchorAt(index, width, height) {
  for (const { stride, sizes } of LEVELS) {
    const columns = Math.ceil(width / stride);
    const count = Math.ceil(height / stride) * columns * sizes.length;
    if (index < count) {
      const cell = Math.floor(index / sizes.length);
      const column = cell % columns;
      const row = (cell - column) / columns;
      return [(column + 0.5) * stride, (row + 0.5) * stride, sizes[index % sizes.length]];
    }
    index -= count;
  }
  throw new RangeError("no such anchor");
}
