/** Boxes, landmarks and scores on a canvas, in the colours of `Faces.draw` in Python. */

const BOX = "#00d68f";
const DARK = "#101820";
const LANDMARKS = ["#ffd100", "#ffd100", "#ff5e78", "#40c4ff", "#40c4ff"];

/**
 * Draw `picture` over the whole of `context`'s canvas, then `faces`, given in pixels of a picture
 * `width` pixels wide. `unit`: canvas pixels of one hairline.
 */
export function drawFaces(context, picture, faces, width, unit) {
  const { canvas } = context;
  const scale = canvas.width / width;
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  const worstFirst = faces.map((face) => scaled(face, scale)).reverse();
  for (const face of worstFirst) drawBox(context, face, unit);
  for (const face of worstFirst) drawLandmarks(context, face, unit);
  for (const face of worstFirst) drawScore(context, face, unit);
}

/** A line of text on a dark plate in the lower left corner. */
export function drawNote(context, text, unit) {
  const size = 13 * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const [x, height] = [8 * unit, 24 * unit];
  const y = context.canvas.height - height - 8 * unit;
  const width = context.measureText(text).width + 16 * unit;
  context.fillStyle = "rgb(16 24 32 / 78%)";
  context.beginPath();
  context.roundRect(x, y, width, height, 6 * unit);
  context.fill();
  context.fillStyle = "white";
  context.textBaseline = "middle";
  context.fillText(text, x + 8 * unit, y + height / 2 + unit / 2);
}

function scaled({ box, score, landmarks }, scale) {
  return {
    box: box.map((value) => value * scale),
    score,
    landmarks: landmarks.map((point) => point.map((value) => value * scale)),
  };
}

function lineWidth({ box }, unit) {
  const side = Math.max(box[2] - box[0], box[3] - box[1]);
  return Math.max(unit, Math.min(2.5 * unit, side / 16));
}

function drawBox(context, face, unit) {
  const [x1, y1, x2, y2] = face.box;
  const line = lineWidth(face, unit);
  const radius = Math.min(6 * unit, (x2 - x1) / 8, (y2 - y1) / 8);
  context.beginPath();
  context.roundRect(x1, y1, x2 - x1, y2 - y1, radius);
  context.strokeStyle = "rgb(16 24 32 / 70%)";
  context.lineWidth = line + 1.5 * unit;
  context.stroke();
  context.strokeStyle = BOX;
  context.lineWidth = line;
  context.stroke();
}

function drawLandmarks(context, { box, landmarks }, unit) {
  const side = Math.max(box[2] - box[0], box[3] - box[1]);
  if (side < 18 * unit) return;
  const radius = Math.min(Math.max(side / 36, 1.2 * unit), 4.5 * unit);
  landmarks.forEach(([x, y], index) => {
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = LANDMARKS[index];
    context.strokeStyle = DARK;
    context.lineWidth = Math.max(0.75 * unit, radius / 4);
    context.stroke();
    context.fill();
  });
}

function drawScore(context, face, unit) {
  const [x1, y1, x2] = face.box;
  if (x2 - x1 < 24 * unit) return; // it would hide more than it tells
  const text = face.score.toFixed(2);
  const size = Math.min(13, Math.max(9, (x2 - x1) / unit / 5)) * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const [width, height] = [context.measureText(text).width + 0.7 * size, 1.35 * size];
  const half = lineWidth(face, unit) / 2;
  const x = Math.min(Math.max(x1 - half, 0), Math.max(0, context.canvas.width - width));
  const y = y1 - half - height - unit >= 0 ? y1 - half - height - unit : Math.max(y1, 0);
  context.fillStyle = BOX;
  context.beginPath();
  context.roundRect(x, y, width, height, 0.25 * size);
  context.fill();
  context.fillStyle = DARK;
  context.textBaseline = "middle";
  context.fillText(text, x + 0.35 * size, y + height / 2 + 0.05 * size);
}
