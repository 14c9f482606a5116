// The demo page: a photo in, the answer, the maps and the time on the page. `demo.json` says what is shown.
import { HALVED_ABOVE, MOST_PIXELS, Refused, readPhotograph, readsTrueColours } from "./photograph.js";
import { drawMap, drawPhoto, seenPart } from "./pictures.js";

const TOKENS = ["class token", "distillation token"];
const HEADS = { cls_logits: "Class head", distillation_logits: "Distillation head" };
const element = (id) => document.getElementById(id);

let settings, ort, session = null, photograph = null, camera = null, newest = 0;
let last = Promise.resolve(); // tasks run one after the other

element("not-started").remove();
inTurn(start);

async function start() {
  if (typeof WebAssembly !== "object") throw new Refused("This browser has no WebAssembly. Open the page in another one.");
  settings = await (await fetched("demo.json")).json();
  document.title = element("title").textContent = settings.title;
  listExamples();
  listModels();
  listen();
  showLimits();
  for (const id of ["input", "model"]) element(id).hidden = false;
  await loadRuntime();
  await loadModel();
  say("Ready. Choose a photo.");
}

function inTurn(task) {
  last = last.then(task).catch(showError);
}

// --- what is loaded

async function fetched(url) {
  const advice = "Check that the folder is complete and the server runs, then reload the page.";
  const response = await fetch(url).catch((error) => {
    throw new Refused(`${url} could not be loaded (${error.message}). ${advice}`);
  });
  if (!response.ok) throw new Refused(`${url} could not be loaded (${response.status} ${response.statusText}). ${advice}`);
  return response;
}

async function loadRuntime() {
  say("Loading onnxruntime-web …");
  const folder = new URL(settings.runtime.folder, document.baseURI).href;
  // Small models gain nothing from more than four.
  const threads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
  try {
    ort = await import(`${folder}ort.wasm.bundle.min.mjs`);
  } catch (error) {
    throw new Refused(`onnxruntime-web could not be loaded from ${folder} (${error.message}). Check the network, then reload the page.`);
  }
  // In a worker, so that the page stays usable while a model answers.
  const wasmPaths = { wasm: `${folder}ort-wasm-simd-threaded.wasm` };
  Object.assign(ort.env.wasm, { wasmPaths, numThreads: threads, proxy: true });
  const reason = globalThis.crossOriginIsolated ? "" : " (more need the headers of cross-origin isolation)";
  element("threads").textContent = `${threads}${reason}`;
}

async function loadModel() {
  const model = settings.models[element("precision").value];
  describeModel(model);
  await session?.release();
  session = null;
  const bytes = await download(model);
  say("Starting the model …");
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  // The first answer takes longer than all others: an empty picture has it.
  const began = performance.now();
  await run({ data: new Float32Array(3 * 64 * 64), width: 64, height: 64 });
  element("first-time").textContent = `${rounded(performance.now() - began)} ms, of an empty picture`;
}

async function download({ file, bytes }) {
  const content = new Uint8Array(bytes), reader = (await fetched(file)).body.getReader();
  let length = 0;
  try {
    for (let part; !(part = await reader.read()).done; length += part.value.length) {
      if (length + part.value.length <= bytes) content.set(part.value, length);
      showProgress(`Loading the model: ${megabytes(length)} of ${megabytes(bytes)} MB`, length / bytes);
    }
  } finally {
    element("progress").hidden = true;
  }
  if (length === bytes) return content;
  throw new Refused(`${file} has ${length} bytes where ${bytes} are expected. Copy the folder again, whole.`);
}

// --- a photo and its answer

// From a file to the answer; a photo that comes later takes its place.
function take(file, label = null) {
  const number = ++newest;
  element("error").hidden = true;
  inTurn(async () => {
    if (number !== newest) return;
    say("Reading the photo …");
    const began = performance.now();
    const { resize } = settings;
    photograph = null;
    photograph = { ...await readPhotograph(file, typeof resize === "number" ? resize : Math.max(...resize)), label };
    photograph.milliseconds = performance.now() - began;
    await answer();
  });
}

async function answer() {
  if (!readsTrueColours()) {
    throw new Refused("This browser gives noise in place of a photo's pixels, against fingerprinting. Allow this page to read canvases.");
  }
  if (!ort) await loadRuntime();
  if (!session) await loadModel(); // its file was missing before
  say("Answering …");
  const began = performance.now();
  const outputs = await run(asInput(photograph));
  const milliseconds = performance.now() - began;
  showAnswer(outputs);
  element("details").scrollIntoView({ block: "nearest" }); // on a phone it lies below
  element("time").textContent = `${rounded(milliseconds)} ms, reading the photo ${rounded(photograph.milliseconds)} ms`;
  say("");
  document.dispatchEvent(new CustomEvent("answered", { detail: outputs }));
}

// Levels from 0 to 255, one colour after the other.
function asInput({ canvas: { width, height }, pixels }) {
  const area = width * height, data = new Float32Array(3 * area);
  for (let pixel = 0; pixel < area; pixel++) {
    data[pixel] = pixels[4 * pixel];
    data[area + pixel] = pixels[4 * pixel + 1];
    data[2 * area + pixel] = pixels[4 * pixel + 2];
  }
  return { data, width, height };
}

// Each output as {data, dims}.
async function run({ data, width, height }) {
  const tensors = await session.run({ pixel_values: new ort.Tensor("float32", data, [1, 3, height, width]) });
  return Object.fromEntries(Object.entries(tensors).map(([name, { data, dims }]) => [name, { data, dims }]));
}

function softmax(logits) {
  const highest = Math.max(...logits), exponentials = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = exponentials.reduce((total, each) => total + each, 0);
  return exponentials.map((each) => each / sum);
}

// The most probable classes, as [name, probability].
function best(logits, count) {
  const shares = softmax(logits).map((probability, index) => [settings.classes[index], probability]);
  return shares.sort((first, second) => second[1] - first[1]).slice(0, count);
}

// --- what is shown

function showAnswer(outputs) {
  const five = best(outputs.logits.data, 5);
  element("result").hidden = false;
  element("answers").replaceChildren(...five.map(barOf));
  const first = `${five[0][0]}, ${percent(five[0][1])}`;
  element("result-heading").textContent = first;
  element("said").textContent = `Answer: ${first}`;
  const { label } = photograph;
  element("truth").hidden = label === null;
  element("truth").textContent = `True class: ${label} (${label === five[0][0] ? "right" : "wrong"})`;
  const heads = Object.entries(HEADS).filter(([name]) => name in outputs);
  element("heads").replaceChildren(...heads.flatMap(([name, title]) => {
    const [[answer, probability]] = best(outputs[name].data, 1);
    return [made("dt", title), made("dd", `${answer}, ${percent(probability)}`)];
  }));
  showPictures(outputs.attentions);
}

function barOf([name, probability]) {
  const item = made("li", ""), bar = made("span", "", "bar");
  bar.style.width = `${100 * probability}%`;
  item.append(made("span", name, "name"), made("span", percent(probability), "percent"), bar);
  return item;
}

function showPictures({ data, dims: [, tokens, rows, columns] }) {
  const part = seenPart(photograph.canvas, settings), { width, height } = photograph.original;
  drawPhoto(element("photo"), photograph.canvas, part);
  element("photo").ariaLabel = `The photo, ${width} × ${height} pixels; the part that the model sees is framed`;
  const figures = TOKENS.slice(0, tokens).map((name, token) => {
    const canvas = made("canvas", ""), map = data.subarray(token * rows * columns, (token + 1) * rows * columns);
    drawMap(canvas, photograph.canvas, part, map, rows, columns);
    return figureOf(canvas, name, map.indexOf(Math.max(...map)), rows, columns);
  });
  element("pictures").replaceChildren(element("photo").parentElement, ...figures);
}

function figureOf(canvas, name, brightest, rows, columns) {
  const row = `row ${Math.floor(brightest / columns) + 1} of ${rows}`, column = `column ${brightest % columns + 1} of ${columns}`;
  canvas.role = "img";
  canvas.ariaLabel = `Attention of the ${name}, highest in ${row}, ${column}`;
  const figure = made("figure", "");
  figure.append(canvas, made("figcaption", `Where the ${name} looks`));
  return figure;
}

function listModels() {
  const options = settings.models.map(({ precision, bytes }, index) => {
    return Object.assign(made("option", `${precision}, ${megabytes(bytes)} MB`), { value: index });
  });
  element("precision").replaceChildren(...options);
}

function describeModel({ equal_decisions: share, images_compared: images }) {
  element("agreement").textContent = share === null ? "not measured" : `${percent(share)} of ${images} images`;
}

function listExamples() {
  const buttons = settings.examples.map(({ file, label }, index) => {
    const button = Object.assign(made("button", "", "example"), { type: "button" });
    const name = label === null ? `Example ${index + 1}` : `Example ${index + 1}: ${label}`;
    button.append(Object.assign(new Image(), { src: file, alt: name, width: 72, height: 72 }));
    button.onclick = async () => {
      const blob = await fetched(file).then((response) => response.blob()).catch(showError);
      if (blob) take(blob, label);
    };
    return button;
  });
  element("example-buttons").replaceChildren(...buttons);
  element("examples").hidden = buttons.length === 0;
}

function showLimits() {
  element("limits").textContent = `Photos above ${HALVED_ABOVE / 1e6} megapixels are halved in width and height, as often as needed, before the model resizes them; above ${MOST_PIXELS / 1e6} megapixels they are refused.`;
}

function showProgress(text, share) {
  say("");
  element("progress").hidden = false;
  element("progress-text").textContent = text;
  element("bar").value = share;
}

function showError(error) {
  element("error").textContent = error instanceof Refused ? error.message : `This did not work: ${error.message ?? error}. Reload the page, or choose another photo or model.`;
  element("error").hidden = false;
  element("result").hidden = photograph === null; // the answer to the photo before
  say("");
}

function say(text) {
  element("status").textContent = text;
}

function made(tag, text, className = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className });
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
const rounded = (milliseconds) => (milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds));

// --- what the visitor does

function listen() {
  element("choose").onclick = () => element("file").click();
  element("file").onchange = ({ target }) => {
    takeOneOf(target.files, "chosen");
    target.value = ""; // the same file may be chosen again
  };
  element("precision").onchange = () => inTurn(async () => {
    element("error").hidden = true;
    if (!ort) await loadRuntime();
    await loadModel();
    say("Ready. Choose a photo.");
    if (photograph) await answer();
  });
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    takeOneOf(event.dataTransfer.files, "dropped");
  };
  document.onpaste = ({ clipboardData }) => takeOneOf(clipboardData.files, "pasted");
  listenToCamera();
}

function takeOneOf(files, verb) {
  if (files.length === 1) return take(files[0]);
  const found = files.length === 0 ? `What was ${verb} holds no file` : `${files.length} files were ${verb}`;
  showError(new Refused(`${found}. Give one photo at a time.`));
}

function listenToCamera() {
  const isThere = Boolean(navigator.mediaDevices?.getUserMedia);
  element("camera").hidden = !isThere;
  element("no-camera").hidden = isThere;
  element("camera").onclick = () => openCamera().catch((error) => {
    showError(new Refused(`The camera cannot be used (${error.message || error.name}). Allow it in the browser, or choose a file.`));
  });
  element("close").onclick = closeCamera;
  element("take").onclick = takePicture;
}

async function openCamera() {
  camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  element("viewfinder").hidden = false;
  element("video").srcObject = camera;
  await element("video").play();
  element("take").focus();
}

function closeCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  element("viewfinder").hidden = true;
  element("camera").focus();
}

function takePicture() {
  const { videoWidth: width, videoHeight: height } = element("video");
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  canvas.getContext("2d").drawImage(element("video"), 0, 0);
  canvas.toBlob((picture) => take(picture));
  closeCamera();
}
