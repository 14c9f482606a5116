// The photo with the part that the model sees, and attention over that part.

const SHOWN = 480; // pixels on the longer side
const OPACITY = 0.6;
// Nine colours of matplotlib's inferno, evenly spaced.
const INFERNO = ["000004", "210c4a", "57106e", "8a226a", "bc3754", "e45a31", "f98e09", "f9cb35", "fcffa4"].map((colour) => {
  return [0, 2, 4].map((place) => parseInt(colour.slice(place, place + 2), 16));
});

// The crop in the photo's own pixels, {x, y, width, height}: the graph resizes first, then crops.
export function seenPart({ width, height }, { resize, crop }) {
  if (crop === null) return { x: 0, y: 0, width, height };
  const shorter = Math.min(width, height);
  const [rows, columns] = typeof resize === "number"
    ? [height, width].map((side) => Math.floor(side * resize / shorter)) : resize;
  const [y, x] = [Math.floor((rows - crop[0]) / 2), Math.floor((columns - crop[1]) / 2)];
  const across = width / columns, down = height / rows;
  return { x: x * across, y: y * down, width: crop[1] * across, height: crop[0] * down };
}

export function drawPhoto(canvas, photo, part) {
  const scale = sized(canvas, photo);
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0, canvas.width, canvas.height);
  const [x, y, width, height] = [part.x, part.y, part.width, part.height].map((length) => length * scale);
  context.fillStyle = "rgb(0 0 0 / 55%)"; // what is not seen
  context.beginPath();
  context.rect(0, 0, canvas.width, canvas.height);
  context.rect(x, y, width, height);
  context.fill("evenodd");
  context.strokeStyle = "white";
  context.lineWidth = 2;
  context.strokeRect(x + 1, y + 1, width - 2, height - 2);
}

// Attention (rows × columns) over the part in grey, so that an even attention stays dim.
export function drawMap(canvas, photo, part, map, rows, columns) {
  sized(canvas, part);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.filter = "none";
  context.drawImage(photo, part.x, part.y, part.width, part.height, 0, 0, canvas.width, canvas.height);
  const image = context.getImageData(0, 0, canvas.width, canvas.height);
  const heat = enlarged(map, rows, columns, canvas.width, canvas.height);
  const brightest = Math.max(...map, 3 / map.length); // three times an even share, or the map's own maximum
  heat.forEach((attention, pixel) => colour(image.data.subarray(4 * pixel, 4 * pixel + 3), attention / brightest));
  context.putImageData(image, 0, 0);
}

function sized(canvas, { width, height }) {
  const scale = SHOWN / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  return scale;
}

function colour(pixel, share) {
  const grey = (pixel[0] + pixel[1] + pixel[2]) / 3, place = Math.min(Math.max(share, 0), 1) * (INFERNO.length - 1);
  const below = Math.min(Math.floor(place), INFERNO.length - 2), weight = place - below;
  for (let channel = 0; channel < 3; channel++) {
    const shade = INFERNO[below][channel] * (1 - weight) + INFERNO[below + 1][channel] * weight;
    pixel[channel] = OPACITY * shade + (1 - OPACITY) * grey;
  }
}

// Bilinear, between the middles of the patches.
function enlarged(map, rows, columns, width, height) {
  const across = between(columns, width), down = between(rows, height), enlarged = new Float32Array(width * height);
  down.forEach(([top, bottom, y], row) => across.forEach(([left, right, x], column) => {
    const upper = map[top * columns + left] * (1 - x) + map[top * columns + right] * x;
    const lower = map[bottom * columns + left] * (1 - x) + map[bottom * columns + right] * x;
    enlarged[row * width + column] = upper * (1 - y) + lower * y;
  }));
  return enlarged;
}

// For each pixel of a line the two patches beside it and the weight of the second.
function between(patches, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const place = Math.min(Math.max((pixel + 0.5) * patches / pixels - 0.5, 0), patches - 1), first = Math.floor(place);
    return [first, Math.min(first + 1, patches - 1), place - first];
  });
}
