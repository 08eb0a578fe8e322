/**
 * From a photo's pixels to the network's input, as featherface/images.py prepares it: averaged
 * when it shrinks, bilinear when it grows, padded right and below with black. Browsers each
 * scale in their own way, so it is done here.
 */

/** Width and height with the long side at `longSide` pixels; null leaves them. */
export function fittedSize(width, height, longSide) {
  if (longSide === null) return [width, height];
  const scale = longSide / Math.max(width, height);
  return [width, height].map((side) => Math.max(1, Math.round(side * scale)));
}

/** Width and height rounded up to multiples of 32. */
export function paddedSize(width, height) {
  return [width, height].map((side) => Math.ceil(side / 32) * 32);
}

/**
 * `pixels` (RGBA bytes of width x height) at [newWidth, newHeight], as planes of red, green and
 * blue, 0 to 255: Float32Array [3 * padded height * padded width].
 */
export function toPlanes(pixels, width, height, [newWidth, newHeight]) {
  const [columns, rows] = paddedSize(newWidth, newHeight);
  const planes = new Float32Array(3 * rows * columns);
  const shrinks = newWidth <= width && newHeight <= height;
  const across = weights(width, newWidth, shrinks);
  const down = weights(height, newHeight, shrinks);
  const kept = [newRow(-1), newRow(-1)]; // rows resized across; neighbours below share them
  function newRow(source) {
    return { source, values: new Float32Array(3 * newWidth) };
  }
  function rowAt(source) {
    let row = kept.find((one) => one.source === source);
    if (!row) {
      row = kept.shift();
      row.source = source;
      resizeRow(pixels, 4 * source * width, across, row.values);
      kept.push(row);
    }
    return row.values;
  }

  const line = new Float32Array(3 * newWidth);
  for (let y = 0; y < newHeight; y++) {
    line.fill(0.5); // so that cutting off the fraction rounds
    for (let at = down.starts[y]; at < down.starts[y + 1]; at++) {
      const row = rowAt(down.indices[at]);
      const weight = down.values[at];
      for (let x = 0; x < line.length; x++) line[x] += weight * row[x];
    }
    for (let channel = 0; channel < 3; channel++) {
      const start = (channel * rows + y) * columns;
      for (let x = 0, at = channel; x < newWidth; x++, at += 3) planes[start + x] = line[at] | 0;
    }
  }
  return planes;
}

/** One row of RGBA `pixels` from `offset` on, resized into `row`: red, green, blue by turns. */
function resizeRow(pixels, offset, { starts, indices, values }, row) {
  for (let x = 0, at = 0; at < row.length; x++) {
    const end = starts[x + 1];
    let red = 0;
    let green = 0;
    let blue = 0;
    for (let tap = starts[x]; tap < end; tap++) {
      const source = offset + 4 * indices[tap];
      const weight = values[tap];
      red += weight * pixels[source];
      green += weight * pixels[source + 1];
      blue += weight * pixels[source + 2];
    }
    row[at++] = red;
    row[at++] = green;
    row[at++] = blue;
  }
}

/** For each of `to` places, which of `from` samples it is made of, and how much of each. */
function weights(from, to, shrinks) {
  const scale = from / to;
  const starts = new Uint32Array(to + 1);
  const indices = [];
  const values = [];
  for (let place = 0; place < to; place++) {
    if (shrinks) {
      const [low, high] = [place * scale, (place + 1) * scale];
      for (let index = Math.floor(low); index < Math.min(from, Math.ceil(high - 1e-6)); index++) {
        const share = Math.min(high, index + 1) - Math.max(low, index);
        if (share <= 1e-6) continue;
        indices.push(index);
        values.push(share / scale);
      }
    } else {
      const centre = (place + 0.5) * scale - 0.5;
      const low = Math.floor(centre);
      const clamp = (index) => Math.min(Math.max(index, 0), from - 1);
      indices.push(clamp(low), clamp(low + 1));
      values.push(1 - (centre - low), centre - low);
    }
    starts[place + 1] = indices.length;
  }
  return { starts, indices: Uint32Array.from(indices), values: Float32Array.from(values) };
}
