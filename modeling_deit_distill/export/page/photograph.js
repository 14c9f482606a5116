// From a file to raw pixels, as `data/decoding.py` reads it: upright, without alpha, colour profiles not applied.

// Above this a photo is halved until it is below: time and memory grow with its pixels. What is left has at least three
// times the pixels a side of the model's own resize, which then hides the halving; only above ALWAYS_HALVED it may not.
export const HALVED_ABOVE = 4e6;
const TIMES_LEFT = 3, ALWAYS_HALVED = 16e6;
// Decoded, such a photo takes 480 MB.
export const MOST_PIXELS = 120e6;
const MOST_OBLONG = 500;
// A picture in which no colour spans more levels than FLAT, while alpha spans SHAPED, has its shape in its alpha.
const FLAT = 32, SHAPED = 128;

// What is wrong with a photo, in one line for the visitor.
export class Refused extends Error {}

// A photograph as the model takes it: `canvas`, `pixels` (RGBA bytes, opaque), `original` {width, height}.
// `shorterEdge` is that of the model's own resize.
export async function readPhotograph(file, shorterEdge) {
  const original = await sizeOf(file);
  checkSize(original);
  const bitmap = await decode(file);
  let canvas = reduced(bitmap, shorterEdge);
  let pixels = pixelsOf(canvas);
  if (isTransparent(pixels)) {
    canvas = reduced(withoutAlpha(straightPixels(bitmap)), shorterEdge);
    pixels = pixelsOf(canvas);
  }
  bitmap.close();
  return { canvas, pixels, original };
}

// From the file's head alone, so that nothing too large is decoded.
async function sizeOf(file) {
  if (file.size === 0) throw new Refused(`${nameOf(file)} is empty. Choose another file.`);
  // Some browsers draw SVG, at sizes of their own; Python does not.
  if (file.type.startsWith("image/svg")) throw new Refused(`${nameOf(file)} is a drawing (SVG). Save it as PNG or JPEG.`);
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    throw new Refused(`${nameOf(file)} is no image that this browser reads. Save it as JPEG or PNG.`);
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function checkSize({ width, height }) {
  const size = `The photo has ${width} × ${height} pixels`;
  if (width * height <= 1) throw new Refused(`${size}: nothing can be seen in it. Choose another one.`);
  if (Math.max(width, height) > MOST_OBLONG * Math.min(width, height)) {
    throw new Refused(`${size}: a strip, of which no crop shows anything. Choose another one.`);
  }
  if (width * height > MOST_PIXELS) {
    throw new Refused(`${size}, more than the ${MOST_PIXELS / 1e6} megapixels that this page takes. Save it smaller.`);
  }
}

async function decode(file) {
  if (await isCutOff(file)) throw new Refused(`${nameOf(file)} is a JPEG whose end is missing. Copy or save it again.`);
  try {
    const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    return await createImageBitmap(file, options);
  } catch {
    throw new Refused(`${nameOf(file)} cannot be decoded: it is broken, or too large for this browser. Save it again.`);
  }
}

// A browser shows as much of a JPEG as there is; Python refuses it. Data may follow the mark of its end.
async function isCutOff(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (bytes[0] !== 0xff || bytes[1] !== 0xd8) return false;
  for (let place = 2; (place = bytes.indexOf(0xff, place)) > 0;) {
    const marker = bytes[place + 1], hasLength = marker > 1 && marker < 0xff && !(marker >= 0xd0 && marker <= 0xd8);
    if (marker === 0xd9) return false;
    place += marker === 0xff ? 1 : 2;
    if (hasLength) place += 256 * bytes[place] + bytes[place + 1] || Infinity; // cut off in the length
  }
  return true;
}

function reduced(source, shorterEdge) {
  let canvas = drawn(source, isLarge(source, shorterEdge) ? 2 : 1);
  while (isLarge(canvas, shorterEdge)) canvas = drawn(canvas, 2);
  return canvas;
}

function isLarge({ width, height }, shorterEdge) {
  const isEnough = Math.min(width, height) >= 2 * TIMES_LEFT * shorterEdge;
  return width * height > (isEnough ? HALVED_ABOVE : ALWAYS_HALVED);
}

// At half the size each pixel is the mean of four. An odd last row is left out: stretched, all others would shift.
function drawn(source, times) {
  const [width, height] = [source.width, source.height].map((side) => Math.floor(side / times));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "low"; // bilinear
  context.drawImage(source, 0, 0, times * width, times * height, 0, 0, width, height);
  return canvas;
}

function pixelsOf(canvas) {
  return canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height).data;
}

function isTransparent(pixels) {
  for (let place = 3; place < pixels.length; place += 4) if (pixels[place] < 255) return true;
  return false;
}

// A canvas forgets the colour under transparent pixels, a texture does not.
function straightPixels(bitmap) {
  const { width, height } = bitmap;
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Refused("This browser cannot read a transparent photo of this size. Save it as JPEG.");
  }
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, gl.getParameter(gl.TEXTURE_BINDING_2D), 0);
  const pixels = new Uint8ClampedArray(4 * width * height);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(pixels.buffer));
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // a page may hold a few only
  return new ImageData(pixels, width, height);
}

// Alpha is dropped, unless that would leave one colour: such a picture is put on white, or on black if it is bright.
function withoutAlpha(image) {
  const { low, high } = extrema(image.data);
  const ground = low[0] + high[0] + low[1] + high[1] + low[2] + high[2] < 6 * 128 ? 255 : 0;
  const isFlat = [0, 1, 2].every((channel) => high[channel] - low[channel] <= FLAT);
  if (isFlat && high[3] === 0) throw new Refused("The photo is transparent everywhere. Choose another one.");
  const isShaped = isFlat && high[3] - low[3] >= SHAPED;
  for (let place = 0; place < image.data.length; place += 4) {
    const alpha = isShaped ? image.data[place + 3] / 255 : 1;
    for (let at = place; at < place + 3; at++) image.data[at] = image.data[at] * alpha + ground * (1 - alpha);
    image.data[place + 3] = 255;
  }
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(image, 0, 0);
  return canvas;
}

function extrema(pixels) {
  const low = [255, 255, 255, 255], high = [0, 0, 0, 0];
  for (let place = 0; place < pixels.length; place++) {
    low[place & 3] = Math.min(low[place & 3], pixels[place]);
    high[place & 3] = Math.max(high[place & 3], pixels[place]);
  }
  return { low, high };
}

function nameOf(file) {
  return file.name ? `“${file.name}”` : "The picture";
}

// Browsers that resist fingerprinting answer with noise in place of pixels, which would change answers silently.
export function readsTrueColours() {
  const canvas = Object.assign(document.createElement("canvas"), { width: 8, height: 8 });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "rgb(200, 100, 50)";
  context.fillRect(0, 0, 8, 8);
  const pixels = pixelsOf(canvas);
  return pixels.every((level, place) => level === [200, 100, 50, 255][place & 3]);
}
