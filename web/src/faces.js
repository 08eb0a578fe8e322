/**
 * From candidates to faces: non-maximum suppression and box voting, as featherface/boxes.py and
 * featherface/box_voting.py do it. Cheap enough to run on every move of the threshold.
 */
import { STEP } from "./anchors.js";

const NMS_IOU = 0.4;
const VOTE_IOU = 0.5;

/**
 * The faces among `candidates` (best first, Float32Array [N * STEP] in pixels of the photo) that
 * score at least `threshold`, within the photo of width x height pixels.
 *
 * Returns [{ box: [x1, y1, x2, y2], score, landmarks: [[x, y] * 5] }], best first.
 */
export function selectFaces(candidates, threshold, width, height) {
  const rows = [];
  for (let start = 0; start < candidates.length; start += STEP) {
    if (candidates[start + 4] < threshold) break;
    rows.push(candidates.subarray(start, start + STEP));
  }
  const faces = [];
  for (const best of suppress(rows)) {
    const box = vote(best, rows).map((value, side) => clip(value, side % 2 ? height : width));
    if (box[2] <= box[0] || box[3] <= box[1]) continue; // in the padding only
    const landmarks = [];
    for (let at = 5; at < STEP; at += 2) {
      landmarks.push([clip(best[at], width), clip(best[at + 1], height)]);
    }
    faces.push({ box, score: best[4], landmarks });
  }
  return faces;
}

/** The shape of `Faces.to_dict` in Python: coordinates to two decimals, scores to four. */
export function toReport(faces) {
  const rounded = (value, digits) => Number(value.toFixed(digits));
  return {
    faces: faces.map(({ box, score, landmarks }) => ({
      box: box.map((value) => rounded(value, 2)),
      score: rounded(score, 4),
      landmarks: landmarks.map((point) => point.map((value) => rounded(value, 2))),
    })),
  };
}

function suppress(rows) {
  const kept = [];
  for (const row of rows) {
    if (!kept.some((better) => overlap(better, row) > NMS_IOU)) kept.push(row);
  }
  return kept;
}

/** The mean of all boxes that lie on the same face as `best`, weighted by score. */
function vote(best, rows) {
  const sum = [0, 0, 0, 0];
  let total = 0;
  for (const row of rows) {
    if (row !== best && !(overlap(best, row) > VOTE_IOU)) continue;
    total += row[4];
    for (let side = 0; side < 4; side++) sum[side] += row[4] * row[side];
  }
  return sum.map((value) => value / total);
}

/** Intersection over union. */
function overlap(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  if (width <= 0) return 0;
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (height <= 0) return 0;
  const shared = width * height;
  const area = (box) => (box[2] - box[0]) * (box[3] - box[1]);
  return shared / (area(a) + area(b) - shared);
}

function clip(value, limit) {
  return Math.min(Math.max(value, 0), limit);
}
